import type { Certificate } from "../crypto/certificate.ts";
import type { Fault } from "../runtime/fault.ts";
import type { Log } from "../runtime/log.ts";
import type { SpiffeId } from "../spiffe/id.ts";
import type { PeerProcess, UnseenPeer } from "./peer-credentials.ts";

/** Who is at the other end of a connection, fixed when it was accepted. */
export interface Caller {
  readonly transport: "unix" | "tcp";
  /** Unique while the process runs. */
  readonly connectionId: string;
  /** IP address in its one canonical spelling; TCP only. Behind a trusted load balancer the client's own. */
  readonly remoteAddress?: string;
  readonly remotePort?: number;
  /** The connected process; Unix sockets only. Owned by the connection: it ends with it. */
  readonly process?: PeerProcess;
  /** Instead of a process, where it lives in another pid namespace and the socket lets such callers in. */
  readonly unseen?: UnseenPeer;
  /** Absent when the client showed no certificate. Verified during the handshake. */
  readonly peer?: PeerIdentity;
}

export interface PeerIdentity {
  readonly id: SpiffeId;
  /** Leaf first. */
  readonly chain: readonly Certificate[];
}

/** One call, as a handler sees it. `auth` is what `admit` returned. */
export interface Call<Auth = unknown> {
  /** `/package.Service/Method`. */
  readonly method: string;
  readonly caller: Caller;
  readonly auth: Auth;
  /** Aborted when the client leaves, cancels, runs past its deadline, or the call is ended by `abort`. */
  readonly signal: AbortSignal;
  readonly metadata: CallMetadata;
  /** UUID. */
  readonly requestId: string;
  /** Carries the service, the method and the request id. */
  readonly log: Log;
  /** Ends the call with this status, whatever its handler is doing. */
  abort(fault: Fault): void;
}

export interface CallMetadata {
  /** Every value under the key, in order; keys are lower case. */
  get(key: string): readonly string[];
}
