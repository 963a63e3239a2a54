import { instanceSocket } from "../../src/cli/instance-socket.ts";
import type { FlagSpecs } from "../../src/runtime/flags.ts";

import { DEFAULT_AGENT_SOCKET } from "../config.ts";

const VARIABLE = "SPIRE_AGENT_PUBLIC_SOCKET";

export const socketFlags = {
  socketPath: {
    type: "string",
    doc: `Path to the agent's API socket (env ${VARIABLE})`,
    default: DEFAULT_AGENT_SOCKET,
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
  defaultPath: DEFAULT_AGENT_SOCKET,
  undefinedText: (template: string) => `${template} environment variable must be defined when using the instance flag`,
};

/** A flag over `-instance` over the environment over the default. Throws `invalid`. */
export function socketPathFrom(
  flags: { readonly socketPath: string; readonly instance: string },
  env: Readonly<Record<string, string | undefined>>,
): string {
  return instanceSocket(place, flags, env);
}
