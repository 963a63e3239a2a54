import type { Answer } from "../../src/cli/output.ts";
import { timeCell } from "../../src/cli/table.ts";
import { AgentApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { serverCommand } from "./connection.ts";
import { idFrom, int32From } from "./match.ts";

const generate = serverCommand({
  summary: "Generates a join token",
  flags: {
    ttl: { type: "int", doc: "Token TTL in seconds", default: 600 },
    spiffeID: { type: "string", doc: "Additional SPIFFE ID to assign the token owner (optional)", default: "" },
    output: outputFlag,
  },
  examples: ["token generate -spiffeID spiffe://example.org/my-node"],
  async run({ flags, api }): Promise<Answer> {
    const owner = flags.spiffeID === "" ? {} : { agent_id: idFrom(flags.spiffeID) };
    const token = await api.ask(api.client(AgentApi).CreateJoinToken({ ttl: int32From(flags.ttl, "TTL"), ...owner }));
    return {
      message: token,
      pretty({ stdout }) {
        stdout.write(`Token: ${token.value}\n`);
        if (flags.spiffeID === "") stdout.write("Warning: Missing SPIFFE ID.\n");
      },
      table: {
        columns: [{ title: "TOKEN" }, { title: "EXPIRES" }, { title: "SPIFFE ID" }],
        rows: [[token.value, timeCell(token.expires_at), flags.spiffeID]],
      },
    };
  },
});

export const tokenCommands = group("Generates join tokens", { generate });
