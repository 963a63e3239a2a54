import { svidChainText } from "../../src/cli/debug-info.ts";
import type { Answer } from "../../src/cli/output.ts";
import { ServerDebugApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { formatDuration } from "../../src/runtime/duration.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { serverCommand } from "./connection.ts";

const getinfo = serverCommand({
  summary: "Prints debug information about the server",
  flags: { output: outputFlag },
  examples: ["debug getinfo", "debug getinfo -output json"],
  async run({ api }): Promise<Answer> {
    const info = await api.ask(api.client(ServerDebugApi).GetInfo({}));
    return {
      message: info,
      pretty({ stdout }) {
        stdout.write("Server Debug Info:\n");
        stdout.write(`  Uptime:                  ${formatDuration(info.uptime * 1000)}\n`);
        stdout.write(`  Registered Agents:       ${info.agents_count}\n`);
        stdout.write(`  Registration Entries:    ${info.entries_count}\n`);
        stdout.write(`  Federated Bundles:       ${info.federated_bundles_count}\n`);
        stdout.write(svidChainText(info.svid_chain));
      },
    };
  },
});

export const debugCommands = group("Shows what the server knows of itself", { getinfo });
