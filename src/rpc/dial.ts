import { isIPv6 } from "node:net";
import { resolve } from "node:path";
import { type ChannelOptions, Client, credentials } from "@grpc/grpc-js";
import type { Fault } from "../runtime/fault.ts";
import { type ClientOf, type Connection, typedClient } from "./client.ts";
import type { Service } from "./protos.ts";
import type { TlsIdentity } from "./tls.ts";
import { TlsCredentials, type VerifyServer } from "./tls-credentials.ts";

/** One connection, made at the first call and again whenever it is lost. Its owner disposes of it. */
export interface Channel extends Disposable {
  /** Methods take `(request, options)` and give a promise, or an async iterable when the response is a stream. */
  client<M extends object>(service: Service<M>): ClientOf<M>;
}

export interface DialTlsOptions extends TlsEnds {
  /** Host name or IP address. */
  readonly address: string;
  readonly port: number;
}

export interface DialUnixTlsOptions extends TlsEnds {
  readonly path: string;
}

interface TlsEnds {
  /** The client certificate; none is shown without it. */
  readonly identity?: TlsIdentity | undefined;
  /** Sees the chain as sent, leaf first, and throws to refuse it. The one check of the server there is. */
  readonly verifyServer: VerifyServer;
  readonly backoff?: ReconnectBackoff;
}

/** Waits between attempts to connect. Default: 1 s, growing to 30 s. */
export interface ReconnectBackoff {
  readonly firstMs: number;
  readonly maxMs: number;
}

export function dialUnix(path: string, options: { readonly backoff?: ReconnectBackoff } = {}): Channel {
  const absolute = resolve(path);
  const client = new Client(
    `unix://${absolute}`,
    credentials.createInsecure(),
    channelOptions(options.backoff ?? DEFAULT_BACKOFF),
  );
  return channelOver({ client, target: `unix://${absolute}`, lastFault: () => undefined });
}

/** Without TLS, to an IP address: for an endpoint that knows its callers otherwise. */
export function dialTcp({ host, port }: { readonly host: string; readonly port: number }): Channel {
  const target = `${isIPv6(host) ? `ipv6:[${host}]` : `ipv4:${host}`}:${port}`;
  const client = new Client(target, credentials.createInsecure(), channelOptions(DEFAULT_BACKOFF));
  return channelOver({ client, target, lastFault: () => undefined });
}

export function dialTls({ address, port, ...options }: DialTlsOptions): Channel {
  const host = isIPv6(address) ? `[${address}]` : address;
  return channelOverTls(options, {
    ...{ uri: `dns:${host}:${port}`, target: `${host}:${port}`, address },
    channel: { "grpc.service_config": ROUND_ROBIN },
  });
}

/** Mutual TLS inside a Unix socket: for an endpoint that wants to know more of its callers than the kernel does. */
export function dialUnixTls({ path, ...options }: DialUnixTlsOptions): Channel {
  const target = `unix://${resolve(path)}`;
  return channelOverTls(options, { uri: target, target, address: "localhost", channel: {} });
}

interface Reached {
  readonly uri: string;
  /** For messages. */
  readonly target: string;
  /** For server name indication. */
  readonly address: string;
  readonly channel: ChannelOptions;
}

function channelOverTls(options: TlsEnds, { uri, target, address, channel }: Reached): Channel {
  const { identity, verifyServer, backoff = DEFAULT_BACKOFF } = options;
  let last: Fault | undefined;
  const failed = (fault: Fault): void => {
    last = fault;
  };
  const trust = new TlsCredentials({ address, identity: () => identity, verifyServer, failed });
  const client = new Client(uri, trust, { ...channelOptions(backoff), ...channel });
  return channelOver({ client, target, lastFault: () => last });
}

function channelOver(connection: Connection): Channel {
  return {
    client: (service) => typedClient(connection, service),
    [Symbol.dispose]: () => connection.client.close(),
  };
}

const DEFAULT_BACKOFF: ReconnectBackoff = { firstMs: 1_000, maxMs: 30_000 };
const ROUND_ROBIN = JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] });

function channelOptions({ firstMs, maxMs }: ReconnectBackoff): ChannelOptions {
  return {
    "grpc.initial_reconnect_backoff_ms": firstMs,
    "grpc.max_reconnect_backoff_ms": maxMs,
    "grpc.service_config_disable_resolution": 1,
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_channelz": 0,
    "grpc.enable_http_proxy": 0,
  };
}
