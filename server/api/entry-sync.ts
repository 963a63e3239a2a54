import { entryToProto } from "../../src/rpc/convert.ts";
import type { SyncAuthorizedEntriesRequest__Output } from "../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesRequest.ts";
import type { SyncAuthorizedEntriesResponse } from "../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesResponse.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import { entryBytes, MAX_ANSWER_BYTES, pieces } from "./pages.ts";

/** SPIRE's page: agents take their own from the first page of revisions that they see. */
const PAGE = 500;
/** An id, two numbers and their tags. */
const REVISION_BYTES = 300;

export interface AuthorizedEntries {
  readonly all: () => readonly Entry[];
  readonly one: (entryId: string) => Entry | undefined;
}

/**
 * Sends every entry at once when they fit; otherwise the revisions of all, and then, request by request, those entries
 * that the agent asks for. Revisions and entries never mix in one message. An id that is unknown, or has been revoked
 * since, is skipped.
 */
export async function* syncAuthorizedEntries(
  requests: AsyncIterable<SyncAuthorizedEntriesRequest__Output>,
  authorized: AuthorizedEntries,
): AsyncGenerator<SyncAuthorizedEntriesResponse, void, undefined> {
  let mask: SyncAuthorizedEntriesRequest__Output["output_mask"] | undefined;
  for await (const request of requests) {
    if (mask !== undefined) {
      yield* requested(authorized, request.ids, mask);
      continue;
    }
    mask = checkFirst(request);
    const entries = authorized.all();
    if (fitsOneMessage(entries))
      return yield { entries: entries.map((entry) => entryToProto(entry, request.output_mask)) };
    yield* revisions(entries);
  }
}

function checkFirst({
  ids,
  output_mask,
}: SyncAuthorizedEntriesRequest__Output): SyncAuthorizedEntriesRequest__Output["output_mask"] {
  if (ids.length > 0) throw new Fault("invalid", "specifying IDs on initial request is not supported");
  if (output_mask !== null && !output_mask.revision_number)
    throw new Fault("invalid", "revision number cannot be masked");
  return output_mask;
}

function fitsOneMessage(entries: readonly Entry[]): boolean {
  return entries.length <= PAGE && entries.reduce((sum, entry) => sum + entryBytes(entry), 0) <= MAX_ANSWER_BYTES;
}

function* revisions(entries: readonly Entry[]): Generator<SyncAuthorizedEntriesResponse> {
  for (const { items, more } of pieces(entries, PAGE, () => REVISION_BYTES)) {
    const entry_revisions = items.map(({ id, revisionNumber, createdAt }) => ({
      id,
      revision_number: revisionNumber,
      created_at: createdAt,
    }));
    yield { entry_revisions, more };
  }
}

function* requested(
  { one }: AuthorizedEntries,
  ids: readonly string[],
  mask: SyncAuthorizedEntriesRequest__Output["output_mask"],
): Generator<SyncAuthorizedEntriesResponse> {
  const found = [...new Set(ids)].sort().map(one);
  const entries = found.filter((entry) => entry !== undefined);
  for (const { items, more } of pieces(entries, PAGE, entryBytes))
    yield { entries: items.map((entry) => entryToProto(entry, mask)), more };
}
