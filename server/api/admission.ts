import type { Call, PeerIdentity } from "../../src/rpc/caller.ts";
import type { Status } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { rpcNames } from "../../src/rpc/names.ts";
import type { Outcome } from "../../src/rpc/pipeline.ts";
import { agentDenied, codeNameOf, codeOf } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { Turn } from "../ca/turns.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import { BUCKETS, type BucketName, type Limit, type Rule } from "./access.ts";
import { type AgentGate, type Denial, QUARANTINED, type Verdict } from "./agent-gate.ts";
import { AuditTrail } from "./audit.ts";
import { passedOn } from "./fail.ts";
import { RateLimiter } from "./limits.ts";
import type { Peers } from "./peers.ts";

/** What the table decided about one call. */
export interface Authorization {
  readonly as: "nobody" | "local" | "admin" | "downstream" | "agent";
  readonly via: "" | "transport" | "config" | "entries" | "datastore";
  /** The call's log with the caller's fields. */
  readonly log: Log;
  /** For what is signed on behalf of the caller. */
  readonly turn: Turn;
  /** Waits for the caller's turn to have `count` items done. Throws `exhausted`. */
  charge(count: number): Promise<void>;
  /** Decides once more, after a wait in which the caller may have lost its right. Throws as at the call's beginning. */
  again(): Promise<void>;
  /** What the audit record of the call says besides who called and how it ended. */
  note(fields: () => LogFields): void;
  /** Records what became of one item of a batch, in place of one record for the call. */
  audit(status: Status, fields: () => LogFields): void;
}

type Decision = Pick<Authorization, "as" | "via">;

/** A row as it is served. */
export interface Route {
  readonly rule: Rule;
  /** The call may outlive the reasons for which it was let in. */
  readonly streams: boolean;
}

/** Streams are looked at over this time when a bundle has changed. */
const RECHECK_SPREAD_MS = 2_000;
const RENEWAL = "/spire.api.server.agent.v1.Agent/RenewAgent";

export interface AdmissionParts {
  /** By full method name, such as `/spire.api.server.entry.v1.Entry/GetEntry`. */
  readonly routes: ReadonlyMap<string, Route>;
  readonly directory: Pick<Directory, "isAdmin" | "isDownstream" | "node" | "bundles">;
  readonly adminIds: readonly SpiffeId[];
  readonly gate: AgentGate;
  readonly peers: Pick<Peers, "recheck">;
  readonly rateLimit: { readonly attestation: boolean; readonly signing: boolean };
  readonly auditLogEnabled: boolean;
  readonly clock: Clock;
}

/** Stands before every handler: decides anew on every call, and denies by default (T-C3, T-C5). */
export class Admission {
  readonly #parts: AdmissionParts;
  readonly #limiters: ReadonlyMap<BucketName, RateLimiter>;
  readonly #watched = new WeakMap<object, AbortController>();
  readonly #trail: AuditTrail;

