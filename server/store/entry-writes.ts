import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import { type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import { type EntryRow, entryColumns, toEntry } from "./rows.ts";
import type { Queries } from "./session.ts";
import type { CreatedEntry, EntryChange } from "./store.ts";

/** Inserts the entry, or finds the similar one. Belongs into a transaction when the entry federates. */
export async function insertEntry(db: Queries, draft: EntryDraft, now: Date): Promise<CreatedEntry> {
  for (;;) {
    const [made] = await tryInsert(db, [draft], now);
    if (made !== undefined) return made;
  }
}

/** As `insertEntry` for each, in order; two that are similar to each other are one entry. Belongs into a transaction. */
export async function insertEntries(
  db: Queries,
  drafts: readonly EntryDraft[],
  now: Date,
): Promise<readonly CreatedEntry[]> {
  const made = await tryInsert(db, drafts, now);
  return made.map((created) => {
    if (created === undefined)
      throw new Fault("aborted", "a similar entry came and went", { code: "datastore-conflict" });
    return created;
  });
}

/** Undefined for a draft whose similar entry was deleted in between. */
async function tryInsert(
  db: Queries,
  drafts: readonly EntryDraft[],
  now: Date,
): Promise<readonly (CreatedEntry | undefined)[]> {
  await holdBundles(db, [...new Set(drafts.flatMap(({ federatesWith }) => federatesWith))]);
  const created_at = Math.floor(now.getTime() / 1000);
  const rows = drafts.map((draft) => ({
    ...entryColumns(draft),
    id: draft.id === "" ? randomUUID() : draft.id,
    revision_number: 0,
    created_at,
  }));
  const inserted = await db
    .insertInto("entries")
    .values(rows)
    .onConflict((conflict) => conflict.column("similar_hash").doNothing())
    .returningAll()
    .execute();
  const fresh = new Map(inserted.map((row) => [row.id, row]));
  const byHash = new Map(inserted.map((row) => [row.similar_hash.toString("hex"), row]));
  const similar = await findSimilar(db, rows.map(({ similar_hash }) => similar_hash).filter(absentFrom(byHash)));
  return rows.map(({ id, similar_hash }) => {
    const hash = similar_hash.toString("hex");
    const own = fresh.get(id);
    if (own !== undefined && fresh.delete(id)) return { entry: toEntry(own), existed: false };
    const other = byHash.get(hash) ?? similar.get(hash);
    return other === undefined ? undefined : { entry: toEntry(other), existed: true };
  });
}

function absentFrom(byHash: ReadonlyMap<string, unknown>): (hash: Buffer) => boolean {
  return (hash) => !byHash.has(hash.toString("hex"));
}

async function findSimilar(db: Queries, hashes: readonly Buffer[]) {
  if (hashes.length === 0) return new Map<string, EntryRow>();
  const rows = await db.selectFrom("entries").selectAll().where("similar_hash", "in", hashes).execute();
  return new Map<string, EntryRow>(rows.map((row) => [row.similar_hash.toString("hex"), row]));
}

/** How many of them from the first on are of different entries. */
export function distinctLength(changes: readonly EntryChange[]): number {
  const ids = new Set<string>();
  for (const { id } of changes) {
    if (ids.has(id)) break;
    ids.add(id);
  }
  return ids.size;
}

/** Of different entries. What is wrong with one alone stands in its place. Belongs into a transaction. */
export async function updateEntries(db: Queries, changes: readonly EntryChange[]): Promise<readonly (Entry | Fault)[]> {
  const ids = changes.map(({ id }) => id);
  const held = await db
    .selectFrom("entries")
    .selectAll()
    .where(sql<boolean>`id = any(${ids}::text[])`)
    .orderBy("seq")
    .forUpdate()
    .execute();
  const rows = new Map(held.map((row) => [row.id, row]));
  const drafts = changes.map(({ id, change }) => changed(rows.get(id), change));
  const good = drafts.flatMap((draft, at) => (draft instanceof Fault ? [] : [{ id: ids[at], draft }]));
  await holdBundles(db, [...new Set(good.flatMap(({ draft }) => draft.federatesWith))]);
  const updated = await writeUpdates(
    db,
    good.map(({ id, draft }) => ({ id, ...entryColumns(draft) })),
  );
  return drafts.map((draft, at) => {
    if (draft instanceof Fault) return draft;
    const row = updated.get(ids[at] ?? "");
    return row === undefined ? notFound() : toEntry(row);
  });
}

function changed(row: EntryRow | undefined, change: EntryChange["change"]): EntryDraft | Fault {
  if (row === undefined) return notFound();
  try {
    return change(toEntry(row));
  } catch (error) {
    return Fault.from(error);
  }
}

function notFound(): Fault {
  return new Fault("not_found", "entry not found", { code: "entry-not-found" });
}

type Columns = ReturnType<typeof entryColumns>;

/** One statement, whose rows are read as rows of the table itself. */
async function writeUpdates(db: Queries, rows: readonly (Columns & { id: unknown })[]): Promise<Map<string, EntryRow>> {
  const [first] = rows;
  if (first === undefined) return new Map();
  const columns = Object.keys(first).filter((name) => name !== "id");
  const json = JSON.stringify(rows.map((row) => ({ ...row, similar_hash: `\\x${row.similar_hash.toString("hex")}` })));
  const set = sql.join(columns.map((name) => sql`${sql.ref(name)} = new.${sql.ref(name)}`));
  const { rows: updated } = await sql<EntryRow>`
    update entries set ${set}, revision_number = entries.revision_number + 1
    from jsonb_populate_recordset(null::entries, ${json}::jsonb) as new
    where entries.id = new.id
    returning entries.*`.execute(db);
  return new Map(updated.map((row) => [row.id, row]));
}

/** Locks the bundles against deletion until the transaction ends. Throws `precondition` when one is missing. */
async function holdBundles(db: Queries, trustDomains: readonly TrustDomain[]): Promise<void> {
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
