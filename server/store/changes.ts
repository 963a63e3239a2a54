import { type RawBuilder, sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { type BundleRow, toBundle } from "./bundle-rows.ts";
import { checkReadable } from "./migrations.ts";
import {
  type EntryRow,
  LOADED_ENTRY,
  type LoadedEntryRow,
  loadedEntryReader,
  type NodeRow,
  toEntry,
  toNode,
} from "./rows.ts";
import type { Queries, Session } from "./session.ts";
import type { AttestedNode, ChangeSet, ChangeStore, Snapshot } from "./store.ts";
import type { Waker } from "./wake.ts";

/** Rows of one read: while they are taken in, nothing else is done. */
const LOAD_ROWS = 1000;
/** With more changes than this, loading everything costs less memory than one answer. */
const MAX_CHANGES = 100_000;

/**
 * The cursor is the history (epoch, cluster, timeline), the snapshot of the last read and the newest log row that it
 * saw. What is visible now and was not then was written by a transaction that was running then (`xip`) or had not begun
 * (at or after `xmax`): the two branches of the query. Late commits, rollbacks and gaps need no care. A copy of the
 * database from before the cursor has the same history: it is behind the snapshot, or once it has caught up with that
 * it lacks the log row.
 */
export class SqlChangeStore implements ChangeStore {
  readonly #session: Session;
  readonly #waker: Waker;

  constructor(session: Session, waker: Waker) {
    this.#session = session;
    this.#waker = waker;
  }

  load<T>(receive: (snapshot: Snapshot) => Promise<T>): Promise<T> {
    return this.#session.snapshot(async (db) => {
      const { rows } = await sql<Position>`
        select ${POSITION} from feed_state`.execute(db);
      return receive({
        cursor: cursorOf(rows[0]),
        entries: allRows(db, entriesReader()),
        nodes: allRows(db, readNodes),
        bundles: allRows(db, readBundles),
      });
    });
  }

  async since(cursor: string): Promise<ChangeSet | "reload" | "other"> {
    const last = split(cursor);
    if (last === undefined) return "reload";
    const few = await this.#session.read((db) => readFew(db, last));
    const set = comparedTo(last, few[0]);
    if (typeof set === "string") return set;
    if (few.length > LOAD_ROWS) return this.#session.snapshot((db) => manySince(db, last));
    set.take(few);
    return set;
  }

  wake(signal: AbortSignal): AsyncIterable<void> {
    return this.#waker.wake(signal);
  }

  /**
   * Keeps rows of transactions that a reader may still wait for. Rows from the future are left from another cluster.
   */
  prune(before: Date): Promise<number> {
    return this.#session.transaction(async (db) => {
      const { rows } = await sql<{ count: string }>`
        with gone as (
          delete from change_log
          where (at < ${before} and xid < pg_snapshot_xmin(pg_current_snapshot()))
             or xid >= pg_snapshot_xmax(pg_current_snapshot())
          returning xid
        ), moved as (
          update feed_state
          set horizon = greatest(horizon, (
            select xid from gone where xid < pg_snapshot_xmax(pg_current_snapshot()) order by xid desc limit 1
          ))
          where exists (select from gone)
        )
        select count(*) as count from gone`.execute(db);
      return Number(rows[0]?.count ?? 0);
    });
  }
}

interface Position {
  readonly history: string;
  readonly snapshot: string;
  /** Newest row of the log; empty when there is none. */
  readonly witness: string;
  /** A copy that replays another database may lag behind what was already served from that. */
  readonly standby: boolean;
  readonly version: number;
  readonly readable_from: number;
}

const WITNESS = sql`seq || ':' || xid || ':' || extract(epoch from at)`;
const POSITION = sql`
  epoch || ':' || feed_origin() || ':' || feed_timeline() as history,
  pg_current_snapshot()::text as snapshot,
  coalesce((select ${WITNESS} from change_log order by seq desc limit 1), '') as witness,
  pg_is_in_recovery() as standby,
  (select version from schema_meta) as version,
  (select readable_from from schema_meta) as readable_from`;

interface Cursor {
  readonly history: string;
  readonly snapshot: string;
  readonly witness: string;
}

/** Where the database is, seen from a cursor. */
interface Relation extends Position {
  /** It is as it was before the cursor. */
  readonly older: boolean;
  /** The log no longer reaches back to the cursor. */
  readonly lost: boolean;
}

interface ChangeRow {
  readonly kind: "entry" | "node" | "bundle" | "relationship" | null;
  readonly entity: string;
  /** Null when it was deleted. */
  readonly row: unknown;
}

function relationTo({ snapshot, witness }: Cursor): RawBuilder<Relation> {
  const [seq, xid] = (witness || "0:0:").split(":");
  return sql`
    select ${POSITION},
      pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(seen)
        or horizon < ${xid}::xid8 and not exists (
          select from change_log where seq = ${seq}::bigint and ${WITNESS} = ${witness}
        ) as older,
      horizon >= pg_snapshot_xmin(seen) as lost
    from feed_state, (select ${snapshot}::pg_snapshot as seen) last`;
}

function changedSince({ snapshot }: Cursor, limit: number): RawBuilder<unknown> {
  const seen = sql`${snapshot}::pg_snapshot`;
  return sql`
    select kind, entity from change_log where xid >= pg_snapshot_xmax(${seen})
    union
    select kind, entity from change_log where xid = any(array(select pg_snapshot_xip(${seen})))
    limit ${limit}`;
}

