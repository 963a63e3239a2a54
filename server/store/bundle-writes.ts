import { sql } from "kysely";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { bundleText, toBundle } from "./bundle-rows.ts";
import type { Queries } from "./session.ts";

/** First half of the advisory lock that stands for a bundle; the second is the hash of its trust domain. */
const BUNDLE_LOCK = 0x62756e;

/** Until the transaction ends. The lock is on the name, so that it also holds while there is no row. */
export async function lockBundle(db: Queries, trustDomain: TrustDomain): Promise<void> {
  await sql`select pg_advisory_xact_lock(${BUNDLE_LOCK}::integer, hashtext(${trustDomain}))`.execute(db);
}

export async function findBundle(db: Queries, trustDomain: TrustDomain): Promise<Bundle | undefined> {
  const row = await db.selectFrom("bundles").selectAll().where("trust_domain", "=", trustDomain).executeTakeFirst();
  return row === undefined ? undefined : toBundle(row);
}

/** What is stored under the name, which nobody else changes before the transaction ends. */
export async function lockedBundle(db: Queries, trustDomain: TrustDomain): Promise<Bundle | undefined> {
  await lockBundle(db, trustDomain);
  return findBundle(db, trustDomain);
}

/** Inserts or replaces the row. The name is locked. */
export async function writeBundle(db: Queries, bundle: Bundle): Promise<Bundle> {
  const columns = { content: bundleText(bundle), sequence_number: bundle.sequenceNumber.toString() };
  const row = await db
    .insertInto("bundles")
    .values({ trust_domain: bundle.trustDomain, ...columns })
    .onConflict((conflict) => conflict.column("trust_domain").doUpdateSet(columns))
    .returningAll()
    .executeTakeFirstOrThrow();
  return toBundle(row);
}

/** Writes nothing when nothing differs. The name is locked. */
export async function putForeignBundle(db: Queries, current: Bundle | undefined, next: Bundle): Promise<Bundle> {
  const same =
    current !== undefined && current.sequenceNumber === next.sequenceNumber && bundleText(current) === bundleText(next);
  return same ? current : writeBundle(db, next);
}
