import type { KeyObject } from "node:crypto";
import type { Certificate } from "../../src/crypto/certificate.ts";
import type { Feed } from "../../src/runtime/feed.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { Rotation } from "./rotation.ts";

/** Who the agent is to its server. Immutable; a rotation makes a new one. */
export interface AgentIdentity {
  readonly id: SpiffeId;
  /** DER, leaf first. */
  readonly chain: readonly Uint8Array[];
  readonly leaf: Certificate;
  /** Key id of the authority that the chain leads to, or empty. */
  readonly authorityKeyId: string;
  readonly privateKey: KeyObject;
  /** Where the key lives in the key manager. */
  readonly keyId: string;
  readonly reattestable: boolean;
  readonly rotation: Rotation;
}

/** What connections are made with. Set by `NodeIdentity`, watched by `Upstream`. */
export interface Credentials {
  readonly identity: Feed<AgentIdentity | undefined>;
  readonly bundle: Feed<Bundle>;
}
