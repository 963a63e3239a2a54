import { join } from "node:path";
import { type Answer, printAnswer } from "../../src/cli/output.ts";
import { parseJws } from "../../src/crypto/jws.ts";
import type { WITSVIDResponse__Output } from "../../src/rpc/gen/WITSVIDResponse.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { writePrivateFile, writePublicFile } from "../../src/runtime/files.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { timeOf } from "../../src/spiffe/token.ts";
import { callOptions, firstOf, timeoutFlag, workloadCommand } from "./workload.ts";

/** SPIRE has no such command; this one prints what its `api fetch jwt` prints, and writes what its `api fetch x509` writes. */
export const fetchWit = workloadCommand({
  summary: "Fetches WIT SVIDs from the Workload API",
  flags: {
    ...timeoutFlag,
    spiffeID: { type: "string", doc: "SPIFFE ID subject (optional)", default: "" },
    write: {
      type: "string",
      doc: "Write tokens and keys to the specified path (optional)",
      default: "",
      complete: "file",
    },
    output: outputFlag,
  },
  examples: ["api fetch wit", "api fetch wit -write /run/my-service", "api fetch wit -output json"],
  async run({ flags, io, api, signal }) {
    const request = { spiffe_id: flags.spiffeID };
    const stream = api.client(WorkloadApi).FetchWITSVID(request, callOptions(flags, signal));
    const message = await api.ask(firstOf(stream));
    await printAnswer(fetched(message), { io, output: flags.output, clock: systemClock });
    if (flags.write !== "") await writeTokens(io, flags.write, message);
  },
});

/** Keys are in `json` and `yaml`, and in files that are written; nobody reads them off a terminal by accident. */
function fetched(message: WITSVIDResponse__Output): Answer {
  const { svids } = message;
  return {
    message,
    pretty({ stdout }) {
      for (const { spiffe_id, wit_svid, hint } of svids) {
        stdout.write(`token(${spiffe_id}):\n\t${wit_svid}\n`);
        if (hint !== "") stdout.write(`hint(${spiffe_id}):\n\t${hint}\n`);
      }
    },
    table: {
      columns: [{ title: "SPIFFE ID" }, { title: "HINT" }, { title: "EXPIRES" }, { title: "TOKEN", wide: true }],
      rows: svids.map(({ spiffe_id, hint, wit_svid: token }) => [
        spiffe_id,
        hint,
        timeOf(parseJws(token).payload, "exp"),
        token,
      ]),
    },
  };
}

async function writeTokens(io: Io, folder: string, { svids }: WITSVIDResponse__Output): Promise<void> {
  for (const [index, { wit_svid, wit_svid_key }] of svids.entries()) {
    const token = join(folder, `wit.${index}.jwt`);
    io.stdout.write(`Writing WIT SVID #${index} to file ${token}.\n`);
    await writePublicFile(token, wit_svid);
    const key = join(folder, `wit.${index}.key`);
    io.stdout.write(`Writing key #${index} to file ${key}.\n`);
    await writePrivateFile(key, wit_svid_key);
  }
}
