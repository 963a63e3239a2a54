import { type ExpressionBuilder, sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import { pageOf, positionOf, sizeOf } from "./paging.ts";
import { selectorTexts, toNode } from "./rows.ts";
import type { Schema } from "./schema.ts";
import type { Queries, Session } from "./session.ts";
import { matchesSet } from "./sets.ts";
import type {
  AttestedNode,
  NodeDraft,
  NodeFilter,
  NodeStore,
  OnceEvidence,
  Page,
  PageRequest,
  Quarantine,
} from "./store.ts";

export class SqlNodeStore implements NodeStore {
  readonly #session: Session;

  constructor(session: Session) {
    this.#session = session;
  }

  async attest(node: NodeDraft, evidence?: OnceEvidence): Promise<AttestedNode> {
    if (node.serialNumber === "") throw new Fault("internal", "a node needs a serial number", { code: "node-serial" });
    const columns = {
      attestation_type: node.attestationType,
      serial_number: node.serialNumber,
      expires_at: node.expiresAt,
      new_serial_number: "",
      new_expires_at: null,
      can_reattest: node.canReattest,
      selectors: selectorTexts(node.selectors),
      key_hash: evidence?.keyHash ?? "",
      superseded: [],
    };
    const row = await this.#session.write((db) =>
      db
        .insertInto("attested_nodes")
        .values({ ...columns, spiffe_id: node.id, agent_version: "" })
        .onConflict((conflict) =>
          conflict
            .column("spiffe_id")
            .doUpdateSet(columns)
            .where("attested_nodes.serial_number", "<>", "")
            .where(
              evidence === undefined ? sql<boolean>`true` : sql<boolean>`attested_nodes.key_hash = ${evidence.keyHash}`,
            ),
        )
        .returningAll()
        .executeTakeFirst(),
    );
    if (row === undefined) throw await this.#refusal(node.id);
    return toNode(row);
  }

  async #refusal(id: SpiffeId): Promise<Fault> {
    const node = await this.find(id);
    if (node === undefined || node.serialNumber === "")
      return new Fault("denied", "failed to attest: agent is banned", { code: "agent-banned" });
    return new Fault("denied", "attestation data has already been used to attest an agent", {
      code: "attestation-used",
      hint: "evict the agent to let its node attest again",
    });
  }

  find(id: SpiffeId): Promise<AttestedNode | undefined> {
    return this.#session.read((db) => findNode(db, id));
  }

  async list(filter: NodeFilter, page?: PageRequest): Promise<Page<AttestedNode>> {
    const rows = await this.#session.read((db) => {
      const all = db.selectFrom("attested_nodes").selectAll().where(conditions(filter)).orderBy("seq");
      if (page === undefined) return all.execute();
      return all
        .where("seq", ">", positionOf(page.token))
        .limit(sizeOf(page) + 1)
        .execute();
    });
    return pageOf(rows, toNode, page);
  }

  async count(filter: NodeFilter): Promise<number> {
    const row = await this.#session.read((db) =>
      db
        .selectFrom("attested_nodes")
        .select(sql<string>`count(*)`.as("count"))
        .where(conditions(filter))
        .executeTakeFirst(),
    );
    return Number(row?.count ?? 0);
  }

  /**
   * When the pending serial renews, it is the one in use: it becomes the current one in the same step. A join token has done
   * its work then: the answer to it was not lost, and whoever finds it later, with the key of that time, is not let in.
   */
  renew(
    id: SpiffeId,
    renewal: { readonly currentSerial: string; readonly serialNumber: string; readonly expiresAt: Date },
  ): Promise<AttestedNode> {
    return this.#session.transaction(async (db) => {
      const node = await lockNode(db, id);
      const { currentSerial } = renewal;
      const fromPending = currentSerial !== "" && currentSerial === node.newSerialNumber;
      if (!fromPending && (currentSerial === "" || currentSerial !== node.serialNumber)) throw serialNotCurrent();
      if (node.attestationType === "join_token") await deleteUsedToken(db, id);
      return updateNode(db, id, {
        serial_number: currentSerial,
        expires_at: fromPending && node.newExpiresAt !== undefined ? node.newExpiresAt : node.expiresAt,
        new_serial_number: renewal.serialNumber,
        new_expires_at: renewal.expiresAt,
        key_hash: "",
        superseded: remembered(node, fromPending ? node.serialNumber : node.newSerialNumber),
      });
    });
  }

  async activate(id: SpiffeId, serialNumber: string): Promise<AttestedNode | undefined> {
    if (serialNumber === "") return undefined;
    const row = await this.#session.write((db) =>
      db
        .updateTable("attested_nodes")
        .set({
          serial_number: serialNumber,
          expires_at: sql`coalesce(new_expires_at, expires_at)`,
          new_serial_number: "",
          new_expires_at: null,
          superseded: sql`(array_append(superseded, serial_number))[greatest(1, cardinality(superseded) + 2 - ${SUPERSEDED}):]`,
        })
        .where("spiffe_id", "=", id)
        .where("new_serial_number", "=", serialNumber)
        .returningAll()
        .executeTakeFirst(),
    );
    return row === undefined ? undefined : toNode(row);
  }

  async setAgentVersion(id: SpiffeId, version: string): Promise<AttestedNode> {
    const current = await this.#session.read((db) => findNode(db, id));
    if (current === undefined) throw notFound();
    if (current.agentVersion === version) return current;
    return this.#session.write((db) => updateNode(db, id, { agent_version: version }));
  }

  ban(id: SpiffeId): Promise<AttestedNode> {
    return this.#session.write((db) =>
      updateNode(db, id, { serial_number: "", new_serial_number: "", new_expires_at: null }),
    );
  }

  quarantine(id: SpiffeId, { since, reason }: Quarantine): Promise<AttestedNode> {
    return this.#session.transaction(async (db) => {
      const node = await lockNode(db, id);
      if (node.serialNumber === "") throw bannedAlready();
      return updateNode(db, id, { quarantined_at: node.quarantine?.since ?? since, quarantine_reason: reason });
    });
  }

  release(id: SpiffeId, serialNumber?: string): Promise<AttestedNode> {
    return this.#session.transaction(async (db) => {
      const node = await lockNode(db, id);
      if (node.quarantine === undefined) throw notQuarantined();
      if (serialNumber !== undefined && node.serialNumber === "") throw bannedAlready();
      const ended = { quarantined_at: null, quarantine_reason: "" };
      return updateNode(
        db,
        id,
        serialNumber === undefined ? ended : { ...ended, ...continuedWith(node, serialNumber) },
      );
    });
  }

  delete(id: SpiffeId, expiredBefore?: Date): Promise<AttestedNode | undefined> {
    return this.#session.transaction(async (db) => {
      const one = db.deleteFrom("attested_nodes").where("spiffe_id", "=", id);
      const ended =
        expiredBefore === undefined
          ? one
          : one
              .where(sql`greatest(expires_at, new_expires_at)`, "<", expiredBefore)
              .where(conditions({ banned: false, quarantined: false }));
      const row = await ended.returningAll().executeTakeFirst();
      if (row === undefined) return undefined;
      if (row.attestation_type === "join_token") await deleteToken(db, id);
      return toNode(row);
    });
  }
}

