import type { Socket } from "node:net";
import { networksOf } from "../runtime/cidr.ts";
import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import { canonicalAddress, readProxyHeader, type Source } from "./proxy-protocol.ts";
import type { Refusals } from "./refusals.ts";

export interface TcpDoorOptions {
  /** Networks of load balancers, whose PROXY headers are believed. From anybody else a header is no TLS, and refused. */
  readonly trustedNetworks: readonly string[];
  /** Most open connections in all. */
  readonly most: number;
  /** Most open connections of one address. */
  readonly mostPerAddress: number;
  readonly refusals: Refusals;
  readonly clock: Clock;
  /** Gets each connection that may come in, before a byte of TLS is read. */
  readonly enter: (socket: Socket, source: Source) => void;
}

const HEADER_PATIENCE_MS = 10_000;

/** Stands before TLS: counts connections, and learns from load balancers whose they are. */
export class TcpDoor {
  readonly #options: TcpDoorOptions;
  readonly #isTrusted: (address: string) => boolean;
  readonly #perAddress = new Map<string, number>();
  /** Those whose header has not come yet. */
  readonly #waiting = new Set<Socket>();
  #open = 0;

  constructor(options: TcpDoorOptions) {
    this.#options = options;
    this.#isTrusted = networksOf(options.trustedNetworks);
  }

  receive(socket: Socket): void {
    socket.on("error", () => socket.destroy());
    const peer = sourceOf(socket);
    try {
      if (peer === undefined) throw new Fault("cancelled", "the client has left");
      this.#countAll(socket);
      if (this.#isTrusted(peer.address)) this.#awaitHeader(socket, peer);
      else this.#enter(socket, peer);
    } catch (error) {
      this.#refuse(socket, error, peer);
    }
  }

  /** Ends the connections that have not come in yet. */
  close(): void {
    for (const socket of this.#waiting) socket.destroy();
  }

  #enter(socket: Socket, source: Source): void {
    this.#countAddress(socket, source.address);
    this.#options.enter(socket, source);
  }

  #refuse(socket: Socket, error: unknown, peer: Source | undefined): void {
    this.#options.refusals.add(error, peer?.address);
    socket.destroy();
  }

  #countAll(socket: Socket): void {
    if (this.#open >= this.#options.most) throw tooMany("the server has too many connections");
    this.#open += 1;
    socket.once("close", () => {
      this.#open -= 1;
    });
  }

  #countAddress(socket: Socket, address: string): void {
    const open = this.#perAddress.get(address) ?? 0;
    if (open >= this.#options.mostPerAddress) throw tooMany(`${address} has too many connections`);
    this.#perAddress.set(address, open + 1);
    socket.once("close", () => {
      const left = (this.#perAddress.get(address) ?? 1) - 1;
      if (left > 0) this.#perAddress.set(address, left);
      else this.#perAddress.delete(address);
    });
  }

  /** A balancer may also connect without a header, for itself. What follows a header stays in the socket for TLS. */
  #awaitHeader(socket: Socket, peer: Source): void {
    const done = new AbortController();
    let seen: Buffer = Buffer.alloc(0);
    const read = (): void => {
      const chunk: Buffer | null = socket.read();
      if (chunk === null || done.signal.aborted) return;
      seen = Buffer.concat([seen, chunk]);
      try {
        const header = readProxyHeader(seen);
        if (header === "unfinished") return;
        leave();
        const rest = header === "absent" ? seen : seen.subarray(header.length);
        if (rest.length > 0) socket.unshift(rest);
        this.#enter(socket, header === "absent" ? peer : (header.source ?? peer));
      } catch (error) {
        leave();
        this.#refuse(socket, error, peer);
      }
    };
    const leave = (): void => {
      done.abort();
      this.#waiting.delete(socket);
      socket.off("readable", read);
    };
    const late = (): void => {
      if (!done.signal.aborted) this.#refuse(socket, new Fault("timeout", "the PROXY header did not come"), peer);
    };
    this.#waiting.add(socket);
    socket.once("close", leave).once("end", () => done.signal.aborted || socket.destroy());
    socket.on("readable", read);
    this.#options.clock.sleep(HEADER_PATIENCE_MS, done.signal).then(late, () => {});
  }
}

function sourceOf({ remoteAddress, remotePort }: Socket): Source | undefined {
  if (remoteAddress === undefined || remotePort === undefined) return undefined;
  return { address: canonicalAddress(remoteAddress), port: remotePort };
}

function tooMany(message: string): Fault {
  return new Fault("exhausted", message, { code: "too-many-connections" });
}
