import { sql } from "kysely";
import type { Session } from "./session.ts";
import type { BundleLinkRecord, BundleLinkStore } from "./store.ts";

export class SqlBundleLinkStore implements BundleLinkStore {
  readonly #session: Session;

  constructor(session: Session) {
    this.#session = session;
  }

  async save({ signerId, statement, authorityIds, x509Authorities, expiresAt }: BundleLinkRecord): Promise<void> {
    const said = {
      statement,
      authority_ids: [...authorityIds],
      x509_authorities: x509Authorities.map((der) => Buffer.from(der)),
      expires_at: expiresAt,
    };
    await this.#session.write((db) =>
      db
        .insertInto("bundle_links")
        .values({ signer_id: signerId, ...said })
        .onConflict((conflict) => conflict.column("signer_id").doUpdateSet(said))
        .execute(),
    );
  }

  async list(): Promise<readonly BundleLinkRecord[]> {
    const rows = await this.#session.read((db) => db.selectFrom("bundle_links").selectAll().orderBy("seq").execute());
    return rows.map(({ signer_id, statement, authority_ids, x509_authorities, expires_at }) => ({
      signerId: signer_id,
      statement,
      authorityIds: authority_ids,
      x509Authorities: x509_authorities,
      expiresAt: expires_at,
    }));
  }

  async delete(authorityId: string): Promise<void> {
    await this.#session.write((db) =>
      db
        .deleteFrom("bundle_links")
        .where((eb) => eb.or([eb("signer_id", "=", authorityId), sql<boolean>`${authorityId} = any(authority_ids)`]))
        .execute(),
    );
  }

  async prune(now: Date): Promise<number> {
    const { numDeletedRows } = await this.#session.write((db) =>
      db.deleteFrom("bundle_links").where("expires_at", "<", now).executeTakeFirst(),
    );
    return Number(numDeletedRows);
  }
}
