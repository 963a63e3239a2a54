import type { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import { failure } from "./fail.ts";

export interface EntitlementParts {
  readonly directory: Pick<Directory, "authorizedEntry">;
  /** Resolves once the directory has what was committed before, or when that cannot be had. */
  readonly lookAgain: () => Promise<void>;
}

/**
 * The entry, when the agent is entitled to it. What another server has told the agent of may not be here yet, so a miss
 * is one question to the database, which all that miss at the time share. Throws `not_found`, the same for an entry of
 * another agent and for none (T-C7).
 */
export async function entitledEntry(
  { directory, lookAgain }: EntitlementParts,
  agent: SpiffeId,
  entryId: string,
  log: Log,
): Promise<Entry> {
  const held = directory.authorizedEntry(agent, entryId);
  if (held !== undefined) return held;
  await lookAgain();
  const found = directory.authorizedEntry(agent, entryId);
  if (found !== undefined) return found;
  throw notEntitled(entryId, log);
}

/**
 * What `sign` makes for the entry, when the agent is entitled to it still: a ban, a quarantine or a deletion may have come
 * while the signature waited for its turn. Throws `not_found`.
 */
export async function whileEntitled<T>(
  { directory }: Pick<EntitlementParts, "directory">,
  { agent, entry, log }: { readonly agent: SpiffeId; readonly entry: Entry; readonly log: Log },
  sign: () => Promise<T>,
): Promise<T> {
  const signed = await sign();
  if (directory.authorizedEntry(agent, entry.id) === undefined) throw notEntitled(entry.id, log);
  return signed;
}

function notEntitled(entryId: string, log: Log): Fault {
  return failure(log.child({ entry_id: entryId.slice(0, 255) }), "not_found", "entry not found or not authorized");
}
