import { Fault } from "../../src/runtime/fault.ts";
import type { EntryDraft } from "../../src/spiffe/entry.ts";
import { insertEntry } from "./entry-writes.ts";
import type { Queries, Session } from "./session.ts";
import type { JoinToken, TokenStore } from "./store.ts";

/** A token that has been used is as good as gone, and may be made again. */
function insertToken(db: Queries, { token, expiresAt }: JoinToken) {
  return db
    .insertInto("join_tokens")
    .values({ token, expires_at: expiresAt })
    .onConflict((conflict) =>
      conflict
        .column("token")
        .doUpdateSet({ expires_at: expiresAt, key_hash: "" })
        .where("join_tokens.key_hash", "<>", ""),
    )
    .executeTakeFirstOrThrow();
}

export class SqlTokenStore implements TokenStore {
  readonly #session: Session;
  readonly #now: () => Date;

  constructor(session: Session, now: () => Date) {
    this.#session = session;
    this.#now = now;
  }

  async create(token: JoinToken, alias?: EntryDraft): Promise<void> {
    await this.#session.transaction(async (db) => {
      const { numInsertedOrUpdatedRows: stored } = await insertToken(db, token);
      if (stored !== 1n) throw new Fault("already_exists", "join token already exists", { code: "join-token-exists" });
      if (alias !== undefined) await insertEntry(db, alias, this.#now());
    });
  }

  /** One statement: of any number of callers, the database lets one put its key into the row (T-N3). */
  async consume(token: string, keyHash: string): Promise<JoinToken | undefined> {
    if (keyHash === "") throw new Fault("internal", "a token is bound to a key", { code: "token-key" });
    const row = await this.#session.write((db) =>
      db
        .updateTable("join_tokens")
        .set({ key_hash: keyHash })
        .where("token", "=", token)
        .where("key_hash", "in", ["", keyHash])
        .returningAll()
        .executeTakeFirst(),
    );
    return row === undefined ? undefined : { token: row.token, expiresAt: row.expires_at };
  }

  async prune(now: Date): Promise<number> {
    const { numDeletedRows } = await this.#session.write((db) =>
      db.deleteFrom("join_tokens").where("expires_at", "<", now).executeTakeFirst(),
    );
    return Number(numDeletedRows);
  }
}
