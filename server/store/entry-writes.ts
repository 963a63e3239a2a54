import { randomUUID } from "node:crypto";
import { Fault } from "../../src/runtime/fault.ts";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import { type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import { entryColumns, toEntry } from "./rows.ts";
import type { Queries } from "./session.ts";

/** Inserts the entry, or finds the similar one. Belongs into a transaction when the entry federates. */
export async function insertEntry(
  db: Queries,
  draft: EntryDraft,
  now: Date,
): Promise<{ readonly entry: Entry; readonly existed: boolean }> {
  await holdBundles(db, draft.federatesWith);
  const columns = entryColumns(draft);
  for (;;) {
    const inserted = await db
      .insertInto("entries")
      .values({
        ...columns,
        id: draft.id === "" ? randomUUID() : draft.id,
        revision_number: 0,
        created_at: Math.floor(now.getTime() / 1000),
      })
      .onConflict((conflict) => conflict.column("similar_hash").doNothing())
      .returningAll()
      .executeTakeFirst();
    if (inserted !== undefined) return { entry: toEntry(inserted), existed: false };
    const similar = await db
      .selectFrom("entries")
      .selectAll()
      .where("similar_hash", "=", columns.similar_hash)
      .executeTakeFirst();
    if (similar !== undefined) return { entry: toEntry(similar), existed: true };
  }
}

/** Locks the bundles against deletion until the transaction ends. Throws `precondition` when one is missing. */
export async function holdBundles(db: Queries, trustDomains: readonly TrustDomain[]): Promise<void> {
  if (trustDomains.length === 0) return;
  const rows = await db
    .selectFrom("bundles")
    .select("trust_domain")
    .where("trust_domain", "in", trustDomains)
    .orderBy("trust_domain")
    .forKeyShare()
    .execute();
  const found = new Set<string>(rows.map((row) => row.trust_domain));
  const missing = trustDomains.find((name) => !found.has(name));
  if (missing === undefined) return;
  throw new Fault("precondition", `unable to find federated bundle "${trustDomainId(missing)}"`, {
    code: "bundle-missing",
    hint: "set the bundle of that trust domain first",
  });
}
