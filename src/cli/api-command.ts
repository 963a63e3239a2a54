import { type Channel, dialUnix } from "../rpc/dial.ts";
import { rpcErrorText } from "../rpc/status.ts";
import { type Command, type CommandCall, type CommandNode, type CommandSpec, command } from "../runtime/cli.ts";
import { systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { FlagSpecs, OutputFormat } from "../runtime/flags.ts";
import { type Io, withProgress } from "../runtime/terminal.ts";
import { confirm, yesFlag } from "./confirm.ts";
import { type Answer, printAnswer } from "./output.ts";
import { showingRequests } from "./show-request.ts";
import { watchAnswer, watchFlags } from "./watch.ts";

type Env = Io["env"];

/** Whom the commands of a program talk to. */
export interface Endpoint<E extends FlagSpecs> {
  /** Name the socket. */
  readonly flags: E;
  /** Such as `the server`, for people. */
  readonly name: string;
  /** Throws `invalid`. */
  socketPath(flags: Readonly<Record<keyof E, unknown>>, env: Env): string;
}

/** The way to ask something on the socket. */
export interface Api {
  readonly client: Channel["client"];
  readonly socketPath: string;
  /**
   * Waits for an answer, with a sign of life on a terminal when it takes over a second. A failed call reads as SPIRE's
   * commands print it: `rpc error: code = NotFound desc = …`, after the context.
   */
  ask<T>(answer: Promise<T>, context?: string): Promise<T>;
  /** Before something others rely on is changed: "This will <description>". Throws `precondition`. */
  confirm(describe: () => Promise<string> | string): Promise<void>;
}

export interface ApiCall<F extends FlagSpecs> extends CommandCall<F> {
  readonly api: Api;
}

export interface ApiCommandSpec<F extends FlagSpecs> extends Omit<CommandSpec<F>, "run"> {
  /** Changes or removes what others rely on, so that `api.confirm` is called and there is a flag that answers it. */
  readonly destructive?: true;
  /** Lists things that change, so that it can be watched. */
  readonly watchable?: true;
  /** An answer is printed as `-output` says; a number is the exit status. */
  run(call: ApiCall<F>): Promise<Answer | number | undefined | void>;
}

const requestFlag = {
  showRequest: { type: "bool", doc: "Also print each request as a grpcurl command, on standard error" },
} as const satisfies FlagSpecs;

/** A command that talks to a socket of its program. */
export function apiCommand<const F extends FlagSpecs, E extends FlagSpecs>(
  endpoint: Endpoint<E>,
  spec: ApiCommandSpec<F>,
): CommandNode & { readonly command: Command } {
  const { destructive, watchable, run, ...rest } = spec;
  const flags = {
    ...spec.flags,
    ...endpoint.flags,
    ...requestFlag,
    ...(destructive === true ? { yes: yesFlag } : {}),
    ...(watchable === true ? watchFlags : {}),
  };
  return command<FlagSpecs>({
    ...rest,
    flags,
    async run(call) {
      const values = call.flags as Readonly<Record<string, unknown>>;
      const socketPath = endpoint.socketPath(values as Readonly<Record<keyof E, unknown>>, call.io.env);
      using channel = dialUnix(socketPath);
      const api = apiOver({ channel, socketPath, call, values, waitingFor: endpoint.name });
      // The values are read from the same specs, which is what the type says.
      const look = (): ReturnType<typeof run> => run({ ...(call as unknown as CommandCall<F>), api });
      return await show(look, { ...call, values });
    },
  });
}

interface Opened {
  readonly channel: Channel;
  readonly socketPath: string;
  readonly call: CommandCall<FlagSpecs>;
  readonly values: Readonly<Record<string, unknown>>;
  readonly waitingFor: string;
}

function apiOver({ channel, socketPath, call, values, waitingFor }: Opened): Api {
  const { io, signal, spelling } = call;
  const client: Api["client"] = (service) => channel.client(service);
  const tell = (line: string): void => void io.stderr.write(`${line}\n`);
  return {
    socketPath,
    client: values["showRequest"] === true ? showingRequests(client, socketPath, tell) : client,
    ask: (answer, context) => asRpcError(withProgress(io, `waiting for ${waitingFor}`, answer), context),
    confirm: (describe) => confirm({ io, signal, yes: values["yes"] === true, spelling }, describe),
  };
}

interface Shown {
  readonly io: Io;
  readonly signal: AbortSignal;
  readonly values: Readonly<Record<string, unknown>>;
}

async function show(
  look: () => Promise<Answer | number | undefined | void>,
  { io, signal, values }: Shown,
): Promise<number | undefined> {
  const output = (values["output"] ?? "pretty") as OutputFormat;
  const printing = { io, output, clock: systemClock };
  if (values["watch"] === true) {
    const intervalMs = Number(values["watchInterval"]);
    await watchAnswer(look as () => Promise<Answer>, { ...printing, intervalMs, signal });
    return undefined;
  }
  const found = await look();
  if (typeof found !== "object") return found ?? undefined;
  await printAnswer(found, printing);
  return undefined;
}

async function asRpcError<T>(answer: Promise<T>, context: string | undefined): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    throw rpcError(error, context);
  }
}

/** The fault with the text that a gRPC error has in SPIRE's output. */
function rpcError(error: unknown, context?: string): Fault {
  const fault = Fault.from(error);
  const text = rpcErrorText(fault);
  return new Fault(fault.kind, context === undefined ? text : `${context}: ${text}`, {
    code: fault.code,
    cause: error,
    ...(fault.hint === undefined ? {} : { hint: fault.hint }),
  });
}
