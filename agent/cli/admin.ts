import { apiCommand, type Endpoint } from "../../src/cli/api-command.ts";
import { svidChainText } from "../../src/cli/debug-info.ts";
import { loggerCommands as commandsOf } from "../../src/cli/logger.ts";
import type { Answer } from "../../src/cli/output.ts";
import { AgentDebugApi, AgentLoggerApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { formatDuration } from "../../src/runtime/duration.ts";
import { type FlagSpecs, outputFlag } from "../../src/runtime/flags.ts";
import { rfc3339 } from "../../src/runtime/logfmt.ts";

/** SPIRE's. */
const DEFAULT_ADMIN_SOCKET = "/tmp/spire-agent/private/admin.sock";

const adminFlags = {
  socketPath: {
    type: "string",
    doc: "Path to the agent's admin API socket",
    default: DEFAULT_ADMIN_SOCKET,
    complete: "file",
  },
} as const satisfies FlagSpecs;

/** The agent's admin socket. */
export const adminEndpoint: Endpoint<typeof adminFlags> = {
  flags: adminFlags,
  name: "the agent",
  socketPath: ({ socketPath }) => String(socketPath) || DEFAULT_ADMIN_SOCKET,
};

export const loggerCommands = commandsOf(adminEndpoint, (api) => api.client(AgentLoggerApi));

const getinfo = apiCommand(adminEndpoint, {
  summary: "Prints debug information about the agent",
  flags: { output: outputFlag },
  examples: ["debug getinfo", "debug getinfo -output json"],
  async run({ api }): Promise<Answer> {
    const info = await api.ask(api.client(AgentDebugApi).GetInfo({}));
    return {
      message: info,
      pretty({ stdout }) {
        stdout.write("Agent Debug Info:\n");
        stdout.write(`  Uptime:                          ${formatDuration(info.uptime * 1000)}\n`);
        stdout.write(`  Last Sync Success:               ${lastSyncText(Number(info.last_sync_success))}\n`);
        stdout.write(`  Cached X.509 SVIDs:              ${info.cached_x509_svids_count}\n`);
        stdout.write(`  Cached JWT SVIDs:                ${info.cached_jwt_svids_count}\n`);
        stdout.write(`  Cached SVID Store X.509 SVIDs:   ${info.cached_svidstore_x509_svids_count}\n`);
        stdout.write(svidChainText(info.svid_chain));
      },
    };
  },
});

export const debugCommands = group("Shows what the agent knows of itself", { getinfo });

function lastSyncText(seconds: number): string {
  return seconds === 0 ? "(never)" : rfc3339(new Date(seconds * 1000), false);
}
