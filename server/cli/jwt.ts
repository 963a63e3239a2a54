import type { Answer } from "../../src/cli/output.ts";
import { timeCell } from "../../src/cli/table.ts";
import { SvidApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { writePrivateFile } from "../../src/runtime/files.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { serverCommand } from "./connection.ts";
import { incomplete, usage } from "./input.ts";
import { idFrom } from "./match.ts";
import { secondsOf, tokenExpiry, warnOfCappedTtl } from "./mint.ts";
import { idText } from "./print.ts";

const mint = serverCommand({
  summary: "Mints a JWT-SVID",
  flags: {
    spiffeID: { type: "string", doc: "SPIFFE ID of the JWT-SVID", default: "", complete: "spiffe-id" },
    ttl: { type: "duration", doc: "TTL of the JWT-SVID; 0 means the server's default", default: "0s" },
    audience: { type: "strings", doc: "Audience claim that will be included in the SVID. Can be used more than once." },
    write: { type: "string", doc: "File to write token to instead of stdout", default: "", complete: "file" },
    output: outputFlag,
  },
  examples: ["jwt mint -spiffeID spiffe://example.org/job -audience https://api.example.org -ttl 5m"],
  async run({ flags, io, api }): Promise<Answer | undefined> {
    if (flags.spiffeID === "") throw usage("spiffeID must be specified", "add -spiffeID spiffe://…");
    if (flags.audience.length === 0) throw usage("at least one audience must be specified", "add -audience …");
    const request = { id: idFrom(flags.spiffeID), ttl: secondsOf(flags.ttl), audience: [...flags.audience] };
    const message = await api.ask(api.client(SvidApi).MintJWTSVID(request), "unable to mint SVID");
    const { svid } = message;
    if (svid === null || svid.token === "") throw incomplete("server response missing token");
    const expires = tokenExpiry(svid.token);
    if (expires === undefined) io.stderr.write("Unable to determine JWT-SVID lifetime: no expiry claim\n");
    else warnOfCappedTtl(io, "JWT-SVID", { expires, ttlMs: flags.ttl });
    if (flags.write !== "") {
      await writePrivateFile(flags.write, svid.token);
      io.stdout.write(`JWT-SVID written to ${flags.write}\n`);
      return undefined;
    }
    return {
      message,
      pretty: ({ stdout }) => void stdout.write(`${svid.token}\n`),
      table: {
        columns: [{ title: "SPIFFE ID" }, { title: "EXPIRES" }, { title: "TOKEN" }],
        rows: [[idText(svid.id), timeCell(svid.expires_at), svid.token]],
      },
    };
  },
});

export const jwtCommands = group("Mints JWT-SVIDs", { mint });
