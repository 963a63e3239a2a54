import type { Fault } from "../../src/runtime/fault.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { Selector } from "../../src/spiffe/selector.ts";

/** What a node proved. `selectors` say what the attestor saw; the ID is built from proven facts only. */
export interface NodeClaim {
  readonly id: SpiffeId;
  readonly selectors: readonly Selector[];
  /** False when the same evidence cannot be shown twice: the agent then renews instead. */
  readonly canReattest: boolean;
  /** The node is who it says, and in a state in which it gets nothing: what it has is withdrawn. */
  readonly refused?: Fault;
  /** The evidence makes a node once: trust on first use. */
  readonly once?: boolean;
}

export interface AttestationContext {
  readonly signal: AbortSignal;
  /** IP of the peer, for attestors that care. */
  readonly remoteAddress?: string | undefined;
  /** SHA-256 of the key that is to have the SVID, hex; the peer has shown that it holds it. */
  readonly keyHash: string;
}

/** Sends bytes to the agent and resolves with its answer. */
export type Challenge = (bytes: Uint8Array) => Promise<Uint8Array>;

/** The server's half of one way to attest a node. */
export interface NodeAttestor {
  /** Name in configuration, on the wire and in agent IDs. */
  readonly type: string;
  /** Its agent IDs need not begin with its type: a path template makes them. They never begin with another's. */
  readonly ownPath?: boolean;
  /** Throws `invalid` or `denied` when the evidence does not hold. */
  attest(payload: Uint8Array, challenge: Challenge, context: AttestationContext): Promise<NodeClaim>;
}
