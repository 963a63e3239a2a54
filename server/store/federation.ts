import { isDeepStrictEqual } from "node:util";
import { type Insertable, type Selectable, sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { FederationRelationship } from "../../src/spiffe/federation.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { toBundle } from "./bundle-rows.ts";
import { lockedBundle, putForeignBundle } from "./bundle-writes.ts";
import { pageOf, positionOf, sizeOf } from "./paging.ts";
import type { FederationRelationshipTable } from "./schema.ts";
import type { Queries, Session } from "./session.ts";
import type { FederationStore, HeldRelationship, Page, PageRequest } from "./store.ts";

type Change = Partial<Omit<FederationRelationship, "trustDomain">>;

export class SqlFederationStore implements FederationStore {
  readonly #session: Session;

  constructor(session: Session) {
    this.#session = session;
  }

  create(relationship: FederationRelationship, bundle?: Bundle): Promise<HeldRelationship> {
    const { trustDomain } = relationship;
    return this.#session.transaction(async (db) => {
      await putBundle(db, bundle);
      const row = { trust_domain: trustDomain, ...urlColumns(relationship), ...profileColumns(relationship) };
      await db.insertInto("federation_relationships").values(row).execute();
      return existing(await findRelationship(db, trustDomain));
    });
  }

  find(trustDomain: TrustDomain): Promise<HeldRelationship | undefined> {
    return this.#session.read((db) => findRelationship(db, trustDomain));
  }

  async list(page?: PageRequest): Promise<Page<HeldRelationship>> {
    const rows = await this.#session.read((db) => {
      const all = withBundles(db).orderBy("r.seq");
      if (page === undefined) return all.execute();
      return all
        .where("r.seq", ">", positionOf(page.token))
        .limit(sizeOf(page) + 1)
        .execute();
    });
    return pageOf(rows, toRelationship, page);
  }

  update(trustDomain: TrustDomain, change: Change, bundle?: Bundle): Promise<HeldRelationship> {
    const { bundleEndpointUrl, profile } = change;
    return this.#session.transaction(async (db) => {
      await putBundle(db, bundle);
      const updated = await db
        .updateTable("federation_relationships")
        .set({
          trust_domain: trustDomain,
          ...(bundleEndpointUrl === undefined ? {} : urlColumns({ bundleEndpointUrl })),
          ...(profile === undefined ? {} : profileColumns({ profile })),
        })
        .where("trust_domain", "=", trustDomain)
        .executeTakeFirst();
      if (updated.numUpdatedRows === 0n) throw notFound();
      return existing(await findRelationship(db, trustDomain));
    });
  }

  changeBundle(
    relationship: FederationRelationship,
    change: (current: Bundle | undefined) => Omit<Bundle, "trustDomain">,
  ): Promise<Bundle> {
    const { trustDomain } = relationship;
    return this.#session.transaction(async (db) => {
      const current = await lockedBundle(db, trustDomain);
      const query = db.selectFrom("federation_relationships").selectAll().where("trust_domain", "=", trustDomain);
      const stored = await query.forShare().executeTakeFirst();
      if (stored === undefined || !isDeepStrictEqual(endpointOf(stored), relationship)) throw changedMeanwhile();
      return putForeignBundle(db, current, { ...change(current), trustDomain });
    });
  }

  async delete(trustDomain: TrustDomain): Promise<void> {
    const deleted = await this.#session.write((db) =>
      db.deleteFrom("federation_relationships").where("trust_domain", "=", trustDomain).executeTakeFirst(),
    );
    if (deleted.numDeletedRows === 0n) throw notFound();
  }
}

async function putBundle(db: Queries, bundle: Bundle | undefined): Promise<void> {
  if (bundle !== undefined) await putForeignBundle(db, await lockedBundle(db, bundle.trustDomain), bundle);
}

function withBundles(db: Queries) {
  return db
    .selectFrom("federation_relationships as r")
    .leftJoin("bundles as b", "b.trust_domain", "r.trust_domain")
    .select(["r.seq", "r.trust_domain", "bundle_endpoint_url", "bundle_endpoint_profile", "endpoint_spiffe_id"])
    .select(["b.content", sql<string | null>`b.sequence_number::text`.as("sequence_number")]);
}

async function findRelationship(db: Queries, trustDomain: TrustDomain): Promise<HeldRelationship | undefined> {
  const row = await withBundles(db).where("r.trust_domain", "=", trustDomain).executeTakeFirst();
  return row === undefined ? undefined : toRelationship(row);
}

function urlColumns({ bundleEndpointUrl }: Pick<FederationRelationship, "bundleEndpointUrl">) {
  return { bundle_endpoint_url: bundleEndpointUrl };
}

type ProfileColumns = Pick<Insertable<FederationRelationshipTable>, "bundle_endpoint_profile" | "endpoint_spiffe_id">;

function profileColumns({ profile }: Pick<FederationRelationship, "profile">): ProfileColumns {
  return {
    bundle_endpoint_profile: profile.type,
    endpoint_spiffe_id: profile.type === "https_spiffe" ? profile.endpointSpiffeId : "",
  };
}

type Row = Selectable<FederationRelationshipTable> & {
  readonly content: unknown;
  /** Null when there is no bundle. */
  readonly sequence_number: string | null;
};

function toRelationship(row: Row): HeldRelationship {
  const { trust_domain, content, sequence_number } = row;
  return {
    ...endpointOf(row),
    bundle: sequence_number === null ? undefined : toBundle({ trust_domain, content, sequence_number }),
  };
}

/** What is stored was checked when it came in. */
function endpointOf(row: Selectable<FederationRelationshipTable>): FederationRelationship {
  return {
    trustDomain: row.trust_domain as TrustDomain,
    bundleEndpointUrl: row.bundle_endpoint_url,
    profile:
      row.bundle_endpoint_profile === "https_web"
        ? { type: "https_web" }
        : { type: "https_spiffe", endpointSpiffeId: row.endpoint_spiffe_id as SpiffeId },
  };
}

function existing(relationship: HeldRelationship | undefined): HeldRelationship {
  if (relationship === undefined) throw notFound();
  return relationship;
}

function changedMeanwhile(): Fault {
  return new Fault("aborted", "the federation relationship was changed or deleted meanwhile", {
    code: "relationship-changed",
    hint: "try again, if there is still a relationship with the trust domain",
  });
}

function notFound(): Fault {
  return new Fault("not_found", "federation relationship not found", { code: "relationship-not-found" });
}
