import type { CachedEntry } from "../../../agent/cache/entry.ts";
import type { HeldSvid } from "../../../agent/cache/svid.ts";
import type { TrustBundles, WorkloadUpdate } from "../../../agent/cache/update.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { parseSpiffeId, parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { parseSelector, type Selector, selectorSet } from "../../../src/spiffe/selector.ts";

export const HOME = parseTrustDomain("home.test");

export function selectors(...texts: readonly string[]): readonly Selector[] {
  return selectorSet(texts.map(parseSelector));
}

export interface EntrySketch extends Partial<Omit<CachedEntry, "id" | "selectors" | "spiffeId">> {
  readonly path?: string;
  readonly selectors?: readonly string[];
}

export function entry(id: string, sketch: EntrySketch = {}): CachedEntry {
  const { path = `/${id}`, selectors: texts = ["unix:uid:1000"], ...rest } = sketch;
  return {
    id,
    spiffeId: parseSpiffeId(`spiffe://home.test${path}`),
    selectors: selectors(...texts),
    federatesWith: [],
    admin: false,
    downstream: false,
    storeSvid: false,
    hint: "",
    disableX509SvidPrefetch: false,
    jwtSvidIncludeJti: false,
    revisionNumber: 0,
    createdAt: 1000,
    ...rest,
  };
}

export function entryMap(...entries: readonly CachedEntry[]): ReadonlyMap<string, CachedEntry> {
  return new Map(entries.map((each) => [each.id, each]));
}

export function bundle(name: TrustDomain, ...authorities: readonly string[]): Bundle {
  return {
    trustDomain: name,
    x509Authorities: authorities.map((text) => ({ asn1: Buffer.from(text), tainted: false })),
    jwtAuthorities: [],
    witAuthorities: [],
    refreshHint: 0,
    sequenceNumber: 0n,
  };
}

export function bundles(own: Bundle = bundle(HOME, "root-1"), ...foreign: readonly Bundle[]): TrustBundles {
  return { own, federated: new Map(foreign.map((each) => [each.trustDomain, each])) };
}

/** A stand-in for a signed SVID: the cache never looks into the certificates. */
export function svidFor(
  { spiffeId, revisionNumber, createdAt }: CachedEntry,
  { renewAt, ...times }: { readonly renewAt: Date; readonly expiresAt: Date; readonly authorityKeyId?: string },
): HeldSvid {
  const serial = Buffer.from(`${spiffeId}@${times.expiresAt.toISOString()}`);
  const rotation = { renewAt, soonest: 0, latest: Number.POSITIVE_INFINITY };
  const privateKey = Buffer.from("key");
  return { spiffeId, revisionNumber, createdAt, chain: [serial], privateKey, authorityKeyId: "", rotation, ...times };
}

/** Reads a subscription without waiting for more than is there. */
export class Reader {
  readonly updates: WorkloadUpdate[] = [];
  /** Stays when `news` has taken everything. */
  last: WorkloadUpdate | undefined;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;

  constructor(subscribe: (signal: AbortSignal) => AsyncIterable<WorkloadUpdate>) {
    this.#done = (async () => {
      for await (const update of subscribe(this.#stop.signal)) {
        this.updates.push(update);
        this.last = update;
      }
    })();
  }

  /** What has come since the last call, as ids of identities, once everything that can happen has happened. */
  async news(): Promise<readonly string[]> {
    for (let turn = 0; turn < 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    return this.updates
      .splice(0)
      .map(({ identities, entitled }) => (entitled ? identities.map(({ entry: { id } }) => id).join(",") : "nothing"));
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }
}
