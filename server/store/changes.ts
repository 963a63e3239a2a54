import { sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { type BundleRow, toBundle } from "./bundle-rows.ts";
import { checkReadable } from "./migrations.ts";
import { ENTRY_COLUMNS, type EntryRow, type NodeRow, sharingEntryReader, toEntry, toNode } from "./rows.ts";
import type { Queries, Session } from "./session.ts";
import type { AttestedNode, ChangeSet, ChangeStore, Snapshot } from "./store.ts";
import type { Waker } from "./wake.ts";

/** Rows of one read while everything is loaded. */
const LOAD_ROWS = 1000;
/** With more changes than this, loading everything costs less memory than one answer. */
const MAX_CHANGES = 50_000;

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
    const rows = await this.#session.read((db) => readChanges(db, last));
    const position = rows[0];
    const next = cursorOf(position);
    if (position?.history !== last.history || position.older) return "other";
    if (position.lost || rows.length > MAX_CHANGES) return "reload";
    return collect(next, rows);
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

interface ChangeRow extends Position {
  /** The database is as it was before the cursor. */
  readonly older: boolean;
  /** The log no longer reaches back to the cursor. */
  readonly lost: boolean;
  readonly kind: "entry" | "node" | "bundle" | "relationship" | null;
  readonly entity: string;
  /** Null when it was deleted. */
  readonly row: unknown;
}

async function readChanges(db: Queries, { snapshot, witness }: Cursor): Promise<readonly ChangeRow[]> {
  const [seq, xid] = (witness || "0:0:").split(":");
  const { rows } = await sql<ChangeRow>`
    with last as (select ${snapshot}::pg_snapshot as seen),
    position as (
      select ${POSITION},
        pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(seen)
          or horizon < ${xid}::xid8 and not exists (
            select from change_log where seq = ${seq}::bigint and ${WITNESS} = ${witness}
          ) as older,
        horizon >= pg_snapshot_xmin(seen) as lost
      from feed_state, last
    ),
    changed as (
      select kind, entity from change_log where xid >= (select pg_snapshot_xmax(seen) from last)
      union
      select kind, entity from change_log where xid = any(array(select pg_snapshot_xip(seen) from last))
      limit ${MAX_CHANGES + 1}
    )
    select history, snapshot, witness, standby, version, readable_from, older, lost, kind, entity,
      case kind
        when 'entry' then (select to_jsonb(e) from entries e where e.id = entity)
        when 'node' then (select to_jsonb(n) from attested_nodes n where n.spiffe_id = entity)
        when 'bundle' then (
          select to_jsonb(b) || jsonb_build_object('sequence_number', b.sequence_number::text)
          from bundles b where b.trust_domain = entity
        )
      end as row
    from position left join changed on not (older or lost)`.execute(db);
  return rows;
}

function collect(cursor: string, rows: readonly ChangeRow[]): ChangeSet {
  const entries = new Map<string, Entry | undefined>();
  const nodes = new Map<SpiffeId, AttestedNode | undefined>();
  const bundles = new Map<TrustDomain, Bundle | undefined>();
  for (const { kind, entity, row } of rows) {
    const gone = row === null;
    if (kind === "entry") entries.set(entity, gone ? undefined : toEntry(row as EntryRow));
    else if (kind === "node") nodes.set(entity as SpiffeId, gone ? undefined : toNode(row as NodeRow));
    else if (kind === "bundle") bundles.set(entity as TrustDomain, gone ? undefined : toBundle(row as BundleRow));
  }
  return { cursor, entries, nodes, bundles };
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
  const convert = sharingEntryReader();
  return async (db, after) => {
    const rows = db.selectFrom("entries").select(ENTRY_COLUMNS).where("seq", ">", after).orderBy("seq");
    return portion(await rows.limit(LOAD_ROWS).execute(), convert);
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
