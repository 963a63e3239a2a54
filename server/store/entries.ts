import { type ExpressionBuilder, sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import { distinctLength, insertEntries, insertEntry, updateEntries } from "./entry-writes.ts";
import { pageOf, positionOf, sizeOf } from "./paging.ts";
import { selectorTexts, toEntry } from "./rows.ts";
import type { Schema } from "./schema.ts";
import type { Session } from "./session.ts";
import { matchesSet } from "./sets.ts";
import type { CreatedEntry, EntryChange, EntryFilter, EntryStore, Page, PageRequest } from "./store.ts";

/** Inserted by one statement. */
const MAX_ROWS = 500;

export class SqlEntryStore implements EntryStore {
  readonly #session: Session;
  readonly #now: () => Date;

  constructor(session: Session, now: () => Date) {
    this.#session = session;
    this.#now = now;
  }

  create(draft: EntryDraft): Promise<CreatedEntry> {
    const federates = draft.federatesWith.length > 0;
    const insert = (db: Parameters<typeof insertEntry>[0]) => insertEntry(db, draft, this.#now());
    return federates ? this.#session.transaction(insert) : this.#session.write(insert);
  }

  /** What one transaction cannot take is halved until the drafts that are to blame stand alone. */
  async createMany(drafts: readonly EntryDraft[]): Promise<readonly (CreatedEntry | Fault)[]> {
    if (drafts.length === 0) return [];
    try {
      if (drafts.length <= MAX_ROWS)
        return await this.#session.transaction((db) => insertEntries(db, drafts, this.#now()));
    } catch (error) {
      const fault = Fault.from(error);
      if (drafts.length === 1 || fault.kind === "unavailable") return drafts.map(() => fault);
    }
    const half = Math.ceil(drafts.length / 2);
    return [...(await this.createMany(drafts.slice(0, half))), ...(await this.createMany(drafts.slice(half)))];
  }

  async find(id: string): Promise<Entry | undefined> {
    const row = await this.#session.read((db) =>
      db.selectFrom("entries").selectAll().where("id", "=", id).executeTakeFirst(),
    );
    return row === undefined ? undefined : toEntry(row);
  }

  async list(filter: EntryFilter, page?: PageRequest): Promise<Page<Entry>> {
    const rows = await this.#session.read((db) => {
      const all = db.selectFrom("entries").selectAll().where(conditions(filter)).orderBy("seq");
      if (page === undefined) return all.execute();
      return all
        .where("seq", ">", positionOf(page.token))
        .limit(sizeOf(page) + 1)
        .execute();
    });
    return pageOf(rows, toEntry, page);
  }

  async count(filter: EntryFilter): Promise<number> {
    const row = await this.#session.read((db) =>
      db.selectFrom("entries").select(sql<string>`count(*)`.as("count")).where(conditions(filter)).executeTakeFirst(),
    );
    return Number(row?.count ?? 0);
  }

  async update(id: string, change: (current: Entry) => EntryDraft): Promise<Entry> {
    const [outcome = new Fault("internal", "the store gave no result")] = await this.updateMany([{ id, change }]);
    if (outcome instanceof Fault) throw outcome;
    return outcome;
  }

  /** What one transaction cannot take is halved until the changes that are to blame stand alone. */
  async updateMany(changes: readonly EntryChange[]): Promise<readonly (Entry | Fault)[]> {
    if (changes.length === 0) return [];
    const apart = distinctLength(changes);
    const isWhole = apart === changes.length && apart <= MAX_ROWS;
    try {
      if (isWhole) return await this.#session.transaction((db) => updateEntries(db, changes));
    } catch (error) {
      const fault = Fault.from(error);
      if (changes.length === 1 || fault.kind === "unavailable") return changes.map(() => fault);
    }
    const half = isWhole ? Math.ceil(changes.length / 2) : Math.min(apart, MAX_ROWS);
    return [...(await this.updateMany(changes.slice(0, half))), ...(await this.updateMany(changes.slice(half)))];
  }

  async delete(id: string): Promise<Entry | undefined> {
    const row = await this.#session.write((db) =>
      db.deleteFrom("entries").where("id", "=", id).returningAll().executeTakeFirst(),
    );
    return row === undefined ? undefined : toEntry(row);
  }

  async deleteMany(ids: readonly string[]): Promise<ReadonlySet<string>> {
    if (ids.length === 0) return new Set();
    const rows = await this.#session.write((db) =>
      db
        .deleteFrom("entries")
        .where(sql<boolean>`id = any(${[...ids]}::text[])`)
        .returning("id")
        .execute(),
    );
    return new Set(rows.map(({ id }) => id));
  }

  async prune(now: Date, limit: number): Promise<readonly Entry[]> {
    const rows = await this.#session.write((db) =>
      db
        .deleteFrom("entries")
        .where("seq", "in", (expired) =>
          expired
            .selectFrom("entries")
            .select("seq")
            .where("expires_at", ">", "0")
            .where("expires_at", "<", String(Math.floor(now.getTime() / 1000)))
            .orderBy("expires_at")
            .limit(limit)
            .forUpdate()
            .skipLocked(),
        )
        .returningAll()
        .execute(),
    );
    return rows.map(toEntry);
  }
}

function conditions(filter: EntryFilter) {
  return (eb: ExpressionBuilder<Schema, "entries">) => {
    const { spiffeId, parentId, selectors, federatesWith, hint, downstream } = filter;
    return eb.and([
      ...(spiffeId === undefined ? [] : [eb("spiffe_id", "=", spiffeId)]),
      ...(parentId === undefined ? [] : [eb("parent_id", "=", parentId)]),
      ...(hint === undefined ? [] : [eb("hint", "=", hint)]),
      ...(downstream === undefined ? [] : [eb("downstream", "=", downstream)]),
      ...(selectors === undefined
        ? []
        : [matchesSet(eb.ref("selectors"), selectors.match, selectorTexts(selectors.selectors))]),
      ...(federatesWith === undefined
        ? []
        : [matchesSet(eb.ref("federates_with"), federatesWith.match, federatesWith.trustDomains)]),
    ]);
  };
}
