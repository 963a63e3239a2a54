import type { EntryRevision__Output } from "../../src/rpc/gen/spire/api/server/entry/v1/EntryRevision.ts";
import type { SyncAuthorizedEntriesRequest } from "../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesRequest.ts";
import type { SyncAuthorizedEntriesResponse__Output } from "../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesResponse.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { malformedEntry } from "../events.ts";
import { Outbox } from "../node/outbox.ts";
import { type CachedEntry, ENTRY_MASK, type EntryRevision, entryFromServer, isStale } from "./entry.ts";

export type EntryStream = (
  requests: AsyncIterable<SyncAuthorizedEntriesRequest>,
) => AsyncIterable<SyncAuthorizedEntriesResponse__Output>;

/**
 * Brings `held` up to date over one SyncAuthorizedEntries stream. A server with few entries sends them all at once; one
 * with many sends their revisions first, and then what is asked for. Returns a new map in which unchanged entries are
 * the same objects; entries that the server no longer names are gone.
 */
export async function syncEntries(
  open: EntryStream,
  held: ReadonlyMap<string, CachedEntry>,
  log: Log,
): Promise<ReadonlyMap<string, CachedEntry>> {
  const requests = new Outbox<SyncAuthorizedEntriesRequest>();
  requests.push({ output_mask: ENTRY_MASK });
  const responses = open(requests)[Symbol.asyncIterator]();
  try {
    const download = new Download(held, log);
    const first = await next(responses);
    if (first.entry_revisions.length === 0) download.takeEntries(first.entries);
    else await download.byRevision(first, requests, () => next(responses));
    return download.entries;
  } finally {
    requests.end();
    await responses.return?.();
  }
}

class Download {
  readonly entries = new Map<string, CachedEntry>();
  readonly #held: ReadonlyMap<string, CachedEntry>;
  readonly #log: Log;
  readonly #missing: string[] = [];

  constructor(held: ReadonlyMap<string, CachedEntry>, log: Log) {
    this.#held = held;
    this.#log = log;
  }

  /** The first page of revisions sets the size of the pages that are asked for. */
  async byRevision(
    first: SyncAuthorizedEntriesResponse__Output,
    requests: Outbox<SyncAuthorizedEntriesRequest>,
    receive: () => Promise<SyncAuthorizedEntriesResponse__Output>,
  ): Promise<void> {
    const pageSize = first.entry_revisions.length;
    for (let page = first; ; page = await receive()) {
      if (page.entries.length > 0) throw mixed("unexpected entry in response receiving entry revisions");
      this.#takeRevisions(page.entry_revisions);
      if (!page.more) break;
    }
    this.#missing.sort();
    for (let from = 0; from < this.#missing.length; from += pageSize) {
      requests.push({ ids: this.#missing.slice(from, from + pageSize) });
      for (let more = true; more; ) {
        const page = await receive();
        if (page.entry_revisions.length > 0)
          throw mixed("unexpected entry revisions in response while requesting entries");
        this.takeEntries(page.entries);
        more = page.more;
      }
    }
  }

  takeEntries(entries: readonly Entry__Output[]): void {
    for (const entry of entries) {
      if (this.#keepIfSame(entry)) continue;
      try {
        this.entries.set(entry.id, entryFromServer(entry));
      } catch (error) {
        malformedEntry(this.#log, { id: entry.id, revision: entry.revision_number, problem: messageOf(error) });
      }
    }
  }

  #takeRevisions(revisions: readonly EntryRevision__Output[]): void {
    for (const revision of revisions) {
      if (revision.id === "" || Number(revision.revision_number) < 0) {
        malformedEntry(this.#log, {
          id: revision.id,
          revision: revision.revision_number,
          problem: "malformed entry revision",
        });
      } else if (!this.#keepIfSame(revision)) {
        this.#missing.push(revision.id);
      }
    }
  }

  #keepIfSame(revision: EntryRevision): boolean {
    const entry = this.#held.get(revision.id);
    if (entry === undefined || isStale(entry, revision)) return false;
    this.entries.set(entry.id, entry);
    return true;
  }
}

async function next<T>(responses: AsyncIterator<T>): Promise<T> {
  const step = await responses.next();
  if (step.done === true)
    throw new Fault("unavailable", "the server ended the stream of entries too early", { code: "sync-ended-early" });
  return step.value;
}

function mixed(message: string): Fault {
  return new Fault("internal", message, { code: "sync-mixed-page" });
}
