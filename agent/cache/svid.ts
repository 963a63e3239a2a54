import type { Clock } from "../../src/runtime/clock.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import { msUntilDue, type Rotation } from "../node/rotation.ts";
import { byAge, type CachedEntry } from "./entry.ts";

/** A signed SVID and the key made for it on this node. Immutable. */
export interface HeldSvid {
  readonly spiffeId: SpiffeId;
  /** Of the entry it was signed for. */
  readonly revisionNumber: number;
  readonly createdAt: number;
  /** DER, leaf first. */
  readonly chain: readonly Uint8Array[];
  /** PKCS#8 DER. */
  readonly privateKey: Uint8Array;
  readonly expiresAt: Date;
  readonly rotation: Rotation;
  /** Key id of the authority that the chain leads to, or empty. */
  readonly authorityKeyId: string;
}

export interface SigningRequest {
  readonly entry: CachedEntry;
  /** A caller is blocked until this is signed. */
  readonly waitedFor: boolean;
  /** Of the SVID to be replaced. */
  readonly expiresAt?: Date;
  /** The SVID to be replaced is of another version of the entry. */
  readonly isOutdated?: boolean;
}

/** True when the SVID fits this version of the entry and is not due for renewal. */
export function isCurrent(svid: HeldSvid, entry: CachedEntry, clock: Clock): boolean {
  const { revisionNumber, createdAt, rotation } = svid;
  return revisionNumber === entry.revisionNumber && createdAt === entry.createdAt && msUntilDue(rotation, clock) > 0;
}

/** False for none, and for one that has expired: that one is not handed out any more. */
export function isUsable(svid: HeldSvid | undefined, now: Date): svid is HeldSvid {
  return svid !== undefined && svid.expiresAt > now;
}

/** Blocked callers first, then what expires next, then what is fetched ahead of need. */
export function urgency(a: SigningRequest, b: SigningRequest): number {
  const rank = ({ waitedFor, expiresAt }: SigningRequest): number => (waitedFor ? 0 : expiresAt !== undefined ? 1 : 2);
  return rank(a) - rank(b) || (a.expiresAt?.getTime() ?? 0) - (b.expiresAt?.getTime() ?? 0) || byAge(a.entry, b.entry);
}