const ROW = sql`
  case kind
    when 'entry' then (select to_jsonb(e) from entries e where e.id = entity)
    when 'node' then (select to_jsonb(n) from attested_nodes n where n.spiffe_id = entity)
    when 'bundle' then (
      select to_jsonb(b) || jsonb_build_object('sequence_number', b.sequence_number::text)
      from bundles b where b.trust_domain = entity
    )
  end as row`;

/** In one statement, for there are few as a rule; one row more than `LOAD_ROWS` when there are more. */
async function readFew(db: Queries, last: Cursor): Promise<readonly (Relation & ChangeRow)[]> {
  const { rows } = await sql<Relation & ChangeRow>`
    with position as (${relationTo(last)}), changed as (${changedSince(last, LOAD_ROWS + 1)})
    select position.*, kind, entity, ${ROW}
    from position left join changed on not (older or lost)`.execute(db);
  return rows;
}

/** In portions of `LOAD_ROWS`, of one snapshot. */
async function* readMany(db: Queries, last: Cursor): AsyncGenerator<readonly ChangeRow[], void, undefined> {
  await sql`declare changes no scroll cursor for
    select kind, entity, ${ROW} from (${changedSince(last, MAX_CHANGES + 1)}) changed`.execute(db);
  for (let count = LOAD_ROWS; count === LOAD_ROWS; ) {
    const { rows } = await sql<ChangeRow>`fetch 1000 from changes`.execute(db);
    count = rows.length;
    yield rows;
  }
}

async function manySince(db: Queries, last: Cursor): Promise<ChangeSet | "reload" | "other"> {
  const { rows } = await relationTo(last).execute(db);
  const set = comparedTo(last, rows[0]);
  if (typeof set === "string") return set;
  let count = 0;
  for await (const portion of readMany(db, last)) {
    count += portion.length;
    if (count > MAX_CHANGES) return "reload";
    set.take(portion);
  }
  return set;
}

/** Of where the database is, the empty set; or why there is none. Throws as `cursorOf`. */
function comparedTo(last: Cursor, position: Relation | undefined): Collected | "reload" | "other" {
  const next = cursorOf(position);
  if (position?.history !== last.history || position.older) return "other";
  return position.lost ? "reload" : new Collected(next);
}

/** Takes rows in as they come. */
class Collected implements ChangeSet {
  readonly cursor: string;
  readonly entries = new Map<string, Entry | undefined>();
  readonly nodes = new Map<SpiffeId, AttestedNode | undefined>();
  readonly bundles = new Map<TrustDomain, Bundle | undefined>();

  constructor(cursor: string) {
    this.cursor = cursor;
  }

  take(rows: readonly ChangeRow[]): void {
    for (const { kind, entity, row } of rows) {
      const gone = row === null;
      if (kind === "entry") this.entries.set(entity, gone ? undefined : toEntry(row as EntryRow));
      else if (kind === "node") this.nodes.set(entity as SpiffeId, gone ? undefined : toNode(row as NodeRow));
      else if (kind === "bundle")
        this.bundles.set(entity as TrustDomain, gone ? undefined : toBundle(row as BundleRow));
    }
  }
}

/** Throws `unavailable` for a standby, `precondition` for a schema that this program must not work on. */
function cursorOf(position: Position | undefined): string {
  if (position === undefined) throw new Error("feed_state has no row");
  checkReadable(position);
  if (position.standby) {
    throw new Fault("unavailable", "the datastore is a read-only standby", {
      code: "datastore-standby",
      hint: "name the primary in connection_string, or promote this one",
    });
  }
  return `${position.history}/${position.snapshot}/${position.witness}`;
}

/** Undefined when the text is not a cursor. */
function split(cursor: string): Cursor | undefined {
  const [history = "", snapshot = "", witness = ""] = cursor.split("/");
  const isCursor = /^\d{1,20}:\d{1,20}:[\d,]*$/.test(snapshot) && /^(\d{1,20}:\d{1,20}:[\d.]+)?$/.test(witness);
  return isCursor ? { history, snapshot, witness } : undefined;
}

interface Portion<T> {
  readonly items: readonly T[];
  /** Undefined at the end. */
  readonly next: string | undefined;
}
type ReadPortion<T> = (db: Queries, after: string) => Promise<Portion<T>>;

/** While one portion is worked on, the next is under way. */
async function* allRows<T>(db: Queries, read: ReadPortion<T>): AsyncGenerator<readonly T[], void, undefined> {
  let portion = await read(db, "0");
  while (portion.next !== undefined) {
    const following = read(db, portion.next);
    // Whoever stops early does not wait for it.
    following.catch(() => undefined);
    yield portion.items;
    portion = await following;
  }
  yield portion.items;
}

function portion<Row extends { readonly seq: string }, T>(rows: readonly Row[], convert: (row: Row) => T): Portion<T> {
  return { items: rows.map(convert), next: rows.length < LOAD_ROWS ? undefined : rows.at(-1)?.seq };
}

function entriesReader(): ReadPortion<Entry> {
  const convert = loadedEntryReader();
  return async (db, after) => {
    const { rows } = await sql<LoadedEntryRow>`
      select ${LOADED_ENTRY} from entries where seq > ${after} order by seq limit ${LOAD_ROWS}`.execute(db);
    return portion(rows, convert);
  };
}

const readNodes: ReadPortion<AttestedNode> = async (db, after) => {
  const query = db.selectFrom("attested_nodes").selectAll().where("seq", ">", after).orderBy("seq").limit(LOAD_ROWS);
  return portion(await query.execute(), toNode);
};

const readBundles: ReadPortion<Bundle> = async (db, after) => {
  const query = db.selectFrom("bundles").selectAll().where("seq", ">", after).orderBy("seq").limit(LOAD_ROWS);
  return portion(await query.execute(), toBundle);
};
