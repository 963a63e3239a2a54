import type { SpiffeId, TrustDomain } from "./id.ts";
import type { Selector } from "./selector.ts";

/** A registration entry: who gets which identity. Immutable; an update yields a new value with a higher revision. */
export interface Entry {
  /** UUID v4, or chosen by the caller: at most 255 of `A-Z a-z 0-9 . _ -`. */
  readonly id: string;
  readonly spiffeId: SpiffeId;
  readonly parentId: SpiffeId;
  /** Sorted, each once, never empty. */
  readonly selectors: readonly Selector[];
  /** Seconds; 0 means the server's default. */
  readonly x509SvidTtl: number;
  /** Seconds; 0 means the server's default. */
  readonly jwtSvidTtl: number;
  readonly federatesWith: readonly TrustDomain[];
  readonly admin: boolean;
  readonly downstream: boolean;
  readonly storeSvid: boolean;
  /** Unix seconds; 0 means never. */
  readonly expiresAt: number;
  readonly dnsNames: readonly string[];
  /** At most 1024 bytes. */
  readonly hint: string;
  readonly disableX509SvidPrefetch: boolean;
  readonly jwtSvidIncludeJti: boolean;
  /** Grows by one with each update, from 0. */
  readonly revisionNumber: number;
  /** Unix seconds. */
  readonly createdAt: number;
}

/** What a caller supplies; the store adds revision and time of creation, and the id when it is empty. */
export type EntryDraft = Omit<Entry, "revisionNumber" | "createdAt">;
