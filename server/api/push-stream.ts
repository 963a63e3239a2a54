import { bundleToProto, entryToProto } from "../../src/rpc/convert.ts";
import type { EntryMask__Output } from "../../src/rpc/gen/spire/api/types/EntryMask.ts";
import type { Entries as EntriesMessage } from "../../src/rpc/gen/steeple/api/server/push/v1/Entries.ts";
import type { Held__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/Held.ts";
import type { Revisions__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/Revisions.ts";
import type { WatchAuthorizedEntriesRequest__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import type { WatchAuthorizedEntriesResponse } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesResponse.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isAbort } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import { EntryDigest, type EntryVersion, sameVersion } from "../../src/spiffe/entry-digest.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import { entryBytes, MAX_ANSWER_BYTES, pieces } from "./pages.ts";

export interface PushStreamParts {
  readonly agent: SpiffeId;
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "watchAuthorized" | "bundles" | "node">;
  readonly clock: Clock;
  /** Aborted when the server is about to end. */
  readonly closing: AbortSignal;
  /** Over how long the agents of a server that ends come back to others. */
  readonly drainSpreadMs: () => number;
  /** Told whenever `holds` may answer otherwise than before. */
  readonly progressed: () => void;
  /** Told of revisions that are kept, and by a negative number that they are not any more. Throws when there are too many. */
  readonly claim: (count: number) => void;
}

type Event = Omit<WatchAuthorizedEntriesResponse, "number">;

const PAGE = 500;
const REMOVED_PAGE = 10_000;
const MAX_ID_CHARACTERS = 255;

/**
 * One agent's stream. `#sent` is what the agent holds once it has applied everything that was sent: it begins as what
 * the agent says it holds, and every change is sent as the difference from it.
 */
export class PushStream {
  readonly agent: SpiffeId;
  readonly #parts: PushStreamParts;
  readonly #wake = new Feed(0);
  /** The one that waits to be answered. */
  readonly #request = new Feed<WatchAuthorizedEntriesRequest__Output | undefined>(undefined);
  #mask: EntryMask__Output | null | undefined;
  #current: ReadonlyMap<string, Entry> | undefined;
  #compared: ReadonlyMap<string, Entry> | undefined;
  /** Undefined until the agent and the server agree on it. */
  #sent: ReadonlyMap<string, EntryVersion> | undefined;
  #received: Map<string, EntryVersion> | undefined;
  #claimed = 0;
  #digest = new EntryDigest();
  /** False while the agent waits to hear that it and the server agree again. */
  #confirmed = true;
  readonly #bundles = new Map<TrustDomain, Bundle>();
  #quarantined = false;
  #ended = false;
  #number = 0;
  #entriesNumber = 0;
  #applied = 0;

  constructor(parts: PushStreamParts) {
    this.#parts = parts;
    this.agent = parts.agent;
  }

  /** True when the agent has confirmed this version of the entry, or that it does not hold the entry. */
  holds(id: string, version: EntryVersion | undefined): boolean {
    if (this.#sent === undefined || this.#applied < this.#entriesNumber) return false;
    return sameVersion(this.#sent.get(id), version);
  }

  async *run(
    requests: AsyncIterable<WatchAuthorizedEntriesRequest__Output>,
    signal: AbortSignal,
  ): AsyncGenerator<WatchAuthorizedEntriesResponse, void, undefined> {
    const stop = new AbortController();
    const until = AbortSignal.any([signal, stop.signal]);
    const failed = new AbortController();
    const sources = [this.#receive(requests, until), this.#follow(until)];
    for (const source of sources) source.catch((error: unknown) => failed.abort(error));
    this.#parts.closing.addEventListener("abort", () => this.#tick(), { once: true, signal: until });
    try {
      for (let seen = -1; !signal.aborted; ) {
        failed.signal.throwIfAborted();
        if (seen === this.#wake.value) {
          await this.#wake.until((tick) => tick !== seen, AbortSignal.any([until, failed.signal]));
          continue;
        }
        seen = this.#wake.value;
        for (const event of this.#events()) yield this.#numbered(event);
        if (this.#ended) return;
        if (this.#parts.closing.aborted) return yield this.#numbered(this.#drain());
      }
    } catch (error) {
      if (!isAbort(error) || !signal.aborted) throw error;
    } finally {
      stop.abort();
      this.#claim(-this.#claimed);
    }
  }

  #tick(): void {
    this.#wake.set(this.#wake.value + 1);
  }

  /** One at a time: whoever sends and does not read is held back by flow control. */
  async #receive(requests: AsyncIterable<WatchAuthorizedEntriesRequest__Output>, signal: AbortSignal): Promise<void> {
    for await (const request of requests) {
      this.#request.set(request);
      this.#tick();
      await this.#request.until((waiting) => waiting === undefined, signal);
    }
    this.#ended = true;
    this.#tick();
  }

  /** Entries and bundles. */
  async #follow(signal: AbortSignal): Promise<void> {
    for await (const entries of this.#parts.directory.watchAuthorized(this.agent, signal)) {
      this.#current = entries;
      this.#tick();
    }
  }

  /** What there is to say now. */
  *#events(): Generator<Event> {
    const current = this.#current;
    if (current === undefined) return;
    yield* this.#quarantineChange();
    const request = this.#request.value;
    if (request !== undefined) {
      this.#request.set(undefined);
      if (request.step === "applied") this.#take(Number(request.applied));
      else if (request.held) yield* this.#compare(request.held, current);
      else throw new Fault("invalid", "request says neither what is held nor what was applied");
    }
    if (this.#sent === undefined) return;
    yield* this.#bundleChanges(current);
    if (this.#compared === current) return;
    this.#compared = current;
    yield* this.#entryChanges(this.#sent, current);
  }

  #take(number: number): void {
    if (number > this.#number) throw new Fault("invalid", `response ${number} has not been sent`);
    this.#applied = Math.max(this.#applied, number);
    this.#parts.progressed();
  }

  *#compare(held: Held__Output, current: ReadonlyMap<string, Entry>): Generator<Event> {
    this.#mask ??= held.output_mask;
    if (held.revisions !== null) return this.#takeRevisions(held.revisions);
    const expected = this.#sent === undefined ? digestOf(current) : this.#digest;
    if (!expected.equals(held.digest)) {
      this.#sent = undefined;
      return yield { divergence: {} };
    }
    if (this.#sent === undefined) {
      this.#sent = current;
      this.#digest = expected.copy();
      this.#compared = current;
    }
    yield { entries: { digest: expected.bytes() } };
  }

  #takeRevisions({ revisions, more }: Revisions__Output): void {
    this.#received ??= new Map();
    const before = this.#received.size;
    for (const { id, revision_number, created_at } of revisions) {
      if (id.length > MAX_ID_CHARACTERS) throw new Fault("invalid", "entry ID is too long");
      this.#received.set(id, { id, revisionNumber: Number(revision_number), createdAt: Number(created_at) });
    }
    this.#claim(this.#received.size - before);
    if (more) return;
    this.#sent = this.#received;
    this.#digest = new EntryDigest(this.#sent.values());
    this.#received = undefined;
    this.#compared = undefined;
    this.#confirmed = false;
  }

  #claim(count: number): void {
    this.#claimed += count;
    this.#parts.claim(count);
  }

  *#entryChanges(sent: ReadonlyMap<string, EntryVersion>, current: ReadonlyMap<string, Entry>): Generator<Event> {
    const changed = [...current.values()].filter((entry) => !sameVersion(sent.get(entry.id), entry));
    const removed = [...sent.keys()].filter((id) => !current.has(id));
    for (const id of removed) this.#toggle(sent.get(id));
    for (const entry of changed) {
      this.#toggle(sent.get(entry.id));
      this.#digest.toggle(entry);
    }
    // The directory's own map, which all streams of the agent share, and which is another one after each change.
    this.#sent = current;
    this.#claim((this.#received?.size ?? 0) - this.#claimed);
    const pages = [...entryPages(changed, removed, this.#mask)];
    if (pages.length === 0 && this.#confirmed) return;
    this.#confirmed = true;
    for (const page of pages.slice(0, -1)) yield { entries: { ...page, more: true } };
    yield { entries: { ...pages.at(-1), digest: this.#digest.bytes() } };
  }

  #toggle(version: EntryVersion | undefined): void {
    if (version !== undefined) this.#digest.toggle(version);
  }

  /** Ahead of every answer: an agent that comes back takes the first one about entries for a release otherwise. */
  *#quarantineChange(): Generator<Event> {
    const quarantined = this.#parts.directory.node(this.agent)?.quarantine !== undefined;
    if (quarantined === this.#quarantined) return;
    this.#quarantined = quarantined;
    yield { quarantine: { quarantined } };
  }

  /** Ahead of the entries: what an entry federates with is there when the entry is. */
  *#bundleChanges(current: ReadonlyMap<string, Entry>): Generator<Event> {
    const held = this.#parts.directory.bundles.value;
    const names = new Set([this.#parts.trustDomain]);
    for (const { federatesWith } of current.values()) for (const name of federatesWith) names.add(name);
    const changed: Bundle[] = [];
    for (const name of names) {
      const bundle = held.get(name);
      if (bundle !== undefined && this.#bundles.get(name) !== bundle) changed.push(bundle);
    }
    const removed = [...this.#bundles.keys()].filter((name) => !names.has(name) || !held.has(name));
    for (const name of removed) this.#bundles.delete(name);
    for (const bundle of changed) this.#bundles.set(bundle.trustDomain, bundle);
    if (changed.length + removed.length === 0) return;
    for (const { items, more } of pieces(changed, PAGE, bundleBytes))
      yield { bundles: { changed: items.map((bundle) => bundleToProto(bundle)), ...(more ? {} : { removed }) } };
  }

  #drain(): Event {
    return { drain: { reconnect_after_ms: Math.floor(this.#parts.clock.random() * this.#parts.drainSpreadMs()) } };
  }

  #numbered(event: Event): WatchAuthorizedEntriesResponse {
    this.#number += 1;
    if (event.entries) this.#entriesNumber = this.#number;
    return { ...event, number: this.#number };
  }
}

const digests = new WeakMap<ReadonlyMap<string, Entry>, EntryDigest>();

/** Made once, however often an agent asks. Not to be changed. */
function digestOf(entries: ReadonlyMap<string, Entry>): EntryDigest {
  const digest = digests.get(entries) ?? new EntryDigest(entries.values());
  digests.set(entries, digest);
  return digest;
}

function* entryPages(
  changed: readonly Entry[],
  removed: readonly string[],
  mask: EntryMask__Output | null | undefined,
): Generator<EntriesMessage> {
  if (removed.length > 0)
    for (const { items } of pieces(removed, REMOVED_PAGE, (id) => Buffer.byteLength(id) + 4))
      yield { removed: [...items] };
  if (changed.length > 0)
    for (const { items } of pieces(changed, PAGE, entryBytes))
      yield { changed: items.map((entry) => entryToProto(entry, mask)) };
}

/** At least the encoded size; a bundle that fills a message has one of its own. */
function bundleBytes({ x509Authorities, jwtAuthorities, witAuthorities }: Bundle): number {
  const keys = [...jwtAuthorities, ...witAuthorities].reduce(
    (sum, { publicKey, keyId }) => sum + publicKey.length + Buffer.byteLength(keyId) + 32,
    0,
  );
  return Math.min(MAX_ANSWER_BYTES, x509Authorities.reduce((sum, { asn1 }) => sum + asn1.length + 16, 400) + keys);
}
