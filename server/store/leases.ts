import { sql } from "kysely";
import type { Session } from "./session.ts";
import type { LeaseStore } from "./store.ts";

/** Times are the database's: servers whose clocks differ agree on who holds a lease. */
export class SqlLeaseStore implements LeaseStore {
  readonly #session: Session;

  constructor(session: Session) {
    this.#session = session;
  }

  async take(name: string, holder: string, ms: number): Promise<boolean> {
    const { rows } = await this.#session.write((db) =>
      sql`
        insert into leases (name, holder, ends_at)
        values (${name}, ${holder}, clock_timestamp() + ${ms} * interval '1 millisecond')
        on conflict (name) do update set holder = excluded.holder, ends_at = excluded.ends_at
        where leases.holder = excluded.holder or leases.ends_at < clock_timestamp()
        returning 1`.execute(db),
    );
    return rows.length === 1;
  }

  async release(name: string, holder: string): Promise<void> {
    await this.#session.write((db) =>
      db.deleteFrom("leases").where("name", "=", name).where("holder", "=", holder).execute(),
    );
  }
}