/** More renewals than anyone sleeps through with an SVID that has not ended. */
const SUPERSEDED = 16;

function remembered({ superseded }: AttestedNode, serial: string): string[] {
  return serial === "" ? [...superseded] : [...superseded, serial].slice(-SUPERSEDED);
}

/** When a superseded SVID ends is not stored: no later than the one that replaced it, whose end stays until a renewal. */
function continuedWith(node: AttestedNode, chosen: string): NodeChange {
  const known = [...node.superseded, node.serialNumber, node.newSerialNumber].filter((serial) => serial !== "");
  if (!known.includes(chosen)) throw serialUnknown(chosen);
  const isPending = chosen === node.newSerialNumber;
  return {
    serial_number: chosen,
    expires_at: isPending && node.newExpiresAt !== undefined ? node.newExpiresAt : node.expiresAt,
    new_serial_number: "",
    new_expires_at: null,
    superseded: known.filter((serial) => serial !== chosen).slice(-SUPERSEDED),
  };
}

/** One that was made again meanwhile stays. */
async function deleteUsedToken(db: Queries, agent: SpiffeId): Promise<void> {
  await db.deleteFrom("join_tokens").where("token", "=", tokenOf(agent)).where("key_hash", "<>", "").execute();
}

function tokenOf(agent: SpiffeId): string {
  return agent.slice(agent.lastIndexOf("/") + 1);
}

