import { Fault } from "../runtime/fault.ts";
import type { Call } from "./caller.ts";
import type { MethodKind, MethodTypes, Service } from "./protos.ts";

/** A handler with the way it streams; made by `unary`, `serverStream`, `clientStream` or `bidi`. */
export interface Handler<K extends MethodKind, Run> {
  readonly kind: K;
  readonly run: Run;
  /** It goes on until somebody ends it, so a server that shuts down does not wait for it. */
  readonly endless: boolean;
}

export type UnaryRun<Q, R, Auth> = (request: Q, call: Call<Auth>) => Promise<R>;
export type ServerStreamRun<Q, R, Auth> = (request: Q, call: Call<Auth>) => AsyncIterable<R>;
export type ClientStreamRun<Q, R, Auth> = (requests: AsyncIterable<Q>, call: Call<Auth>) => Promise<R>;
export type BidiRun<Q, R, Auth> = (requests: AsyncIterable<Q>, call: Call<Auth>) => AsyncIterable<R>;

export function unary<Q, R, Auth>(run: UnaryRun<Q, R, Auth>): Handler<"unary", UnaryRun<Q, R, Auth>> {
  return { kind: "unary", run, endless: false };
}

/** `run` is usually an async generator; it is told to return when the client leaves. */
export function serverStream<Q, R, Auth>(
  run: ServerStreamRun<Q, R, Auth>,
): Handler<"serverStream", ServerStreamRun<Q, R, Auth>> {
  return { kind: "serverStream", run, endless: true };
}

export function clientStream<Q, R, Auth>(
  run: ClientStreamRun<Q, R, Auth>,
): Handler<"clientStream", ClientStreamRun<Q, R, Auth>> {
  return { kind: "clientStream", run, endless: false };
}

/** An exchange that comes to an end by itself, unless it is said to be endless. */
export function bidi<Q, R, Auth>(
  run: BidiRun<Q, R, Auth>,
  { endless = false } = {},
): Handler<"bidi", BidiRun<Q, R, Auth>> {
  return { kind: "bidi", run, endless };
}

type HandlerFor<T, Auth> = T extends MethodTypes
  ? {
      unary: Handler<"unary", UnaryRun<T["request"], T["sendResponse"], Auth>>;
      serverStream: Handler<"serverStream", ServerStreamRun<T["request"], T["sendResponse"], Auth>>;
      clientStream: Handler<"clientStream", ClientStreamRun<T["request"], T["sendResponse"], Auth>>;
      bidi: Handler<"bidi", BidiRun<T["request"], T["sendResponse"], Auth>>;
    }[T["kind"]]
  : never;

/** One handler for each method; leaving one out does not compile, nor does a wrong message or a wrong kind. */
export type Handlers<M extends object, Auth> = { readonly [K in keyof M]: HandlerFor<M[K], Auth> };

export type AnyHandler<Auth> =
  | Handler<"unary", UnaryRun<object, object, Auth>>
  | Handler<"serverStream", ServerStreamRun<object, object, Auth>>
  | Handler<"clientStream", ClientStreamRun<object, object, Auth>>
  | Handler<"bidi", BidiRun<object, object, Auth>>;

export interface ServiceImplementation<Auth> {
  readonly service: Service<object>;
  readonly handlers: ReadonlyMap<string, AnyHandler<Auth>>;
}

/** Binds handlers to a service. Throws when they differ from what /proto says, for callers that escaped the compiler. */
export function service<M extends object, Auth>(
  definition: Service<M>,
  handlers: Handlers<M, Auth>,
): ServiceImplementation<Auth> {
  const given = new Map(Object.entries<AnyHandler<Auth>>(handlers as unknown as Record<string, AnyHandler<Auth>>));
  for (const [name, method] of Object.entries(definition.methods())) {
    const expected = kindOf(method);
    const actual = given.get(name)?.kind;
    if (actual !== expected) throw mismatch(definition.name, name, expected, actual);
  }
  return { service: definition, handlers: given };
}

function kindOf(method: { readonly requestStream: boolean; readonly responseStream: boolean }): MethodKind {
  if (method.requestStream) return method.responseStream ? "bidi" : "clientStream";
  return method.responseStream ? "serverStream" : "unary";
}

function mismatch(service: string, method: string, expected: MethodKind, actual: MethodKind | undefined): Fault {
  return new Fault("internal", `${service}/${method} is ${expected}, its handler is ${actual ?? "missing"}`, {
    code: "rpc-handler",
  });
}
