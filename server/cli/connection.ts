import { type ApiCommandSpec, apiCommand, type Endpoint } from "../../src/cli/api-command.ts";
import { instanceSocket } from "../../src/cli/instance-socket.ts";
import type { Command, CommandNode } from "../../src/runtime/cli.ts";
import type { FlagSpecs } from "../../src/runtime/flags.ts";

import { DEFAULT_SERVER_SOCKET } from "../config.ts";

const VARIABLE = "SPIRE_SERVER_PRIVATE_SOCKET";

const connectionFlags = {
  socketPath: {
    type: "string",
    doc: `Path to the server's API socket (env ${VARIABLE})`,
    default: DEFAULT_SERVER_SOCKET,
    complete: "file",
  },
  instance: {
    type: "string",
    doc: `Instance name to substitute into socket templates (env ${VARIABLE}_TEMPLATE)`,
    default: "",
  },
} as const satisfies FlagSpecs;

const place = {
  variable: VARIABLE,
  defaultPath: DEFAULT_SERVER_SOCKET,
  undefinedText: (template: string) => `you must define ${template} to use the instance flag`,
};

/** The server's admin socket. */
export const serverEndpoint: Endpoint<typeof connectionFlags> = {
  flags: connectionFlags,
  name: "the server",
  socketPath: ({ socketPath, instance }, env) =>
    instanceSocket(place, { socketPath: String(socketPath), instance: String(instance) }, env),
};

/** A command that talks to the server's admin socket. */
export function serverCommand<const F extends FlagSpecs>(
  spec: ApiCommandSpec<F>,
): CommandNode & { readonly command: Command } {
  return apiCommand(serverEndpoint, spec);
}
