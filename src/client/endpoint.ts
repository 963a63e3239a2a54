import { type Channel, dialTcp, dialUnix } from "../rpc/dial.ts";
import { Fault } from "../runtime/fault.ts";
import { type EndpointAddress, endpointAddress } from "./address.ts";
import type { OpenStream } from "./watch.ts";

export interface EndpointOptions {
  /** A URI such as `unix:///run/agent.sock`, or an address; default: `SPIFFE_ENDPOINT_SOCKET`. */
  readonly socket?: string | EndpointAddress | undefined;
  /** Sent with every call, besides the security header. */
  readonly metadata?: Readonly<Record<string, string>>;
}

export interface FetchOptions extends EndpointOptions {
  readonly signal?: AbortSignal;
  /** For the whole call. Default: none. */
  readonly deadlineMs?: number;
}

export interface CallOptions {
  readonly signal: AbortSignal;
  readonly metadata: Readonly<Record<string, string>>;
  readonly deadlineMs?: number;
}

/** Every request has it: it shows that the caller means to speak to this API. SPIFFE Workload Endpoint, section 3. */
const SECURITY_HEADER = { "workload.spiffe.io": "true" } as const;

/** Each stream has a channel of its own, so that no delay of an earlier connection outlives its failure. */
export function overChannel<M>(
  options: FetchOptions,
  call: (channel: Channel, options: CallOptions) => AsyncIterable<M>,
): OpenStream<M> {
  const address = typeof options.socket === "object" ? options.socket : endpointAddress(options.socket);
  const { deadlineMs } = options;
  return async function* (signal) {
    using channel = dial(address);
    const metadata = { ...options.metadata, ...SECURITY_HEADER };
    yield* call(channel, { signal, metadata, ...(deadlineMs === undefined ? {} : { deadlineMs }) });
  };
}

/** The first message of one attempt. Throws a `Fault` with what the endpoint answered. */
export async function firstOf<M>(open: OpenStream<M>, options: FetchOptions): Promise<M> {
  const stop = new AbortController();
  const signal = options.signal === undefined ? stop.signal : AbortSignal.any([options.signal, stop.signal]);
  try {
    for await (const message of open(signal)) return message;
  } finally {
    stop.abort();
  }
  throw new Fault("unavailable", "the endpoint ended the stream", { code: "stream-ended" });
}

function dial(address: EndpointAddress): Channel {
  return address.transport === "unix" ? dialUnix(address.path) : dialTcp(address);
}
