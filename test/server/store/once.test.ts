import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { JoinToken, TokenStore } from "../../../server/store/store.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { openTestStore, postgresConfig } from "../../support/store-data.ts";

const CALLERS = 1000;
const TOKEN: JoinToken = { token: "once", expiresAt: new Date("2030-01-01T00:00:00Z") };

/** How many of 1,000 callers, spread over the servers, get the token. */
async function successes(
  servers: readonly { readonly tokens: TokenStore }[],
  round = "first",
): Promise<readonly JoinToken[]> {
  const results = await Promise.all(
    Array.from({ length: CALLERS }, (_, index) =>
      servers[index % servers.length]?.tokens.consume(TOKEN.token, `${round} ${index}`),
    ),
  );
  expect(results).toHaveLength(CALLERS);
  return results.filter((token) => token !== undefined);
}

describe("T-N3 of 1,000 callers that use one join token at the same time, one succeeds", () => {
  test.skipIf(withoutPostgres)(
    "on three servers that share PostgreSQL",
    async () => {
      await using database = await createDatabase();
      await using one = await openTestStore(postgresConfig(database.url));
      await using two = await openTestStore(postgresConfig(database.url));
      await using three = await openTestStore(postgresConfig(database.url));
      await one.tokens.create(TOKEN);
      expect(await successes([one, two, three])).toEqual([TOKEN]);
      expect(await successes([three, two, one], "second")).toEqual([]);
    },
    180_000,
  );

  test("on the embedded database", async () => {
    const directory = await mkdtemp(join(tmpdir(), "steeple-once-"));
    {
      await using store = await openTestStore({ kind: "embedded", directory });
      await store.tokens.create(TOKEN);
      expect(await successes([store])).toEqual([TOKEN]);
      expect(await successes([store], "second")).toEqual([]);
    }
    await rm(directory, { recursive: true });
  }, 180_000);
});
