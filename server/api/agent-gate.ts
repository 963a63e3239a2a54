import type { Certificate } from "../../src/crypto/certificate.ts";
import type { PeerIdentity } from "../../src/rpc/caller.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { isAgentId, type SpiffeId } from "../../src/spiffe/id.ts";
import type { AuthorityUsage } from "../ca/usage.ts";
import { type AgentCertificate, type AgentStanding, isBanned, standingOf } from "../directory/agents.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import type { AttestedNode, NodeStore } from "../store/store.ts";
import { passedOn } from "./fail.ts";

export interface AgentGateParts {
  readonly directory: Pick<Directory, "node" | "watchNode">;
  readonly nodes: Pick<NodeStore, "find" | "activate" | "quarantine">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: () => Promise<void>;
  /** Told with which certificate an agent calls. */
  readonly usage: Pick<AuthorityUsage, "agentSvid">;
  readonly clock: Clock;
}

/** Why an agent is turned away; the wire knows each but one as a reason of PermissionDeniedDetails. */
export type Denial = Extract<AgentStanding, { state: "denied" }> | typeof QUARANTINED;
export type Verdict = { readonly state: "active" } | Denial;

/** May become good again by itself: nothing for the agent to act on. */
export const QUARANTINED = { state: "denied", reason: "quarantined" } as const;

/**
 * Decides on every call whether a certificate is its agent's current one. Memory answers for an agent in good standing;
 * a mismatch is settled by the database, since another server may have attested or renewed the node a moment ago.
 */
export class AgentGate {
  readonly #parts: AgentGateParts;

  constructor(parts: AgentGateParts) {
    this.#parts = parts;
  }

  /**
   * For a new call. The first one with a renewed certificate makes it the current one and voids its predecessor. A call
   * with a predecessor raises an alarm (T-N13): it was copied, or the machine was set back to a backup. Two that renew
   * from one SVID both mean to be the agent, and nobody here can tell which one is: the agent is quarantined, and an
   * administrator decides. It is not banned, so that a thief, or a backup, destroys nothing: who holds a copy that is
   * still valid can stop the agent, but not be it. From then on a replaced SVID is told to wait where it is all that
   * its holder has; a holder that can attest again is to do so.
   */
  async judge(peer: PeerIdentity, log: Log, renews: boolean): Promise<Verdict> {
    const verdict = await this.standing(peer, log);
    if (verdict.state !== "denied" || verdict.reason !== "not_active") return verdict;
    const { serialNumber } = certificateOf(peer.chain);
    const node = await this.#find(peer.id, log);
    if (node === undefined || isBanned(node) || !node.superseded.includes(serialNumber)) return verdict;
    if (node.quarantine === undefined) {
      events.agentSvidReused(log, { id: peer.id, serialNumber, current: node.serialNumber, quarantined: renews });
      if (!renews) return verdict;
      await this.#quarantine(node, `SVID ${serialNumber} renews after ${node.serialNumber} had replaced it`, log);
    }
    return node.canReattest ? verdict : QUARANTINED;
  }

  async #quarantine({ id }: AttestedNode, reason: string, log: Log): Promise<void> {
    try {
      await this.#parts.nodes.quarantine(id, { since: this.#parts.clock.now(), reason });
      await this.#parts.caughtUp();
      events.agentQuarantined(log, { id, reason });
    } catch (error) {
      throw passedOn(log, "unable to quarantine an agent whose SVID was copied", error);
    }
  }

  /** As `judge`, for a call that was let in a while ago: raises no alarm. */
  async standing({ id, chain }: PeerIdentity, log: Log): Promise<Verdict> {
    const svid = certificateOf(chain);
    // No agent has any other ID: nothing is looked up then, however often a workload asks.
    const stranger = isAgentId(id) ? undefined : this.#standing(id, undefined, svid);
    if (stranger?.state === "denied") return report(log, stranger);
    const leaf = chain[0];
    if (leaf !== undefined)
      this.#parts.usage.agentSvid(id, { authorityId: leaf.authorityKeyId, notAfter: leaf.notAfter });
    const known = this.#standing(id, this.#parts.directory.node(id), svid);
    if (known.state === "active" || (known.state === "denied" && known.reason === "expired")) return report(log, known);
    const current = this.#standing(id, await this.#find(id, log), svid);
    return report(log, current.state === "pending" ? await this.#activate(id, svid, log) : current);
  }

  /** Resolves with the denial once the agent is banned, evicted, superseded or expired; undefined when aborted. */
  async lost(peer: PeerIdentity, log: Log, signal: AbortSignal): Promise<Denial | undefined> {
    const stop = new AbortController();
    const until = AbortSignal.any([signal, stop.signal]);
    const ends = [this.#displaced(peer, log, until), this.#outlived(peer, log, until)];
    try {
      return await Promise.race(ends);
    } finally {
      stop.abort();
      await Promise.allSettled(ends);
    }
  }

  async #displaced(peer: PeerIdentity, log: Log, signal: AbortSignal): Promise<Denial | undefined> {
    let seen: AttestedNode | undefined;
    for await (const _ of this.#parts.directory.watchNode(peer.id, signal)) {
      const node = this.#parts.directory.node(peer.id);
      if (node !== undefined && node === seen) continue;
      seen = node;
      const verdict = await this.standing(peer, log);
      if (verdict.state === "denied") return verdict;
    }
    return undefined;
  }

  async #outlived(peer: PeerIdentity, log: Log, signal: AbortSignal): Promise<Denial | undefined> {
    const svid = certificateOf(peer.chain);
    try {
      while (this.#parts.clock.now() <= svid.notAfter) {
        await this.#parts.clock.sleep(svid.notAfter.getTime() - this.#parts.clock.now().getTime() + 1, signal);
      }
    } catch (error) {
      if (signal.aborted) return undefined;
      throw error;
    }
    const verdict = await this.standing(peer, log);
    return verdict.state === "denied" ? verdict : undefined;
  }

  #standing(id: SpiffeId, node: AttestedNode | undefined, svid: AgentCertificate): AgentStanding {
    return standingOf(id, node, svid, this.#parts.clock.now());
  }

  async #find(id: SpiffeId, log: Log): Promise<AttestedNode | undefined> {
    try {
      return await this.#parts.nodes.find(id);
    } catch (error) {
      throw passedOn(log, "unable to look up agent information", error);
    }
  }

  async #activate(id: SpiffeId, svid: AgentCertificate, log: Log): Promise<Verdict> {
    try {
      const node = (await this.#parts.nodes.activate(id, svid.serialNumber)) ?? (await this.#parts.nodes.find(id));
      await this.#parts.caughtUp();
      const standing = this.#standing(id, node, svid);
      if (standing.state !== "pending") return standing;
    } catch (error) {
      throw passedOn(log, "unable to activate the new agent SVID", error);
    }
    throw new Fault("aborted", "unable to activate the new agent SVID: it changed meanwhile", { hint: "try again" });
  }
}

function certificateOf(chain: readonly Certificate[]): AgentCertificate {
  const leaf = chain[0];
  if (leaf === undefined) throw new Fault("denied", "caller does not have an X509-SVID");
  return leaf;
}

function report(log: Log, verdict: Verdict): Verdict {
  if (verdict.state === "denied") events.agentDenied(log, verdict.reason);
  return verdict;
}
