import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { SqlStore } from "../../server/store/database.ts";
import { eventually } from "../support/eventually.ts";
import { createDatabase, type TestDatabase, withoutPostgres } from "../support/postgres.ts";
import { StoreChild } from "../support/store-child.ts";
import { draftOf, openTestStore, postgresConfig, selectorsOf } from "../support/store-data.ts";

const ROUND_MS = 1000;
const AT_ONCE = 10;

describe.skipIf(withoutPostgres)("of two processes on one database, one prunes at a time", () => {
  let database: TestDatabase;
  let store: SqlStore;
  let made = 0;
  beforeAll(async () => {
    database = await createDatabase();
    store = await openTestStore(postgresConfig(database.url));
  });
  afterAll(async () => {
    await store?.[Symbol.asyncDispose]();
    await database?.dispose();
  });

  const open = async (): Promise<StoreChild> => {
    const child = new StoreChild({ task: "janitor", config: postgresConfig(database.url), roundMs: ROUND_MS });
    await child.opened();
    return child;
  };

  /** Makes entries that have ended, waits until they are gone, and says which processes removed how many. */
  async function prunedBy(...children: readonly StoreChild[]): Promise<readonly number[]> {
    const before = children.map((child) => child.all("pruned").length);
    for (let index = 0; index < AT_ONCE; index += 1) {
      made += 1;
      const fields = { expiresAt: 1, selectors: selectorsOf(`x:${made}`) };
      await store.entries.create(draftOf(`n${made}`, fields));
    }
    const counts = (): readonly number[] =>
      children.map((child, index) => child.all("pruned").length - (before[index] ?? 0));
    const all = (): boolean => counts().reduce((sum, count) => sum + count, 0) >= AT_ONCE;
    await eventually("they are pruned", all, 30_000);
    return counts();
  }

  test("round after round the same one; killed, frozen or ended in order, the other takes over", async () => {
    await using one = await open();
    await using two = await open();
    const first = await prunedBy(one, two);
    expect([...first].sort((a, b) => a - b)).toEqual([0, AT_ONCE]);
    for (let round = 0; round < 2; round += 1) expect(await prunedBy(one, two)).toEqual(first);

    const [holder, other] = first[0] === AT_ONCE ? [one, two] : [two, one];
    await holder.kill();
    expect(await prunedBy(holder, other)).toEqual([0, AT_ONCE]);

    await using third = await open();
    expect(await prunedBy(other, third)).toEqual([AT_ONCE, 0]);
    process.kill(other.pid, "SIGSTOP");
    expect(await prunedBy(other, third)).toEqual([0, AT_ONCE]);
    process.kill(other.pid, "SIGCONT");
    for (let round = 0; round < 2; round += 1) expect(await prunedBy(other, third)).toEqual([0, AT_ONCE]);
  });
});