/** With the alias that CreateJoinToken makes: below the token's agent, for whoever is that agent. */
async function deleteToken(db: Queries, agent: SpiffeId): Promise<void> {
  await db.deleteFrom("join_tokens").where("token", "=", tokenOf(agent)).execute();
  await db
    .deleteFrom("entries")
    .where("parent_id", "=", agent)
    .where("selectors", "=", sql<string[]>`${[`spiffe_id:${agent}`]}::text[]`)
    .execute();
}

async function findNode(db: Queries, id: SpiffeId): Promise<AttestedNode | undefined> {
  const row = await db.selectFrom("attested_nodes").selectAll().where("spiffe_id", "=", id).executeTakeFirst();
  return row === undefined ? undefined : toNode(row);
}

async function lockNode(db: Queries, id: SpiffeId): Promise<AttestedNode> {
  const query = db.selectFrom("attested_nodes").selectAll().where("spiffe_id", "=", id).forUpdate();
  const row = await query.executeTakeFirst();
  if (row === undefined) throw notFound();
  return toNode(row);
}

interface NodeChange {
  readonly serial_number?: string;
  readonly expires_at?: Date;
  readonly new_serial_number?: string;
  readonly new_expires_at?: Date | null;
  readonly agent_version?: string;
  readonly key_hash?: string;
  readonly superseded?: string[];
  readonly quarantined_at?: Date | null;
  readonly quarantine_reason?: string;
}

async function updateNode(db: Queries, id: SpiffeId, change: NodeChange): Promise<AttestedNode> {
  const query = db.updateTable("attested_nodes").set(change).where("spiffe_id", "=", id).returningAll();
  const row = await query.executeTakeFirst();
  if (row === undefined) throw notFound();
  return toNode(row);
}

function conditions(filter: NodeFilter) {
  return (eb: ExpressionBuilder<Schema, "attested_nodes">) => {
    const { attestationType, selectors, banned, canReattest, expiresBefore, quarantined } = filter;
    return eb.and([
      ...(attestationType === undefined ? [] : [eb("attestation_type", "=", attestationType)]),
      ...(banned === undefined ? [] : [eb("serial_number", banned ? "=" : "<>", "")]),
      ...(canReattest === undefined ? [] : [eb("can_reattest", "=", canReattest)]),
      ...(expiresBefore === undefined ? [] : [eb("expires_at", "<", expiresBefore)]),
      ...(quarantined === undefined ? [] : [eb("quarantined_at", quarantined ? "is not" : "is", null)]),
      ...(selectors === undefined
        ? []
        : [matchesSet(eb.ref("selectors"), selectors.match, selectorTexts(selectors.selectors))]),
    ]);
  };
}

function notFound(): Fault {
  return new Fault("not_found", "agent not found", { code: "agent-not-found" });
}

function bannedAlready(): Fault {
  return new Fault("precondition", "agent is banned", {
    code: "agent-banned",
    hint: "a banned agent gets nothing anyway; evict it to let it attest again",
  });
}

function notQuarantined(): Fault {
  return new Fault("precondition", "agent is not quarantined", { code: "agent-not-quarantined" });
}

function serialUnknown(serial: string): Fault {
  return new Fault("precondition", `agent has no SVID with serial number ${serial.slice(0, 64)}`, {
    code: "agent-serial-unknown",
    hint: "agent show names the serial numbers in question, in the reason of the quarantine",
  });
}

function serialNotCurrent(): Fault {
  return new Fault("denied", "agent SVID is not active", {
    code: "agent-svid-not-active",
    hint: "the agent has to attest again",
  });
}
