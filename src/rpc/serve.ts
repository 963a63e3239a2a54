import { AsyncLocalStorage } from "node:async_hooks";
import { createServer, type Server as NetServer, type Socket } from "node:net";
import { type ConnectionInjector, Server, ServerCredentials } from "@grpc/grpc-js";
import { Fault } from "../runtime/fault.ts";
import type { Feed } from "../runtime/feed.ts";
import type { Caller } from "./caller.ts";
import { interceptors } from "./interceptors.ts";
import { type PeerProcess, pinPeer, unseenPeer } from "./peer-credentials.ts";
import { PeerWatch } from "./peer-watch.ts";
import { Pipeline, type PipelineOptions } from "./pipeline.ts";
import { portHolder } from "./port-holder.ts";
import { Refusals } from "./refusals.ts";
import type { WireCall } from "./running-call.ts";
import type { ServiceImplementation } from "./service.ts";
import { type LocalLimits, type Shares, sharesOf } from "./shares.ts";
import { statusOf } from "./status.ts";
import { TcpDoor } from "./tcp-door.ts";
import type { TlsIdentity } from "./tls.ts";
import { TlsGate, type VerifyPeer } from "./tls-gate.ts";
import { UnixConnection } from "./unix-authority.ts";
import { listenAt, type SocketPlace } from "./unix-socket.ts";
import { UnixTls } from "./unix-tls.ts";

export interface RpcServerOptions<Auth> extends PipelineOptions<Auth>, LocalLimits {
  readonly services: readonly ServiceImplementation<Auth>[];
  /** TCP connections get a GOAWAY after this long, give or take a tenth. Default: 3 minutes. */
  readonly maxConnectionAgeMs?: number;
  /** Default: 2000 on a Unix socket, 100 on TCP. */
  readonly maxStreamsPerConnection?: number;
  /** Of a received message. Default: 4 MiB. */
  readonly maxMessageBytes?: number;
}

export interface TlsListener {
  readonly address: string;
  /** 0 lets the kernel choose. */
  readonly port: number;
  /** The certificate shown; a new value serves the connections after it. */
  readonly identity: Feed<TlsIdentity>;
  /** Called in each handshake in which the client shows a certificate. */
  readonly verifyPeer: VerifyPeer;
  /** Refuses clients that show no certificate. Default: false. */
  readonly requirePeer?: boolean;
  /** Networks of load balancers whose PROXY headers are believed. Default: none. */
  readonly trustedProxies?: readonly string[];
  /** Most open connections, in all and of one address. */
  readonly maxConnections?: number;
  readonly maxConnectionsPerAddress?: number;
}

interface Connection {
  readonly caller: Caller;
  readonly socket: Socket;
  readonly closed: Promise<void>;
}

type LocalPeer = Pick<Caller, "process" | "unseen">;

/** More than any fleet of agents needs of one server, and few enough for one process. */
const MAX_CONNECTIONS = 20_000;
/** A whole cluster may stand behind one address. */
const MAX_CONNECTIONS_PER_ADDRESS = 2_000;
const CONNECTION_AGE_MS = 3 * 60_000;
const MAX_MESSAGE_BYTES = 4 * 1024 * 1024;
/**
 * Of clients without a certificate: what an agent needs that attests, and no more, since anybody can have it many times
 * over. An attestation may wait for its turn and then take a minute.
 */
const STRANGER = {
  "grpc.max_concurrent_streams": 20,
  "grpc.max_connection_age_ms": 60_000,
  "grpc.max_connection_age_grace_ms": 120_000,
  "grpc.max_receive_message_length": 1024 * 1024,
};
/** How long a call waits for its request to come, and for its answer to be taken. */
const PATIENCE_MS = { stranger: 10_000, other: 60_000 };
const STALL_LOOK_MS = 5_000;
const DRAIN_MS = 10_000;
const BACKLOG = 4096;
/** What gRPC says of a socket without an address. */
const NO_PEER = "unknown";

/**
 * Serves gRPC on sockets of its own. Every connection is identified when it is accepted: by the process behind it, or
 * by its verified certificate; every call goes through `admit`. Disposal drains for up to 10 s.
 */
