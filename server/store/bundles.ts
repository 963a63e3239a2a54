import { type RawBuilder, sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { type BundleContent, bundleText, toBundle } from "./bundle-rows.ts";
import { findBundle, lockBundle, lockedBundle, putForeignBundle, writeBundle } from "./bundle-writes.ts";
import { pageOf, positionOf, sizeOf } from "./paging.ts";
import type { Queries, Session } from "./session.ts";
import type { BundleDeleteMode, BundleFilter, BundleStore, Page, PageRequest } from "./store.ts";

export class SqlBundleStore implements BundleStore {
  readonly #session: Session;
  readonly #now: () => Date;

  constructor(session: Session, now: () => Date) {
    this.#session = session;
    this.#now = now;
  }

  find(trustDomain: TrustDomain): Promise<Bundle | undefined> {
    return this.#session.read((db) => findBundle(db, trustDomain));
  }

  async list({ except }: BundleFilter, page?: PageRequest): Promise<Page<Bundle>> {
    const rows = await this.#session.read((db) => {
      const every = db.selectFrom("bundles").selectAll().orderBy("seq");
      const all = except === undefined ? every : every.where("trust_domain", "<>", except);
      if (page === undefined) return all.execute();
      return all
        .where("seq", ">", positionOf(page.token))
        .limit(sizeOf(page) + 1)
        .execute();
    });
    return pageOf(rows, toBundle, page);
  }

  async count(): Promise<number> {
    const row = await this.#session.read((db) =>
      db.selectFrom("bundles").select(sql<string>`count(*)`.as("count")).executeTakeFirst(),
    );
    return Number(row?.count ?? 0);
  }

  change(trustDomain: TrustDomain, change: (current: Bundle | undefined) => BundleContent): Promise<Bundle> {
    return this.#session.transaction(async (db) => {
      const current = await lockedBundle(db, trustDomain);
      const content = change(current);
      if (current !== undefined && bundleText(current) === bundleText(content)) return current;
      return writeBundle(db, { ...content, trustDomain, sequenceNumber: nextSequence(current, this.#now()) });
    });
  }

  changeForeign(
    trustDomain: TrustDomain,
    change: (current: Bundle | undefined) => Omit<Bundle, "trustDomain">,
  ): Promise<Bundle> {
    return this.#session.transaction(async (db) => {
      const current = await lockedBundle(db, trustDomain);
      return putForeignBundle(db, current, { ...change(current), trustDomain });
    });
  }

  async delete(trustDomain: TrustDomain, mode: BundleDeleteMode): Promise<void> {
    await this.#session.transaction(async (db) => {
      await lockBundle(db, trustDomain);
      const deleted = await db.deleteFrom("bundles").where("trust_domain", "=", trustDomain).executeTakeFirst();
      if (deleted.numDeletedRows === 0n) {
        throw new Fault("not_found", "bundle not found", { code: "bundle-not-found" });
      }
      await DELETE_MODES[mode](db, trustDomain);
    });
  }
}

/**
 * Unix seconds, or one more than the last: after the database came back from an old backup, the next change still
 * passes every number that was published before (TDB-07).
 */
function nextSequence(current: Bundle | undefined, now: Date): bigint {
  const seconds = BigInt(Math.max(0, Math.floor(now.getTime() / 1000)));
  const next = (current?.sequenceNumber ?? 0n) + 1n;
  return seconds > next ? seconds : next;
}

/** What happens to the entries that federate with a bundle that is deleted. */
const DELETE_MODES: Readonly<Record<BundleDeleteMode, (db: Queries, trustDomain: TrustDomain) => Promise<void>>> = {
  async restrict(db, trustDomain) {
    const row = await db
      .selectFrom("entries")
      .select(sql<string>`count(*)`.as("count"))
      .where(federatesWith(trustDomain))
      .executeTakeFirstOrThrow();
    if (row.count === "0") return;
    throw new Fault("precondition", `cannot delete bundle; federated with ${row.count} registration entries`, {
      code: "bundle-in-use",
      hint: "delete the entries first, or use the mode delete or dissociate",
    });
  },
  async delete(db, trustDomain) {
    await db.deleteFrom("entries").where(federatesWith(trustDomain)).execute();
  },
  async dissociate(db, trustDomain) {
    await db
      .updateTable("entries")
      .set({
        federates_with: sql`array_remove(federates_with, ${trustDomain}::text)`,
        revision_number: sql`revision_number + 1`,
      })
      .where(federatesWith(trustDomain))
      .execute();
  },
};

function federatesWith(trustDomain: TrustDomain): RawBuilder<boolean> {
  return sql<boolean>`federates_with @> ${[trustDomain]}::text[]`;
}
