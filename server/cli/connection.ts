import { type ApiCommandSpec, apiCommand, type Endpoint } from "../../src/cli/api-command.ts";
import type { Command, CommandNode } from "../../src/runtime/cli.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { FlagSpecs } from "../../src/runtime/flags.ts";

import { DEFAULT_SERVER_SOCKET } from "../config.ts";

const SOCKET_VARIABLE = "SPIRE_SERVER_PRIVATE_SOCKET";
const TEMPLATE_VARIABLE = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE";

const connectionFlags = {
  socketPath: {
    type: "string",
    doc: `Path to the server's API socket (env ${SOCKET_VARIABLE})`,
    default: DEFAULT_SERVER_SOCKET,
    complete: "file",
  },
  instance: {
    type: "string",
    doc: `Instance name to substitute into socket templates (env ${TEMPLATE_VARIABLE})`,
    default: "",
  },
} as const satisfies FlagSpecs;

/** The server's admin socket. */
export const serverEndpoint: Endpoint<typeof connectionFlags> = {
  flags: connectionFlags,
  name: "the server",
  socketPath,
};

/** A command that talks to the server's admin socket. */
export function serverCommand<const F extends FlagSpecs>(
  spec: ApiCommandSpec<F>,
): CommandNode & { readonly command: Command } {
  return apiCommand(serverEndpoint, spec);
}

/** A flag over `-instance` over the environment over the default. Throws `invalid`. */
function socketPath(
  flags: Readonly<Record<keyof typeof connectionFlags, unknown>>,
  env: Readonly<Record<string, string | undefined>>,
): string {
  const given = String(flags.socketPath);
  const instance = String(flags.instance);
  const template = env[TEMPLATE_VARIABLE] ?? "";
  if (instance !== "" && template === "") {
    throw new Fault("invalid", `you must define ${TEMPLATE_VARIABLE} to use the instance flag`, {
      code: "socket-template",
      hint: `for example ${TEMPLATE_VARIABLE}=/run/spire/server/%i/private/api.sock`,
    });
  }
  if (instance !== "" && !template.includes("%i")) {
    throw new Fault("invalid", `failed to find %i in ${TEMPLATE_VARIABLE}`, {
      code: "socket-template",
      hint: "%i stands for the value of -instance",
    });
  }
  if (given !== DEFAULT_SERVER_SOCKET) return given;
  if (instance !== "") return template.replaceAll("%i", instance);
  return env[SOCKET_VARIABLE] || DEFAULT_SERVER_SOCKET;
}
