import { type Channel, dialUnix } from "../../src/rpc/dial.ts";
import { codeNameOf, codeOf } from "../../src/rpc/status.ts";
import { type CommandCall, type CommandNode, type CommandSpec, command } from "../../src/runtime/cli.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { FlagSpecs } from "../../src/runtime/flags.ts";
import { withProgress } from "../../src/runtime/terminal.ts";

import { DEFAULT_SERVER_SOCKET } from "../config.ts";

const SOCKET_VARIABLE = "SPIRE_SERVER_PRIVATE_SOCKET";
const TEMPLATE_VARIABLE = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE";

const connectionFlags = {
  socketPath: { type: "string", doc: "Path to the server's API socket", default: DEFAULT_SERVER_SOCKET },
  instance: {
    type: "string",
    doc: `Instance name to substitute into socket templates (env ${TEMPLATE_VARIABLE})`,
    default: "",
  },
} as const satisfies FlagSpecs;

type WithConnection<F extends FlagSpecs> = F & typeof connectionFlags;

interface ServerCall<F extends FlagSpecs> extends CommandCall<F> {
  readonly server: ServerConnection;
}

/** The admin socket, and the way to ask it something. */
export interface ServerConnection {
  readonly client: Channel["client"];
  /**
   * Waits for an answer, with a sign of life on a terminal when it takes over a second. A failed call reads as SPIRE's
   * commands print it: `rpc error: code = NotFound desc = …`, after the context.
   */
  ask<T>(answer: Promise<T>, context?: string): Promise<T>;
}

export interface ServerCommandSpec<F extends FlagSpecs> extends Omit<CommandSpec<F>, "run"> {
  run(call: ServerCall<WithConnection<F>>): Promise<number | undefined | void>;
}

/** A command that talks to the server's admin socket. */
export function serverCommand<const F extends FlagSpecs>(spec: ServerCommandSpec<F>): CommandNode {
  return command<WithConnection<F>>({
    ...spec,
    flags: { ...spec.flags, ...connectionFlags },
    async run(call) {
      using channel = dialUnix(socketPathFrom(call.flags as Readonly<Record<string, unknown>>, call.io.env));
      const ask: ServerConnection["ask"] = (answer, context) =>
        asRpcError(withProgress(call.io, "waiting for the server", answer), context);
      return await spec.run({ ...call, server: { client: (service) => channel.client(service), ask } });
    },
  });
}

/** A flag over `-instance` over the environment over the default. Throws `invalid`. */
function socketPathFrom(
  flags: Readonly<Record<string, unknown>>,
  env: Readonly<Record<string, string | undefined>>,
): string {
  const given = String(flags["socketPath"]);
  const instance = String(flags["instance"]);
  const template = env[TEMPLATE_VARIABLE] ?? "";
  if (instance !== "" && template === "") {
    throw new Fault("invalid", `you must define ${TEMPLATE_VARIABLE} to use the instance flag`, {
      code: "socket-template",
    });
  }
  if (instance !== "" && !template.includes("%i")) {
    throw new Fault("invalid", `failed to find %i in ${TEMPLATE_VARIABLE}`, { code: "socket-template" });
  }
  if (given !== DEFAULT_SERVER_SOCKET) return given;
  if (instance !== "") return template.replaceAll("%i", instance);
  return env[SOCKET_VARIABLE] || DEFAULT_SERVER_SOCKET;
}

async function asRpcError<T>(answer: Promise<T>, context: string | undefined): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    const fault = Fault.from(error);
    const text = `rpc error: code = ${codeNameOf(codeOf(fault))} desc = ${fault.message}`;
    throw new Fault(fault.kind, context === undefined ? text : `${context}: ${text}`, {
      code: fault.code,
      cause: error,
      ...(fault.hint === undefined ? {} : { hint: fault.hint }),
    });
  }
}
