import { afterAll, beforeAll, describe } from "vitest";
import type { SqlStore } from "../../../server/store/database.ts";
import { storeContract } from "../../contract/store.ts";
import { SteppedClock } from "../../support/clock.ts";
import { createDatabase, type TestDatabase, withoutPostgres } from "../../support/postgres.ts";
import { openTestStore, postgresConfig } from "../../support/store-data.ts";

describe.skipIf(withoutPostgres)("PostgreSQL", () => {
  let database: TestDatabase;
  const clock = new SteppedClock();
  let store: SqlStore;

  beforeAll(async () => {
    database = await createDatabase();
    store = await openTestStore(postgresConfig(database.url), { clock });
  });

  afterAll(async () => {
    await store?.[Symbol.asyncDispose]();
    await database?.dispose();
  });

  storeContract("PostgreSQL", () => ({
    store,
    clock,
    async reopen() {
      await store[Symbol.asyncDispose]();
      store = await openTestStore(postgresConfig(database.url), { clock });
    },
  }));
});