export class RpcServer<Auth> implements AsyncDisposable {
  readonly #options: RpcServerOptions<Auth>;
  readonly #pipeline: Pipeline<Auth>;
  readonly #grpc: Server[] = [];
  readonly #injectors: ConnectionInjector[] = [];
  readonly #listeners: NetServer[] = [];
  readonly #gates: { close(): void }[] = [];
  readonly #closers: (() => void)[] = [];
  readonly #connections = new Map<string, Connection>();
  /** Our name for the connection in whose HTTP/2 session the code runs, where a socket's address cannot say it. */
  readonly #session = new AsyncLocalStorage<string>();
  readonly #shares: { readonly connections: Shares; readonly calls: Shares };
  readonly #closing = new AbortController();
  readonly #refusals: Refusals;
  readonly #peers: PeerWatch;
  #looking = false;
  #sequence = 0;

  constructor(options: RpcServerOptions<Auth>) {
    this.#options = options;
    this.#pipeline = new Pipeline(options);
    this.#refusals = new Refusals(options.log, options.clock);
    this.#peers = new PeerWatch(options.clock, this.#closing.signal);
    this.#shares = sharesOf(options);
  }

  /**
   * Replaces a socket on which nobody listens. Throws `precondition`, naming the process that holds the path. With
   * `unseen`, callers of other pid namespaces are let in: whoever may open the socket may call.
   */
  async listenUnix(place: SocketPlace, { unseen = false } = {}): Promise<void> {
    const injector = this.#open({ "grpc.max_concurrent_streams": this.#options.maxStreamsPerConnection ?? 2000 });
    const listener = this.#listen((socket) =>
      this.#acceptUnix(socket, (caller) => this.#injectUnix(socket, injector, caller), unseen),
    );
    this.#closers.push(await listenAt(listener, place, this.#options));
  }

  /** As `listenUnix`, with mutual TLS inside: callers are known by their process and by their certificate. */
  async listenUnixTls(place: SocketPlace, tls: Pick<TlsListener, "identity" | "verifyPeer">): Promise<void> {
    const injector = this.#open({ "grpc.max_concurrent_streams": this.#options.maxStreamsPerConnection ?? 2000 });
    const { log, clock } = this.#options;
    const gate = new UnixTls({ ...tls, log, clock, refusals: this.#refusals });
    const listener = this.#listen((socket) =>
      this.#acceptUnix(socket, (caller) =>
        gate.receive(socket, (secure, peer) => this.#injectUnix(secure, injector, { ...caller, peer })),
      ),
    );
    this.#closers.push(await listenAt(listener, place, this.#options));
    void gate.follow(this.#closing.signal);
  }

  /** Throws `precondition`, naming the process that holds the port. */
  async listenTls({
    address,
    port,
    identity,
    verifyPeer,
    requirePeer = false,
    trustedProxies = [],
    maxConnections = MAX_CONNECTIONS,
    maxConnectionsPerAddress = MAX_CONNECTIONS_PER_ADDRESS,
  }: TlsListener): Promise<{ readonly address: string; readonly port: number }> {
    const settings = {
      "grpc.max_concurrent_streams": this.#options.maxStreamsPerConnection ?? 100,
      "grpc.max_connection_age_ms": this.#options.maxConnectionAgeMs ?? CONNECTION_AGE_MS,
    };
    const [known, strangers] = [this.#open(settings), this.#open(atMost(STRANGER, settings))];
    const gate = new TlsGate({
      identity,
      verifyPeer,
      requirePeer,
      log: this.#options.log,
      refusals: this.#refusals,
      accept: (socket, peer, { address: remoteAddress, port: remotePort }) =>
        this.#inject(socket, peer === undefined ? strangers : known, {
          ...{ transport: "tcp", remoteAddress, remotePort },
          ...(peer && { peer }),
        }),
    });
    const door = new TcpDoor({
      trustedNetworks: trustedProxies,
      most: maxConnections,
      mostPerAddress: maxConnectionsPerAddress,
      refusals: this.#refusals,
      clock: this.#options.clock,
      enter: (socket, source) => gate.receive(socket, source),
    });
    this.#gates.push(door, gate);
    const bound = await listenTcp(
      this.#listen((socket) => door.receive(socket)),
      address,
      port,
    );
    void gate.follow(this.#closing.signal);
    return bound;
  }

  /** Stops accepting, tells clients to go elsewhere, lets calls finish, then closes what is left. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort();
    for (const close of this.#closers) close();
    const closed = this.#listeners.map((listener) => new Promise((done) => listener.close(done)));
    for (const gate of this.#gates) gate.close();
    this.#pipeline.abort(new Fault("unavailable", "the server is shutting down"), "endless");
    await this.#drain();
    this.#pipeline.abort(new Fault("unavailable", "the server is shutting down"), "all");
    for (const grpc of this.#grpc) grpc.forceShutdown();
    for (const { socket } of this.#connections.values()) socket.destroy();
    await Promise.all(closed);
  }

  /** A GOAWAY ends a connection once its calls have. */
  async #drain(): Promise<void> {
    const patience = new AbortController();
    for (const injector of this.#injectors) injector.drain(DRAIN_MS);
    const drained = Promise.all([...this.#connections.values()].map(({ closed }) => closed));
    const timeout = this.#options.clock.sleep(DRAIN_MS, patience.signal).catch(() => {});
    await Promise.race([drained, timeout]);
    patience.abort();
  }

  #open(settings: Readonly<Record<string, number>>): ConnectionInjector {
    const grpc = new Server({
      "grpc.max_receive_message_length": this.#options.maxMessageBytes ?? MAX_MESSAGE_BYTES,
      ...settings,
      "grpc.enable_channelz": 0,
      interceptors: interceptors(this.#options.clock),
    });
    for (const implementation of this.#options.services) this.#register(grpc, implementation);
    const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
    this.#grpc.push(grpc);
    this.#injectors.push(injector);
    return injector;
  }

  /** Every method is a two-way stream to gRPC, so that a call is admitted before its message is read. */
  #register(grpc: Server, { service, handlers }: ServiceImplementation<Auth>): void {
    for (const [method, { path, requestDeserialize, responseSerialize }] of Object.entries(service.methods())) {
      const handler = handlers.get(method);
      if (handler === undefined) continue;
      const name = { path, service: service.name, method };
      const run = (wire: WireCall): void => {
        const caller = this.#connections.get(this.#nameOf(wire))?.caller;
        if (caller === undefined) wire.emit("error", statusOf(new Fault("unauthenticated", "the connection is gone")));
        else this.#run({ name, wire, caller, handler });
      };
      grpc.register(path, run, encodedOnce(responseSerialize), requestDeserialize, "bidi");
    }
  }

  #run(call: Parameters<Pipeline<Auth>["run"]>[0]): void {
    const local = call.caller.process ?? call.caller.unseen;
    try {
      const giveBack = local === undefined ? undefined : this.#shares.calls.take(local);
      void this.#pipeline.run(call).finally(giveBack);
    } catch (error) {
      this.#refusals.add(error);
      call.wire.emit("error", statusOf(Fault.from(error)));
    }
  }

  /** A socket that has its name says it; only where gRPC knows none does the session. */
  #nameOf(wire: WireCall): string {
    const peer = wire.getPeer();
    return peer === NO_PEER ? (this.#session.getStore() ?? NO_PEER) : peer;
  }

  #listen(accept: (socket: Socket) => void): NetServer {
    const listener = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 }, accept);
    listener.once("listening", () => {
      listener.on("error", (error) => this.#refusals.add(error));
    });
    this.#listeners.push(listener);
    return listener;
  }

  #acceptUnix(socket: Socket, accept: (caller: LocalPeer) => void, unseenToo = false): void {
    socket.on("error", () => socket.destroy());
    try {
      const unseen = unseenToo ? unseenPeer(socket) : undefined;
      const caller = unseen === undefined ? { process: this.#pin(socket) } : { unseen };
      socket.once("close", this.#shares.connections.take(caller.process ?? caller.unseen));
      accept(caller);
    } catch (error) {
      this.#refusals.add(error);
      socket.destroy();
    }
  }

  #pin(socket: Socket): PeerProcess {
    const process = pinPeer(socket);
    socket.once("close", () => this.#release(process));
    this.#peers.add(process, () => socket.destroy());
    return process;
  }

  #release(process: PeerProcess & Disposable): void {
    this.#peers.forget(process);
    process[Symbol.dispose]();
  }

  /** gRPC reports a socket's remote address as the peer of a call, so the address becomes our name for the connection. */
  #inject(socket: Socket, injector: ConnectionInjector, caller: Omit<Caller, "connectionId">): void {
    const connectionId = this.#remember(socket, caller);
    if (connectionId === undefined) return;
    Object.defineProperty(socket, "remoteAddress", { value: connectionId });
    Object.defineProperty(socket, "remotePort", { value: undefined });
    injector.injectConnection(socket);
  }

  /** Node wraps a stream that is no socket, and drops its address; so the session carries the name from its start. */
  #injectUnix(socket: Socket, injector: ConnectionInjector, caller: LocalPeer & Pick<Caller, "peer">): void {
    const connectionId = this.#remember(socket, { transport: "unix", ...caller });
    if (connectionId === undefined) return;
    this.#session.run(connectionId, () => injector.injectConnection(new UnixConnection(socket)));
  }

  /** Undefined, and the socket gone, where it comes too late. */
  #remember(socket: Socket, caller: Omit<Caller, "connectionId">): string | undefined {
    if (socket.destroyed || this.#closing.signal.aborted) {
      socket.destroy();
      return undefined;
    }
    const connectionId = `connection-${++this.#sequence}`;
    const closed = new Promise<void>((done) => {
      socket.once("close", () => {
        this.#connections.delete(connectionId);
        done();
      });
    });
    this.#connections.set(connectionId, { caller: Object.freeze({ ...caller, connectionId }), socket, closed });
    if (!this.#looking) void this.#lookForStalls();
    return connectionId;
  }

  /** A client that keeps a call waiting for too long loses its connection, and all that waits on it (T-X9). */
  async #lookForStalls(): Promise<void> {
    this.#looking = true;
    try {
      while (this.#connections.size > 0) {
        await this.#options.clock.sleep(STALL_LOOK_MS, this.#closing.signal);
        for (const { connectionId, remoteAddress } of [...this.#pipeline.stalled(patienceMs)]) {
          this.#refusals.add(new Fault("timeout", "the client does not go on with its call"), remoteAddress);
          this.#connections.get(connectionId)?.socket.destroy();
        }
      }
    } catch {
      // Only the signal ends the wait.
    } finally {
      this.#looking = false;
    }
  }
}

