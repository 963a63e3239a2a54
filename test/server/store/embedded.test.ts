import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";
import type { SqlStore } from "../../../server/store/database.ts";
import { storeContract } from "../../contract/store.ts";
import { SteppedClock } from "../../support/clock.ts";
import { openTestStore } from "../../support/store-data.ts";

let directory: string;
const clock = new SteppedClock();
let store: SqlStore;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "steeple-store-"));
  store = await openTestStore({ kind: "embedded", directory }, { clock });
});

afterAll(async () => {
  await store?.[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
});

storeContract("the embedded database", () => ({
  store,
  clock,
  async reopen() {
    await store[Symbol.asyncDispose]();
    store = await openTestStore({ kind: "embedded", directory }, { clock });
  },
}));
