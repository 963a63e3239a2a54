import { AgentApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { serverCommand } from "./connection.ts";
import { idFrom } from "./match.ts";
import { print } from "./print.ts";

const generate = serverCommand({
  summary: "Generates a join token",
  flags: {
    ttl: { type: "int", doc: "Token TTL in seconds", default: 600 },
    spiffeID: { type: "string", doc: "Additional SPIFFE ID to assign the token owner (optional)", default: "" },
    output: outputFlag,
  },
  examples: ["token generate -spiffeID spiffe://example.org/my-node"],
  async run({ flags, io, server }) {
    const owner = flags.spiffeID === "" ? {} : { agent_id: idFrom(flags.spiffeID) };
    const token = await server.ask(server.client(AgentApi).CreateJoinToken({ ttl: flags.ttl, ...owner }));
    print({ io, output: flags.output, message: token }, () => {
      io.stdout.write(`Token: ${token.value}\n`);
      if (flags.spiffeID === "") io.stdout.write("Warning: Missing SPIFFE ID.\n");
    });
  },
});

export const tokenCommands = group("Generates join tokens", { generate });
