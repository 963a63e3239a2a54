import { entryToProto } from "../../src/rpc/convert.ts";
import type { Entry__Output, Entry as EntryMessage } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { EntryMask__Output } from "../../src/rpc/gen/spire/api/types/EntryMask.ts";
import type { Status } from "../../src/rpc/gen/spire/api/types/Status.ts";
import type { EntryApi } from "../../src/rpc/protos.ts";
import { bidi, unary } from "../../src/rpc/service.ts";
import { itemStatus } from "../../src/rpc/status.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import { checkEntryDraft, type EntryDraft } from "../../src/spiffe/entry.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { type Selector, selectsImageByTag } from "../../src/spiffe/selector.ts";
import type { Directory } from "../directory/authorized.ts";
import { imageSelectedByTag } from "../events.ts";
import type { EntryChange, EntryStore } from "../store/store.ts";
import { entryFacts } from "./audit-fields.ts";
import { batch } from "./batch.ts";
import { entryFields } from "./entry-input.ts";
import { syncAuthorizedEntries } from "./entry-sync.ts";
import { attempt, checked, failure, passedOn } from "./fail.ts";
import { entryFilter } from "./filters.ts";
import { entryBytes, MAX_ANSWER_BYTES, readPage } from "./pages.ts";
import { itemFailure, OK } from "./results.ts";
import { agentOf, type HandlersOf } from "./shapes.ts";

export interface EntryServiceParts {
  readonly trustDomain: TrustDomain;
  readonly entries: EntryStore;
  readonly directory: Pick<Directory, "authorizedEntries" | "authorizedEntry" | "node">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
}

type Mask = EntryMask__Output | null;

export function entryService(parts: EntryServiceParts): HandlersOf<typeof EntryApi> {
  const { trustDomain, entries, directory, caughtUp } = parts;
  return {
    CountEntries: unary(async ({ filter }, { auth: { log } }) => {
      const wanted = entryFilter(log, trustDomain, filter);
      return { count: await attempt(log, "failed to count entries", () => entries.count(wanted)) };
    }),
    ListEntries: unary(async ({ filter, output_mask, page_size, page_token }, { auth: { log } }) => {
      const wanted = entryFilter(log, trustDomain, filter);
      const listing = {
        read: (page: { size: number; token: string }) => entries.list(wanted, page),
        sizeOf: entryBytes,
      };
      const { items, nextPageToken } = await attempt(log, "failed to list entries", () =>
        readPage(page_size, page_token, listing),
      );
      return { entries: items.map((entry) => entryToProto(entry, output_mask)), next_page_token: nextPageToken };
    }),
    GetEntry: unary(async ({ id, output_mask }, { auth: { log } }) => {
      if (id === "") throw failure(log, "invalid", "missing ID");
      const entry = isEntryId(id) ? await attempt(log, "failed to fetch entry", () => entries.find(id)) : undefined;
      if (entry === undefined) throw failure(log, "not_found", "entry not found");
      return entryToProto(entry, output_mask);
    }),
    BatchCreateEntry: unary(async ({ entries: protos, output_mask }, call) => {
      const together = (group: readonly Entry__Output[]) => create(parts, group, output_mask, call.auth.log);
      return { results: await batch(call, protos, { together, audit: auditOf(parts, null), caughtUp }) };
    }),
    BatchUpdateEntry: unary(async ({ entries: protos, input_mask, output_mask }, call) => {
      const masks = { input: input_mask, output: output_mask };
      const together = (group: readonly Entry__Output[]) => update(parts, group, masks, call.auth.log);
      return { results: await batch(call, protos, { together, audit: auditOf(parts, input_mask), caughtUp }) };
    }),
    BatchDeleteEntry: unary(async ({ ids }, call) => {
      const together = (group: readonly string[]) => remove(entries, group, call.auth.log);
      return { results: await batch(call, ids, { together, audit: (id) => ({ entry_id: id }), caughtUp }) };
    }),
    GetAuthorizedEntries: unary(async ({ output_mask }, call) => {
      const authorized = directory.authorizedEntries(agentOf(call).id);
      const bytes = authorized.reduce((sum, entry) => sum + entryBytes(entry), 0);
      if (bytes > MAX_ANSWER_BYTES) throw tooMany();
      return { entries: authorized.map((entry) => entryToProto(entry, output_mask)) };
    }),
    SyncAuthorizedEntries: bidi((requests, call) => {
      const { id } = agentOf(call);
      return syncAuthorizedEntries(requests, {
        all: () => directory.authorizedEntries(id),
        one: (entryId) => directory.authorizedEntry(id, entryId),
      });
    }),
  };
}

function tooMany(): Fault {
  return new Fault("exhausted", "the authorized entries are larger than a message may be", {
    code: "answer-too-large",
    hint: "use SyncAuthorizedEntries",
  });
}

/** What an audit record says of an entry. The ID of a token agent holds its token, which is secret until it is used. */
function auditOf({ directory }: EntryServiceParts, mask: Mask): (proto: Entry__Output) => LogFields {
  return (proto) => entryFacts(proto, mask, (id) => directory.node(id) !== undefined);
}

