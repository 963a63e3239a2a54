import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { DataStoreConfig } from "../../../server/store/database.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { StoreChild } from "../../support/store-child.ts";
import { postgresConfig } from "../../support/store-data.ts";

const ROUNDS = 20;

/** Kills a writer at a random point of its work, again and again; the next one reports what it finds. */
async function killWriters(config: DataStoreConfig): Promise<number> {
  const acknowledged = new Set<string>();
  for (let round = 0; round <= ROUNDS; round += 1) {
    await using writer = new StoreChild({ task: "write", config, prefix: `r${round}` });
    await writer.opened();
    const tokens = new Set(writer.all("token"));
    const lost = [...acknowledged].filter((name) => !tokens.has(name));
    expect(lost, `lost before round ${round}`).toEqual([]);
    expect(new Set(writer.all("alias")), "tokens and their aliases are stored together").toEqual(tokens);
    const enough = 5 + Math.floor(Math.random() * 60);
    await writer.until(`${enough} writes`, () => writer.all("ack").length >= enough);
    await writer.kill();
    for (const name of writer.all("ack")) acknowledged.add(name);
  }
  return acknowledged.size;
}

describe(`after kill -9 of a writer, ${ROUNDS} times, every acknowledged write is there, and none is there by half`, () => {
  test("on the embedded database", async () => {
    const directory = await mkdtemp(join(tmpdir(), "steeple-kill-"));
    try {
      expect(await killWriters({ kind: "embedded", directory })).toBeGreaterThan(ROUNDS * 5);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }, 240_000);

  test.skipIf(withoutPostgres)(
    "on PostgreSQL",
    async () => {
      await using database = await createDatabase();
      expect(await killWriters(postgresConfig(database.url))).toBeGreaterThan(ROUNDS * 5);
    },
    240_000,
  );
});
