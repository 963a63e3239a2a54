import type { PostgresPool, PostgresPoolClient } from "kysely";
import type pg from "pg";
import { messageOf } from "../../src/runtime/fault.ts";

/**
 * A statement that timed out still runs, and blocks its connection: whatever follows on it fails at once, and it
 * leaves the pool. `surplus` tells whether a connection that comes back is one too many.
 */
export function guardPool(pool: pg.Pool, surplus: () => boolean): PostgresPool {
  return {
    end: () => pool.end(),
    connect: async () => guardClient(await pool.connect(), surplus),
    options: pool.options,
  };
}

function guardClient(client: pg.PoolClient, surplus: () => boolean): PostgresPoolClient {
  let stuck = false;
  const query = async (text: string, values: readonly unknown[]): Promise<unknown> => {
    if (stuck) throw new Error("Connection terminated");
    try {
      return await client.query(text, [...values]);
    } catch (error) {
      stuck ||= messageOf(error) === "Query read timeout";
      throw error;
    }
  };
  return {
    query: query as PostgresPoolClient["query"],
    release: (destroy) => client.release(destroy === true || stuck || surplus()),
  };
}
