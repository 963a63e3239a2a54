import { existsSync } from "node:fs";
import { writeBaseImage } from "../../server/store/base-image.ts";
import { findPostgres, startCluster } from "./postgres.ts";

/**
 * Before any test: one PostgreSQL cluster for the whole run, and the base image of the embedded store, so that tests
 * do not each wait for a database to be made. Ends the cluster after the last test.
 */
export async function setup(): Promise<(() => Promise<void>) | undefined> {
  if (!existsSync(new URL("../../node_modules/.cache/steeple/base-image.gz", import.meta.url))) await writeBaseImage();
  const bin = await findPostgres();
  if (bin === undefined) {
    if (process.env["REQUIRE_POSTGRES"] === "1") throw new Error("REQUIRE_POSTGRES is set, and there is no PostgreSQL");
    console.log("tests on PostgreSQL are skipped: nothing in /usr/lib/postgresql");
    return undefined;
  }
  const cluster = await startCluster(bin);
  process.env["STEEPLE_TEST_POSTGRES"] = cluster.url;
  return async () => cluster[Symbol.asyncDispose]();
}
