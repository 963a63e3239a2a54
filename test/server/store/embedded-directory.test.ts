import fs, { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { EmbeddedServer } from "../../../server/store/embedded.ts";
import { openEngine } from "../../../server/store/embedded-engine.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { StoreChild } from "../../support/store-child.ts";
import { draftOf, openTestStore } from "../../support/store-data.ts";

let directory: string;
const open = () => openTestStore({ kind: "embedded", directory });
const pgdata = () => join(directory, "pgdata");

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "steeple-embedded-"));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

describe("the embedded database's directory", () => {
  test("a second process is refused, naming the first; a dead one's lock is taken over", async () => {
    await using holder = new StoreChild({ task: "hold", config: { kind: "embedded", directory } });
    await holder.opened();
    const fault = await faultFrom(open());
    expect(fault).toMatchObject(refusal("precondition", "directory-locked"));
    expect(fault.message).toContain(`process ${holder.pid}`);
    await holder.kill();
    await using store = await open();
    await store.entries.create(draftOf("after"));
  });

  test("a second opener in the same process is refused; after closing it opens again with what was stored", async () => {
    const first = await open();
    const { entry } = await first.entries.create(draftOf("one"));
    expect(await faultFrom(open())).toMatchObject(refusal("precondition", "directory-locked"));
    expect(await first.entries.find(entry.id)).toEqual(entry);
    await first[Symbol.asyncDispose]();
    await using second = await open();
    expect(await second.entries.find(entry.id)).toEqual(entry);
  });

  test("T-F3 nobody else can look inside", async () => {
    await using store = await open();
    await store.ping();
    for (const path of [directory, pgdata()]) expect((await stat(path)).mode & 0o077).toBe(0);
  });

  test("what a crash left of a database that was being made is made anew", async () => {
    const draft = `${pgdata()}.new`;
    await mkdir(draft, { recursive: true, mode: 0o700 });
    await writeFile(join(draft, "PG_VERSION"), "18\n");
    await using store = await open();
    await store.entries.create(draftOf("one"));
    expect(existsSync(draft)).toBe(false);
  });

  test("a directory that is not a database is refused and left as it is", async () => {
    await mkdir(pgdata(), { recursive: true, mode: 0o700 });
    await writeFile(join(pgdata(), "precious"), "data");
    const fault = await faultFrom(open());
    expect(fault).toMatchObject(refusal("precondition", "embedded-open"));
    expect(await readdir(pgdata())).toEqual(["precious"]);
  });

  test("a database of another release is refused, naming it, with the way out", async () => {
    await (await open())[Symbol.asyncDispose]();
    await writeFile(join(pgdata(), "PG_VERSION"), "17\n");
    const fault = await faultFrom(open());
    expect(fault).toMatchObject(refusal("precondition", "embedded-open"));
    expect(fault.hint).toContain("PostgreSQL 17");
    expect(fault.hint).toContain("export");
  });
});

test("every commit reaches the disk before it is answered", async () => {
  await mkdir(pgdata(), { recursive: true });
  const { fdatasyncSync } = fs;
  let syncs = 0;
  fs.fdatasyncSync = (descriptor) => {
    syncs += 1;
    fdatasyncSync(descriptor);
  };
  syncBuiltinESMExports();
  try {
    const engine = await openEngine(pgdata());
    await engine.exec("create table t (n integer)");
    for (let commit = 1; commit <= 20; commit += 1) {
      const before = syncs;
      await engine.query("insert into t values ($1)", [commit]);
      expect(syncs).toBeGreaterThan(before);
    }
    const before = syncs;
    await engine.query("select * from t");
    expect(syncs).toBe(before);
    await engine.close();
  } finally {
    fs.fdatasyncSync = fdatasyncSync;
    syncBuiltinESMExports();
  }
});

test("closing right after an answer gives nothing up", async () => {
  const log = new RecordingLog();
  for (let round = 0; round < 5; round += 1) {
    await using server = await EmbeddedServer.open(directory, log);
    const pool = server.pool();
    await pool.query("select $1::int", [round]);
    await pool.end();
  }
  expect(log.lines).toEqual([]);
});

test("a statement that never ends is given up with its engine; the next one gets a new engine and all commits", async () => {
  const log = new RecordingLog();
  await using server = await EmbeddedServer.open(directory, log);
  const pool = server.pool();
  await pool.query("create table t (n integer)");
  await pool.query("insert into t values (1)");
  const client = await pool.connect();
  const endless = client.query("select count(*) from generate_series(1, 1000000000000)");
  const failure = expect(endless).rejects.toThrow("Connection terminated");
  client.release(true);
  await failure;
  expect((await pool.query("select n from t")).rows).toEqual([{ n: 1 }]);
  expect(log.lines).toMatchObject([{ level: "warn" }]);
  await pool.end();
});