function patienceMs({ transport, peer }: Caller): number {
  return transport === "tcp" && peer === undefined ? PATIENCE_MS.stranger : PATIENCE_MS.other;
}

/** The smaller of two numbers under one name. */
function atMost(limits: Readonly<Record<string, number>>, settings: Readonly<Record<string, number>>) {
  return Object.fromEntries(
    Object.entries(limits).map(([name, limit]) => [name, Math.min(limit, settings[name] ?? limit)]),
  );
}

/** A message that goes to many streams is encoded for the first of them. */
function encodedOnce(encode: (message: object) => Buffer): (message: object) => Buffer {
  const encoded = new WeakMap<object, Buffer>();
  return (message) => {
    const bytes = encoded.get(message) ?? encode(message);
    encoded.set(message, bytes);
    return bytes;
  };
}

function listenTcp(
  listener: NetServer,
  address: string,
  port: number,
): Promise<{ readonly address: string; readonly port: number }> {
  return new Promise((done, fail) => {
    const refuse = (error: NodeJS.ErrnoException): void => fail(listenFault(error, address, port));
    listener.once("error", refuse);
    listener.listen({ host: address, port, backlog: BACKLOG }, () => {
      listener.off("error", refuse);
      const bound = listener.address();
      if (bound !== null && typeof bound === "object") done({ address: bound.address, port: bound.port });
    });
  });
}

function listenFault(error: NodeJS.ErrnoException, address: string, port: number): Fault {
  const where = `could not listen on ${address}:${port}`;
  if (error.code !== "EADDRINUSE")
    return new Fault("precondition", `${where}: ${error.message}`, { code: "listen-failed", cause: error });
  const pid = portHolder(port);
  return new Fault("precondition", `${where}: the port is in use${pid === undefined ? "" : ` by process ${pid}`}`, {
    code: "port-in-use",
    hint: "stop that process first, or choose another port",
    cause: error,
  });
}
