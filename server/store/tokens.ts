import type { EntryDraft } from "../../src/spiffe/entry.ts";
import { insertEntry } from "./entry-writes.ts";
import type { Session } from "./session.ts";
import type { JoinToken, TokenStore } from "./store.ts";

export class SqlTokenStore implements TokenStore {
  readonly #session: Session;
  readonly #now: () => Date;

  constructor(session: Session, now: () => Date) {
    this.#session = session;
    this.#now = now;
  }

  async create(token: JoinToken, alias?: EntryDraft): Promise<void> {
    await this.#session.transaction(async (db) => {
      await db.insertInto("join_tokens").values({ token: token.token, expires_at: token.expiresAt }).execute();
      if (alias !== undefined) await insertEntry(db, alias, this.#now());
    });
  }

  /** One statement: of any number of callers, the database lets one delete the row (T-N3). */
  async consume(token: string): Promise<JoinToken | undefined> {
    const row = await this.#session.write((db) =>
      db.deleteFrom("join_tokens").where("token", "=", token).returningAll().executeTakeFirst(),
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