const SIMILAR: Status = itemStatus(new Fault("already_exists", "similar entry already exists"));

interface CreateResult {
  readonly status: Status;
  readonly entry?: EntryMessage;
}

/** Those that pass the rules go to the store together; each result stands where its request stood. */
async function create(
  parts: EntryServiceParts,
  protos: readonly Entry__Output[],
  mask: Mask,
  log: Log,
): Promise<readonly CreateResult[]> {
  const read = protos.map((proto) => readDraft(parts, proto, log));
  const created = (await parts.entries.createMany(read.flatMap(({ draft }) => draft ?? []))).values();
  return read.map(({ draft, status = OK }) => {
    if (draft === undefined) return { status };
    const outcome = created.next().value ?? new Fault("internal", "the store gave no result");
    if (outcome instanceof Fault) {
      const entryLog = log.child({ spiffe_id: draft.spiffeId });
      return { status: itemFailure(entryLog, passedOn(entryLog, "failed to create entry", outcome)) };
    }
    const { entry, existed } = outcome;
    if (!existed) warnOfTags(log, entry);
    return { status: existed ? SIMILAR : OK, entry: entryToProto(entry, mask) };
  });
}

interface ReadDraft {
  readonly draft?: EntryDraft;
  /** Why there is no draft. */
  readonly status?: Status;
}

function readDraft({ trustDomain }: EntryServiceParts, proto: Entry__Output, log: Log): ReadDraft {
  try {
    const fields = checked(log, "failed to convert entry", () => entryFields(trustDomain, proto, null));
    const draft = { ...(fields as EntryDraft), id: proto.id };
    return { draft: checked(log, "failed to create entry", () => checkEntryDraft(draft, trustDomain)) };
  } catch (error) {
    return { status: itemFailure(log, error) };
  }
}

interface Masks {
  readonly input: Mask;
  readonly output: Mask;
}

/** As `create`. */
async function update(
  parts: EntryServiceParts,
  protos: readonly Entry__Output[],
  masks: Masks,
  outer: Log,
): Promise<readonly CreateResult[]> {
  const read = protos.map((proto) => {
    const log = outer.child({ entry_id: proto.id.slice(0, 255) });
    return { log, ...readChange(parts, proto, masks.input, log) };
  });
  const updated = (await parts.entries.updateMany(read.flatMap(({ change }) => change ?? []))).values();
  return read.map(({ log, change, selects, status = OK }) => {
    if (change === undefined) return { status };
    const outcome = updated.next().value ?? new Fault("internal", "the store gave no result");
    if (outcome instanceof Fault) return { status: itemFailure(log, passedOn(log, "failed to update entry", outcome)) };
    if (selects) warnOfTags(log, outcome);
    return { status: OK, entry: entryToProto(outcome, masks.output) };
  });
}

interface ReadChange {
  readonly change?: EntryChange;
  /** It is given selectors. */
  readonly selects?: boolean;
  /** Why there is no change. */
  readonly status?: Status;
}

function readChange({ trustDomain }: EntryServiceParts, proto: Entry__Output, mask: Mask, log: Log): ReadChange {
  try {
    const fields = checked(log, "failed to convert entry", () => entryFields(trustDomain, proto, mask));
    if (!isEntryId(proto.id)) throw failure(log, "not_found", "failed to update entry");
    const change = (current: EntryDraft): EntryDraft => checkEntryDraft({ ...current, ...fields }, trustDomain);
    return { change: { id: proto.id, change }, selects: fields.selectors !== undefined };
  } catch (error) {
    return { status: itemFailure(log, error) };
  }
}

interface DeleteResult {
  readonly status: Status;
  readonly id: string;
}

/** One that is named twice is gone the second time. */
async function remove(entries: EntryStore, ids: readonly string[], outer: Log): Promise<readonly DeleteResult[]> {
  const deleted = await settled(() => entries.deleteMany(ids.filter(isEntryId)));
  const left = new Set(deleted instanceof Fault ? [] : deleted);
  return ids.map((id) => {
    if (left.delete(id)) return { status: OK, id };
    const log = outer.child({ entry_id: id.slice(0, 255) });
    if (id === "") return { status: itemFailure(log, failure(log, "invalid", "missing entry ID")), id };
    const trouble = deleted instanceof Fault && isEntryId(id) ? deleted : undefined;
    const fault =
      trouble === undefined
        ? failure(log, "not_found", "entry not found")
        : passedOn(log, "failed to delete entry", trouble);
    return { status: itemFailure(log, fault), id };
  });
}

async function settled<T>(work: () => Promise<T>): Promise<T | Fault> {
  try {
    return await work();
  } catch (error) {
    return Fault.from(error);
  }
}

function warnOfTags(
  log: Log,
  { id, selectors }: { readonly id: string; readonly selectors: readonly Selector[] },
): void {
  const kinds = selectors.filter(selectsImageByTag).map(({ type, value }) => `${type}:${value.split(":", 1)[0]}`);
  if (kinds.length > 0) imageSelectedByTag(log, id, [...new Set(kinds)]);
}

/** What no entry can be called is not looked up. */
function isEntryId(id: string): boolean {
  return /^[A-Za-z0-9._-]{1,255}$/.test(id);
}
