import type { Insertable, Selectable } from "kysely";
import type { AuthorityTable } from "./schema.ts";
import type { Session } from "./session.ts";
import type { AuthorityKind, AuthorityRecord, AuthorityStore } from "./store.ts";

export class SqlAuthorityStore implements AuthorityStore {
  readonly #session: Session;

  constructor(session: Session) {
    this.#session = session;
  }

  async list(kind: AuthorityKind): Promise<readonly AuthorityRecord[]> {
    const rows = await this.#session.read((db) =>
      db
        .selectFrom("authorities")
        .selectAll()
        .where("kind", "=", kind)
        .orderBy("issued_at")
        .orderBy("authority_id")
        .execute(),
    );
    return rows.map(toAuthority);
  }

  async save(records: readonly AuthorityRecord[]): Promise<void> {
    await this.#session.transaction(async (db) => {
      for (const record of records) {
        const { kind, authority_id, ...changing } = authorityColumns(record);
        await db
          .insertInto("authorities")
          .values({ kind, authority_id, ...changing })
          .onConflict((conflict) => conflict.columns(["kind", "authority_id"]).doUpdateSet(changing))
          .execute();
      }
    });
  }

  async prune(now: Date): Promise<number> {
    const { numDeletedRows } = await this.#session.write((db) =>
      db.deleteFrom("authorities").where("expires_at", "<", now).executeTakeFirst(),
    );
    return Number(numDeletedRows);
  }
}

function toAuthority(row: Selectable<AuthorityTable>): AuthorityRecord {
  return {
    authorityId: row.authority_id,
    kind: row.kind,
    status: row.status,
    keyId: row.key_id,
    certificateChain: row.certificate_chain,
    publicKey: row.public_key,
    issuedAt: row.issued_at,
    expiresAt: row.expires_at,
    tainted: row.tainted,
    upstreamAuthorityId: row.upstream_authority_id,
  };
}

function authorityColumns(record: AuthorityRecord): Insertable<AuthorityTable> {
  return {
    authority_id: record.authorityId,
    kind: record.kind,
    status: record.status,
    key_id: record.keyId,
    certificate_chain: record.certificateChain.map((der) => Buffer.from(der)),
    public_key: Buffer.from(record.publicKey),
    issued_at: record.issuedAt,
    expires_at: record.expiresAt,
    tainted: record.tainted,
    upstream_authority_id: record.upstreamAuthorityId,
  };
}
