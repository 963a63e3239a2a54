import { Fault } from "../../src/runtime/fault.ts";
import type { FlagSpecs } from "../../src/runtime/flags.ts";

import { DEFAULT_AGENT_SOCKET } from "../config.ts";

const TEMPLATE_VARIABLE = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE";

export const socketFlags = {
  socketPath: { type: "string", doc: "Path to the agent's API socket", default: DEFAULT_AGENT_SOCKET },
  instance: {
    type: "string",
    doc: `Instance name to substitute into socket templates (env ${TEMPLATE_VARIABLE})`,
    default: "",
  },
} as const satisfies FlagSpecs;

interface SocketChoice {
  readonly socketPath: string;
  readonly instance: string;
}

/** A flag over `-instance` over the default. Throws `invalid`. */
export function socketPathFrom(flags: SocketChoice, env: Readonly<Record<string, string | undefined>>): string {
  const { socketPath, instance } = flags;
  if (instance === "" || socketPath !== DEFAULT_AGENT_SOCKET) return socketPath;
  const template = env[TEMPLATE_VARIABLE] ?? "";
  if (template === "") {
    throw new Fault("invalid", `you must define ${TEMPLATE_VARIABLE} to use the instance flag`, {
      code: "socket-template",
    });
  }
  if (!template.includes("%i"))
    throw new Fault("invalid", `failed to find %i in ${TEMPLATE_VARIABLE}`, { code: "socket-template" });
  return template.replaceAll("%i", instance);
}
