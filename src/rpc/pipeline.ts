import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { Log } from "../runtime/log.ts";
import type { Call, Caller } from "./caller.ts";
import { type MethodName, RunningCall, type WireCall } from "./running-call.ts";
import type { AnyHandler } from "./service.ts";
import { type CodeName, codeNameOf, codeOf, publicFault } from "./status.ts";

export interface Outcome {
  readonly code: CodeName;
  readonly ms: number;
  readonly fault?: Fault;
}

export interface PipelineOptions<Auth> {
  /** Runs before the handler and before any message is read. Throws a `Fault` to refuse the call. */
  admit(call: Call): Promise<Auth>;
  /** Told about every call that was admitted or refused, once it has ended. */
  observe?(call: Call<Auth | undefined>, outcome: Outcome): void;
  readonly log: Log;
  readonly clock: Clock;
}

/** Takes every call the same way: admit, read, run, answer, observe. */
export class Pipeline<Auth> {
  readonly #options: PipelineOptions<Auth>;
  readonly #running = new Map<RunningCall<Auth>, AnyHandler<Auth>>();

  constructor(options: PipelineOptions<Auth>) {
    this.#options = options;
  }

  /** Never throws, never rejects. */
  async run(parts: { name: MethodName; wire: WireCall; caller: Caller; handler: AnyHandler<Auth> }): Promise<void> {
    const { log, clock } = this.#options;
    const started = clock.monotonic();
    const call = new RunningCall<Auth>({ ...parts, log, clock });
    this.#running.set(call, parts.handler);
    try {
      call.admitted(await call.orEnd(this.#options.admit(call)));
      await answer(parts.handler, call);
      call.succeed();
    } catch (error) {
      this.#fail(call, error);
    } finally {
      this.#running.delete(call);
    }
    this.#observe(call, clock.monotonic() - started);
  }

  /** Ends all calls, or those that would never end. */
  abort(fault: Fault, which: "all" | "endless"): void {
    for (const [call, { endless }] of this.#running) if (which === "all" || endless) call.abort(fault);
  }

  /** Callers who have kept a call waiting for longer than they may, for a request or by not taking the answer. */
  *stalled(patienceMs: (caller: Caller) => number): Generator<Caller> {
    const now = this.#options.clock.monotonic();
    for (const { caller, stalledSince } of this.#running.keys())
      if (stalledSince !== undefined && now - stalledSince > patienceMs(caller)) yield caller;
  }

  #fail(call: RunningCall<Auth>, error: unknown): void {
    const fault = publicFault(error, call.requestId);
    if (fault !== error && fault.kind === "internal") call.log.error("internal error", { error: Fault.from(error) });
    call.abort(fault);
  }

  #observe(call: RunningCall<Auth>, ms: number): void {
    const fault = call.end?.fault;
    try {
      this.#options.observe?.(
        call,
        fault === undefined ? { code: "OK", ms } : { code: codeNameOf(codeOf(fault)), ms, fault },
      );
    } catch (error) {
      call.log.error("internal error", { error: Fault.from(error) });
    }
  }
}

async function answer<Auth>(handler: AnyHandler<Auth>, call: RunningCall<Auth>): Promise<void> {
  switch (handler.kind) {
    case "unary":
      return respond(handler.run(await call.fromClient(onlyRequest(call)), call), call);
    case "clientStream":
      return respond(handler.run(call.requests, call), call);
    case "serverStream":
      return pump(handler.run(await call.fromClient(onlyRequest(call)), call), call);
    case "bidi":
      return pump(handler.run(call.requests, call), call);
  }
}

/** The message of a call that takes one; more, or none, breaks the protocol of gRPC. */
async function onlyRequest(call: RunningCall<unknown>): Promise<object> {
  const first = await call.requests.next();
  if (first.done) throw new Fault("unimplemented", "the request has no message", { code: "rpc-request-missing" });
  const second = await call.requests.next();
  if (!second.done)
    throw new Fault("unimplemented", "the request has more than one message", { code: "rpc-request-extra" });
  return first.value;
}

async function respond(response: Promise<object>, call: RunningCall<unknown>): Promise<void> {
  await call.fromClient(call.send(await call.orEnd(response)));
}

/** Asks for the next response once the last has gone; tells the handler to return when the call ends first. */
async function pump(responses: AsyncIterable<object>, call: RunningCall<unknown>): Promise<void> {
  const iterator = responses[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await call.orEnd(iterator.next());
      if (next.done) return;
      await call.orEnd(call.send(next.value));
    }
  } catch (error) {
    iterator.return?.().catch(() => {});
    throw error;
  }
}
