import { sql } from "kysely";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { SqlStore } from "./database.ts";
import { SCHEMA_VERSION } from "./migrations.ts";
import type { Queries } from "./session.ts";

/** What makes up a store, in the order in which it is written and read back. */
const TABLES = [
  "bundles",
  "entries",
  "attested_nodes",
  "join_tokens",
  "federation_relationships",
  "authorities",
  "bundle_links",
] as const;
type Table = (typeof TABLES)[number];

const FORMAT = "steeple-store";
/** Rows in one query, and lines in one insert. */
const ROWS = 500;
const MAX_LINE = 16 * 1024 * 1024;

/** First line, one line for each row, last line. */
type Line =
  | { readonly format: typeof FORMAT; readonly schema: number }
  | { readonly table: Table; readonly row: unknown }
  | { readonly rows: number };

/** The whole store as JSON lines, without line ends, as of one moment. It has join tokens in it: keep it private. */
export async function* exportStore(store: SqlStore): AsyncGenerator<string, void, undefined> {
  // A generator cannot run inside the transaction's callback, so lines pass through a stream of batches.
  const { readable, writable } = new TransformStream<readonly string[], readonly string[]>();
  const writer = writable.getWriter();
  const done = store.session
    .snapshot((db) => writeLines(db, (lines) => writer.write(lines)))
    .then(() => writer.close())
    .catch((error: unknown) => writer.abort(error).catch(() => undefined));
  try {
    for await (const lines of readable) yield* lines;
  } finally {
    await done;
  }
}

async function writeLines(db: Queries, write: (lines: readonly string[]) => Promise<void>): Promise<void> {
  await write([JSON.stringify({ format: FORMAT, schema: SCHEMA_VERSION } satisfies Line)]);
  let count = 0;
  for (const table of TABLES) {
    for (let after: string | undefined = "0"; after !== undefined; ) {
      const { rows }: { rows: { seq: string; line: string }[] } = await sql<{ seq: string; line: string }>`
        select seq, jsonb_build_object('table', ${table}::text, 'row', to_jsonb(t))::text as line
        from ${sql.table(table)} t where seq > ${after} order by seq limit ${ROWS}`.execute(db);
      count += rows.length;
      await write(rows.map(({ line }) => line));
      after = rows.length < ROWS ? undefined : rows.at(-1)?.seq;
    }
  }
  await write([JSON.stringify({ rows: count } satisfies Line)]);
}

/**
 * Fills an empty store from an export, all or nothing. Throws `precondition` when the store holds something or the
 * export is of another schema, `invalid` when it is not a whole export. Returns the number of rows.
 */
export function importStore(store: SqlStore, lines: AsyncIterable<string> | Iterable<string>): Promise<number> {
  return store.session.transaction(async (db) => {
    await claimEmpty(db);
    const count = await readLines(db, lines);
    await settle(db);
    return count;
  });
}

async function readLines(db: Queries, lines: AsyncIterable<string> | Iterable<string>): Promise<number> {
  let batch: { readonly table: Table; readonly lines: string[] } | undefined;
  let state: "start" | "rows" | "end" = "start";
  let count = 0;
  for await (const text of lines) {
    const line = parseLine(text, count);
    if (state === "start") checkHeader(line);
    else if (state === "end") throw broken(count, "something follows the last line");
    else if ("table" in line) {
      if (batch !== undefined && (batch.table !== line.table || batch.lines.length === ROWS)) {
        await insertLines(db, batch.table, batch.lines);
        batch = undefined;
      }
      batch ??= { table: line.table, lines: [] };
      batch.lines.push(text);
      count += 1;
    } else if (!("rows" in line) || line.rows !== count) throw broken(count, "rows are missing");
    state = "rows" in line ? "end" : "rows";
  }
  if (state !== "end") throw broken(count, "the end is missing");
  if (batch !== undefined) await insertLines(db, batch.table, batch.lines);
  return count;
}

function parseLine(text: string, count: number): Line {
  if (text.length > MAX_LINE) throw broken(count, "a line is too long");
  try {
    const line = JSON.parse(text) as Line;
    if ("table" in line && !TABLES.includes(line.table)) throw new Error("unknown table");
    return line;
  } catch (error) {
    throw broken(count, messageOf(error));
  }
}

function checkHeader(line: Line): void {
  if (!("format" in line) || line.format !== FORMAT) throw broken(0, "the first line is missing");
  if (line.schema === SCHEMA_VERSION) return;
  throw new Fault("precondition", `the export has schema version ${line.schema}, and this program ${SCHEMA_VERSION}`, {
    code: "export-schema",
    hint: "import it with the release that wrote it, then start this one on that store",
  });
}

/** The lines go to the database as they are: JavaScript's numbers would lose digits. */
async function insertLines(db: Queries, table: Table, lines: readonly string[]): Promise<void> {
  await sql`
    insert into ${sql.table(table)}
    select r.* from jsonb_array_elements(${`[${lines.join(",")}]`}::jsonb) line,
      jsonb_populate_record(null::${sql.table(table)}, line -> 'row') r`.execute(db);
}

/** Nobody else can write from here to the end of the transaction. */
async function claimEmpty(db: Queries): Promise<void> {
  for (const table of TABLES) {
    await sql`lock table ${sql.table(table)} in exclusive mode`.execute(db);
    const { rows } = await sql`select 1 from ${sql.table(table)} limit 1`.execute(db);
    if (rows.length > 0) {
      throw new Fault("precondition", `the store is not empty: ${table} has rows`, {
        code: "store-not-empty",
        hint: "import into a new database or a new folder",
      });
    }
  }
}

/** An older state must not look like the continuation of what was published since (TDB-07), nor of the feed. */
async function settle(db: Queries): Promise<void> {
  for (const table of TABLES) {
    await sql`
      select setval(pg_get_serial_sequence(${table}, 'seq'), max(seq)) from ${sql.table(table)}
      having max(seq) is not null`.execute(db);
  }
  await sql`
    update bundles set sequence_number = greatest(sequence_number + 1, floor(extract(epoch from now())))`.execute(db);
  await sql`update feed_state set epoch = gen_random_uuid()::text`.execute(db);
}

function broken(count: number, what: string): Fault {
  return new Fault("invalid", `the export is broken after ${count} rows: ${what}`, {
    code: "export-broken",
    hint: "make it again",
  });
}