  constructor(parts: AdmissionParts) {
    this.#parts = parts;
    this.#trail = new AuditTrail(parts.auditLogEnabled);
    this.#limiters = new Map(
      Object.entries(BUCKETS)
        .filter(([, { switchedBy }]) => switchedBy === undefined || parts.rateLimit[switchedBy])
        .map(([name, { perSecond }]) => [name as BucketName, new RateLimiter(parts.clock, perSecond)]),
    );
  }

  async admit(call: Call): Promise<Authorization> {
    const log = call.log.child({
      service: rpcNames(call.method).service,
      caller_addr: addressOf(call),
      caller_id: call.caller.peer?.id,
    });
    this.#trail.open(call, log);
    const route = this.#parts.routes.get(call.method);
    if (route === undefined) throw refused(log, call.method);
    const { rule } = route;
    const renews = call.method === RENEWAL;
    const decision = await this.#decide(rule, call, log, (peer) => this.#parts.gate.judge(peer, log, renews));
    const authorized = log.child({ authorized_as: decision.as, authorized_via: decision.via });
    this.#trail.admitted(call, authorized);
    // A call that began in time is no sign of a copy, although its agent has a newer SVID by now.
    const again = async (): Promise<void> =>
      void (await this.#decide(rule, call, authorized, (peer) => this.#parts.gate.standing(peer, authorized)));
    const charge = async (count: number): Promise<void> => {
      if (await this.#charge(rule.limit, call, authorized, count)) await again();
    };
    if (rule.limit?.per === "call") await charge(1);
    if (route.streams && decision.as === "agent" && call.caller.peer !== undefined)
      void this.#watch(call, call.caller.peer, authorized);
    return {
      ...decision,
      log: authorized,
      turn: { caller: nameOf(call), signal: call.signal },
      charge,
      again,
      note: (fields) => this.#trail.note(call, fields),
      audit: (status, fields) => this.#trail.item(call, status, fields),
    };
  }

  /** To be told about every call that has ended. */
  ended(call: Call<Authorization | undefined>, { fault }: Outcome): void {
    this.#watched.get(call)?.abort();
    this.#trail.close(call, fault);
  }

  async #decide(rule: Rule, call: Call, log: Log, judge: (agent: PeerIdentity) => Promise<Verdict>): Promise<Decision> {
    const { caller } = call;
    if (rule.allow.includes("any")) return { as: "nobody", via: "" };
    if (rule.allow.includes("local") && caller.transport === "unix") return { as: "local", via: "transport" };
    if (caller.transport === "tcp" && caller.peer !== undefined) {
      const granted =
        this.#privileged(rule, caller.peer) ??
        (rule.allow.includes("agent") ? await this.#agent(rule, { call, peer: caller.peer, log, judge }) : undefined);
      if (granted !== undefined) {
        this.#recheck(caller.peer, log);
        return granted;
      }
    }
    throw refused(log, call.method);
  }

  #privileged(rule: Rule, { id }: PeerIdentity): Decision | undefined {
    const { directory, adminIds } = this.#parts;
    if (rule.allow.includes("admin") && adminIds.includes(id)) return { as: "admin", via: "config" };
    if (rule.allow.includes("admin") && directory.isAdmin(id)) return { as: "admin", via: "entries" };
    if (rule.allow.includes("downstream") && directory.isDownstream(id)) return { as: "downstream", via: "entries" };
    return undefined;
  }

  async #agent(rule: Rule, { call, peer, log, judge }: Judging): Promise<Decision> {
    const { directory } = this.#parts;
    const verdict = await judge(peer);
    if (verdict.state === "denied") throw refused(log, call.method, verdict);
    if (rule.inQuarantine !== true && directory.node(peer.id)?.quarantine !== undefined) {
      events.agentDenied(log, "quarantined");
      throw refused(log, call.method, QUARANTINED);
    }
    return { as: "agent", via: "datastore" };
  }

  #recheck(peer: PeerIdentity, log: Log): void {
    try {
      this.#parts.peers.recheck(peer);
    } catch (error) {
      const fault = Fault.from(error);
      events.callerDenied(log, fault);
      throw fault;
    }
  }

  /**
   * Ends a stream of an agent that is banned, evicted or superseded, expires, or whose certificate nobody vouches for any
   * more, while it is open (T-C5).
   */
  async #watch(call: Call, peer: PeerIdentity, log: Log): Promise<void> {
    const stop = new AbortController();
    this.#watched.set(call, stop);
    const until = AbortSignal.any([call.signal, stop.signal]);
    try {
      const denial = await Promise.race([this.#parts.gate.lost(peer, log, until), this.#distrusted(peer, log, until)]);
      if (denial !== undefined) call.abort(refused(log, call.method, denial));
    } catch (error) {
      if (!stop.signal.aborted) call.abort(Fault.from(error));
    } finally {
      stop.abort();
    }
  }

  /** Throws `unauthenticated` once the certificate is not trusted any more; undefined when aborted. */
  async #distrusted(peer: PeerIdentity, log: Log, signal: AbortSignal): Promise<undefined> {
    const { directory, clock } = this.#parts;
    try {
      for await (const _ of directory.bundles.watch(signal)) {
        // A certificate costs a signature check, and a fleet has many of them.
        await clock.sleep(clock.random() * RECHECK_SPREAD_MS, signal);
        this.#recheck(peer, log);
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    return undefined;
  }

  /** True when the call had to wait. */
  async #charge(limit: Limit | undefined, call: Call, log: Log, count: number): Promise<boolean> {
    const limiter = limit === undefined ? undefined : this.#limiters.get(limit.bucket);
    if (limit === undefined || limiter === undefined) return false;
    const { clock } = this.#parts;
    const started = clock.monotonic();
    let code: Outcome["code"] = "OK";
    try {
      // A local caller is no stranger: it takes no turn.
      if (call.caller.transport !== "tcp") return false;
      return await limiter.take(call.caller.remoteAddress ?? "", count, call.signal);
    } catch (error) {
      code = codeNameOf(codeOf(Fault.from(error)));
      throw passedOn(log, `rejecting request due to ${limit.words}`, error);
    } finally {
      events.rateLimited(log, call.method, { code, ms: clock.monotonic() - started });
    }
  }
}

interface Judging {
  readonly call: Call;
  readonly peer: PeerIdentity;
  readonly log: Log;
  readonly judge: (agent: PeerIdentity) => Promise<Verdict>;
}

/** As Go writes addresses. */
function addressOf({ caller: { remoteAddress, remotePort } }: Call): string | undefined {
  if (remoteAddress === undefined || remotePort === undefined) return remoteAddress;
  return remoteAddress.includes(":") ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`;
}

/** Who waits together: an agent is one caller, whatever it asks and over how many connections. */
function nameOf({ caller }: Call): string {
  return caller.peer?.id ?? caller.remoteAddress ?? caller.connectionId;
}

function refused(log: Log, method: string, denial?: Denial): Fault {
  const message = `authorization denied for method ${method}`;
  const fault =
    denial === undefined ? new Fault("denied", message, { code: "authorization-denied" }) : denied(denial, message);
  events.callerDenied(log, fault);
  return fault;
}

/** One in quarantine gets no reason that a SPIRE agent would act on: it is to go on asking. */
function denied({ reason }: Denial, message: string): Fault {
  if (reason !== "quarantined") return agentDenied(reason, message);
  return new Fault("denied", `${message}: agent is quarantined`, {
    code: "agent-quarantined",
    hint: "an administrator can release the agent: steeple-server agent release",
  });
}
