import { bundleFromProto } from "../../src/rpc/convert.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { Bundles__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/Bundles.ts";
import type { Entries__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/Entries.ts";
import type { WatchAuthorizedEntriesRequest } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import type { WatchAuthorizedEntriesResponse__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesResponse.ts";
import { retryAfterOf } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { EntryDigest, type EntryVersion } from "../../src/spiffe/entry-digest.ts";
import { malformedBundle, malformedEntry, pushEnded, pushNotOffered, pushStarted } from "../events.ts";
import { Outbox } from "../node/outbox.ts";
import { type CachedEntry, ENTRY_MASK, entryFromServer } from "./entry.ts";
import type { Synchronizer } from "./sync.ts";

type Request = WatchAuthorizedEntriesRequest;
type Response = WatchAuthorizedEntriesResponse__Output;

export type PushStream = (requests: AsyncIterable<Request>, signal: AbortSignal) => AsyncIterable<Response>;

interface PushUpstream {
  /** Hands `work` the stream. Throws an abort when the agent's SVID is about to be replaced: the next one waits for it. */
  watchEntries<T>(work: (open: PushStream, signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T>;
}

export interface PushFollowerOptions {
  readonly synchronizer: Synchronizer;
  readonly upstream: PushUpstream;
  readonly clock: Clock;
  readonly log: Log;
}

/** Soon at first, as a server that is restarted is back within seconds; spread, as many agents lose it together. */
const RETRY = { firstMs: 250, maxMs: 15_000, jitter: 0.5 } as const;
/** A server without the service may be replaced by one that has it. */
const NOT_OFFERED_MS = 5 * 60_000;
/** How often both ends compare what the agent holds; an answer that stays away this long ends the stream. */
const COMPARE_MS = 60_000;
/** Told often in a row that the two differ, the agent falls back to asking. */
const MOST_DIVERGENCES = 3;
const REVISIONS_PAGE = 10_000;

/** Takes changes as the server tells them. While it does, the synchronizer need not ask. */
export class PushFollower {
  readonly #options: PushFollowerOptions;

  constructor(options: PushFollowerOptions) {
    this.#options = options;
  }

  /**
   * Until the signal ends it by throwing. Whatever fails here, the synchronizer asks as before; what is to follow when
   * the server turns the agent away is decided there.
   */
  async run(signal: AbortSignal): Promise<never> {
    const { clock, log, upstream, synchronizer } = this.#options;
    const backoff = new Backoff(clock, RETRY);
    let known = true;
    for (;;) {
      let pauseMs = 0;
      try {
        pauseMs = await upstream.watchEntries((open, stop) => this.#follow(open, stop, () => backoff.reset()), signal);
        known = true;
      } catch (error) {
        signal.throwIfAborted();
        const offered = !isFault(error, "unimplemented");
        pauseMs = offered ? Math.max(backoff.next(), retryAfterOf(error)) : NOT_OFFERED_MS;
        if (isFault(error, "denied")) synchronizer.ask();
        if (!offered && known) pushNotOffered(log);
        else if (offered && synchronizer.pushed) pushEnded(log, error);
        known = offered;
      } finally {
        synchronizer.setPushed(false);
      }
      await clock.sleep(pauseMs, signal);
    }
  }

  /** Returns for how long to stay away once the server, or this agent, has ended the stream in order. */
  async #follow(open: PushStream, signal: AbortSignal, settled: () => void): Promise<number> {
    const { clock, synchronizer, log } = this.#options;
    const outbox = new Outbox<Request>();
    const stop = new AbortController();
    const conversation = new Conversation({ synchronizer, outbox, log });
    const comparing = this.#compare(conversation, stop);
    conversation.begin();
    try {
      for await (const response of open(outbox, AbortSignal.any([signal, stop.signal]))) {
        conversation.heardAt = clock.monotonic();
        if (response.drain) return response.drain.reconnect_after_ms;
        const agreed = await conversation.take(response);
        outbox.push({ applied: response.number });
        if (!agreed) continue;
        if (!synchronizer.pushed) pushStarted(log);
        synchronizer.setPushed(true);
        settled();
      }
      return RETRY.firstMs;
    } catch (error) {
      // The agent's SVID is about to be replaced, or the program ends.
      if (signal.aborted) return 0;
      throw stop.signal.aborted ? stop.signal.reason : error;
    } finally {
      outbox.end();
      stop.abort();
      await comparing;
    }
  }

  /** Ends with the stream. */
  async #compare(conversation: Conversation, stop: AbortController): Promise<void> {
    const { clock } = this.#options;
    conversation.heardAt = clock.monotonic();
    try {
      for (;;) {
        await clock.sleep(COMPARE_MS, stop.signal);
        if (clock.monotonic() - conversation.heardAt > 2 * COMPARE_MS)
          stop.abort(new Fault("unavailable", "the server has fallen silent", { code: "push-silent" }));
        else conversation.compare();
      }
    } catch {
      // The stream has ended.
    }
  }
}

interface ConversationOptions {
  readonly synchronizer: Synchronizer;
  readonly outbox: Outbox<Request>;
  readonly log: Log;
}

/** What was said on one stream. */
class Conversation {
  /** When the server spoke last, by the monotonic clock. */
  heardAt = 0;
  readonly #options: ConversationOptions;
  /** Entries that this agent cannot hold; they count in the digest all the same. */
  readonly #skipped = new Map<string, EntryVersion>();
  readonly #changed = new Map<string, CachedEntry>();
  readonly #removed = new Set<string>();
  #divergences = 0;
  /** Until the server says otherwise. */
  #quarantined = false;

  constructor(options: ConversationOptions) {
    this.#options = options;
  }

  begin(): void {
    this.#options.outbox.push({ held: { output_mask: ENTRY_MASK, digest: this.#digest().bytes() } });
  }

  compare(): void {
    if (this.#changed.size + this.#removed.size > 0) return;
    this.#options.outbox.push({ held: { digest: this.#digest().bytes() } });
  }

  /** True when agent and server agree on the entries after this response. */
  async take({ entries, bundles, divergence, quarantine }: Response): Promise<boolean> {
    if (quarantine) this.#takeQuarantine(quarantine.quarantined);
    else if (bundles) await this.#takeBundles(bundles);
    else if (divergence) this.#resend();
    else if (entries) return this.#takeEntries(entries);
    return false;
  }

  #takeQuarantine(quarantined: boolean): void {
    this.#quarantined = quarantined;
    this.#options.synchronizer.setQuarantined(quarantined);
  }

  #takeEntries({ changed, removed, more, digest }: Entries__Output): boolean {
    for (const id of removed) {
      this.#changed.delete(id);
      this.#skipped.delete(id);
      this.#removed.add(id);
    }
    for (const entry of changed) this.#takeEntry(entry);
    if (more) return false;
    this.#options.synchronizer.takeEntries(this.#changed, this.#removed);
    this.#changed.clear();
    this.#removed.clear();
    if (this.#digest().equals(digest)) {
      this.#divergences = 0;
      this.#options.synchronizer.setQuarantined(this.#quarantined);
      return true;
    }
    this.#resend();
    return false;
  }

  #takeEntry(message: Entry__Output): void {
    try {
      this.#changed.set(message.id, entryFromServer(message));
      this.#removed.delete(message.id);
      this.#skipped.delete(message.id);
    } catch (error) {
      const { id, revision_number: revision } = message;
      malformedEntry(this.#options.log, { id, revision, problem: messageOf(error) });
      this.#removed.add(id);
      this.#skipped.set(id, { id, revisionNumber: Number(revision), createdAt: Number(message.created_at) });
    }
  }

  async #takeBundles({ changed, removed }: Bundles__Output): Promise<void> {
    const bundles = changed.flatMap((message) => this.#readBundle(message));
    await this.#options.synchronizer.takeBundles(bundles, removed);
  }

  #readBundle(message: Bundle__Output): readonly Bundle[] {
    try {
      return [bundleFromProto(message)];
    } catch (error) {
      malformedBundle(this.#options.log, error);
      return [];
    }
  }

  #resend(): void {
    this.#divergences += 1;
    if (this.#divergences > MOST_DIVERGENCES)
      throw new Fault("internal", "agent and server do not come to agree on the entries", { code: "push-divergence" });
    const versions = [...this.#held()];
    for (let from = 0; from === 0 || from < versions.length; from += REVISIONS_PAGE) {
      const revisions = versions.slice(from, from + REVISIONS_PAGE).map(({ id, revisionNumber, createdAt }) => ({
        id,
        revision_number: revisionNumber,
        created_at: createdAt,
      }));
      this.#options.outbox.push({ held: { revisions: { revisions, more: from + REVISIONS_PAGE < versions.length } } });
    }
  }

  #digest(): EntryDigest {
    return new EntryDigest(this.#held());
  }

  *#held(): Generator<EntryVersion> {
    yield* this.#options.synchronizer.entries.values();
    yield* this.#skipped.values();
  }
}
