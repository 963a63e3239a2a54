import type { ExportingKeyManager, ManagedKey } from "../../src/keys/keys.ts";
import { denialReason } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, type FaultKind, isFault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import type { AgentConfig } from "../config.ts";
import * as events from "../events.ts";
import type { NodeAttestor } from "./attestor.ts";
import { type Bootstrap, keptBundle, keptOf, type Trust } from "./bootstrap.ts";
import type { AgentIdentity, Credentials } from "./credentials.ts";
import { isExpired, loadKeptSvid } from "./kept-svid.ts";
import { msUntilDue, OVERDUE, refreshedBy } from "./rotation.ts";
import type { ServerTrust } from "./server-trust.ts";
import type { AgentData, AgentState } from "./state.ts";
import { csrOf, fingerprintOf, type KeyAndCsr, nextKeyId, readSvid } from "./svid.ts";
import type { Upstream } from "./upstream.ts";
import { wait } from "./wait.ts";

export interface NodeIdentityOptions {
  readonly trustDomain: TrustDomain;
  /** Used when no bundle is kept from an earlier run, or the kept one has failed. */
  readonly bootstrap: Bootstrap;
  readonly rebootstrap: AgentConfig["rebootstrap"];
  readonly serverTrust: ServerTrust;
  readonly attestor: NodeAttestor;
  readonly keys: ExportingKeyManager;
  readonly state: AgentState;
  readonly upstream: Upstream;
  readonly credentials: Credentials;
  readonly availabilityTargetMs?: number | undefined;
  readonly clock: Clock;
  readonly log: Log;
}

/** No longer without a look at the clock: it may have been set. */
const CHECK_MS = 5_000;
const RETRY = { firstMs: CHECK_MS, maxMs: 24 * CHECK_MS } as const;
/** The server has not answered, so that it is asked again. */
const TRANSIENT: ReadonlySet<FaultKind> = new Set(["unavailable", "timeout", "aborted", "exhausted", "cancelled"]);

/**
 * The agent's own identity: found on disk or gained by attestation, renewed in time, given up when the server says so.
 * Sets the credentials that `Upstream` connects with, and keeps them in the data directory.
 */
export class NodeIdentity {
  readonly #options: NodeIdentityOptions;
  readonly #followBackoff: Backoff;
  /** By the monotonic clock. */
  #followNext = Number.NEGATIVE_INFINITY;

  constructor(options: NodeIdentityOptions) {
    this.#options = options;
    this.#followBackoff = new Backoff(options.clock, RETRY);
  }

  /** Takes up the kept SVID, or attests. Throws `denied` when the server refuses this node for good. */
  async open(signal: AbortSignal): Promise<void> {
    const { clock, log, credentials, trustDomain } = this.#options;
    const trust = await this.#trust(signal);
    events.bundleLoaded(log, trust.kind === "bundle" ? trustDomainId(trustDomain) : undefined);
    const { kept, keyId } = await loadKeptSvid(this.#options);
    if (kept === undefined) {
      events.attestationStarting(log);
      const identity = await this.#attest({ trust, keyId }, signal);
      events.attested(log, identity.id, identity.reattestable);
      return;
    }
    if (trust.kind === "insecure") throw svidWithoutBundle();
    if (clock.now() < kept.leaf.notBefore) events.clockTooEarly(log, "the agent's SVID", kept.leaf.notBefore);
    credentials.bundle.set(trust.bundle);
    credentials.identity.set(kept);
    events.svidLoaded(log, kept.id);
  }

  /** Renews or re-attests around half of the SVID's lifetime. Throws when the agent has to stop. */
  async run(signal: AbortSignal): Promise<never> {
    const { clock, credentials } = this.#options;
    const backoff = new Backoff(clock, RETRY);
    for (;;) {
      const current = this.#current();
      const left = msUntilDue(current.rotation, clock);
      if (await this.#followBundles(credentials.bundle.value, signal)) {
        await this.#reattestUnder(current, signal);
      } else if (this.#mustRebootstrap()) {
        if (await this.#tryRebootstrap(signal)) backoff.reset();
        else await clock.sleep(backoff.next(), signal);
      } else if (left > 0) {
        await wait(
          {
            clock,
            feed: credentials.identity,
            until: (identity) => identity !== current,
            ms: Math.min(CHECK_MS, left),
          },
          signal,
        );
      } else if (await this.#tryRotation(current, signal)) {
        backoff.reset();
      } else {
        await clock.sleep(backoff.next(), signal);
      }
    }
  }

  async acceptBundle(bundle: Bundle): Promise<void> {
    this.#options.credentials.bundle.set(bundle);
    await this.#store(keptOf(bundle));
  }

  /**
   * When the server's chain leads to none of the authorities of the bundle: true once those authorities have vouched for
   * one that it leads to, and the agent trusts that one instead. Tried now and then.
   */
  async #followBundles(held: Bundle, signal: AbortSignal): Promise<boolean> {
    const { upstream, serverTrust, clock, log } = this.#options;
    if (serverTrust.strangerForMs === undefined || clock.monotonic() < this.#followNext) return false;
    this.#followNext = clock.monotonic() + this.#followBackoff.next();
    try {
      const bundle = await upstream.followBundles(held, signal);
      events.bundlesFollowed(log, held.sequenceNumber, bundle.sequenceNumber);
      await this.acceptBundle(bundle);
      serverTrust.regained();
      this.#followBackoff.reset();
      return true;
    } catch (error) {
      signal.throwIfAborted();
      events.bundlesNotFollowed(log, error);
      return false;
    }
  }

  /** The authority of an SVID from before may have gone with the others. */
  async #reattestUnder(current: AgentIdentity, signal: AbortSignal): Promise<void> {
    if (current.reattestable) await this.#tryRotation(current, signal);
  }

  taint(authorityKeyIds: ReadonlySet<string>): void {
    const { log, credentials } = this.#options;
    const current = this.#current();
    if (!authorityKeyIds.has(current.authorityKeyId)) return;
    events.agentTainted(log);
    credentials.identity.set({ ...current, rotation: OVERDUE });
  }

  /** What the server's refusal of a call asks for. Returns when there's nothing to do, or it is done. */
  async recover(error: Fault, signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    const reason = denialReason(error);
    if (reason === undefined) return;
    if (reason === "banned") return this.#giveUp(error, () => events.agentBanned(log, error));
    const canReattest = this.#current().reattestable || reason === "must_reattest";
    if (!canReattest && reason === "not_active") return this.#contest(error, signal);
    events.reattesting(log, error);
    try {
      if (!canReattest) throw notReattestable();
      await this.#rotate("reattested", signal);
    } catch (failure) {
      signal.throwIfAborted();
      return this.#giveUp(error, () => events.reattestationFailed(log, failure));
    }
  }

  /** Before the first sync: true when there is a new SVID or bundle to try it with. */
  async healAtStart(error: unknown, signal: AbortSignal): Promise<boolean> {
    if (await this.#followBundles(this.#options.credentials.bundle.value, signal)) {
      await this.#reattestUnder(this.#current(), signal);
      return true;
    }
    if (this.#mustRebootstrap()) return await this.#tryRebootstrap(signal);
    const reason = denialReason(Fault.from(error));
    if (reason === undefined || reason === "banned") return false;
    if (!this.#current().reattestable && reason !== "not_active") return false;
    await this.recover(Fault.from(error), signal);
    return true;
  }

  /** For a refusal before the first sync: the SVID goes, and the next start attests anew. Returns for other errors. */
  async refusedAtStart(error: Fault): Promise<void> {
    const { log } = this.#options;
    const reason = denialReason(error);
    if (reason === undefined) return;
    const say = reason === "banned" ? events.agentBanned : events.agentRefusedAtStart;
    return this.#giveUp(error, () => say(log, error));
  }

  /**
   * Another holder has renewed this SVID, or this machine was set back to a backup. To renew it a second time has the
   * server quarantine the agent until an administrator decides, where to give up would leave it to the other (T-N13).
   */
  async #contest(error: Fault, signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    events.agentContested(log, error);
    try {
      await this.#rotate("renewed", signal);
    } catch (failure) {
      signal.throwIfAborted();
      const { code, kind } = Fault.from(failure);
      if (code === "agent-quarantined" || TRANSIENT.has(kind)) return;
      return this.#giveUp(error, () => events.reattestationFailed(log, notReattestable()));
    }
  }

  /** True when the agent has a new SVID. */
  async #tryRotation(current: AgentIdentity, signal: AbortSignal): Promise<boolean> {
    const { clock, log } = this.#options;
    try {
      await this.#rotate(current.reattestable ? "reattested" : "renewed", signal);
    } catch (error) {
      signal.throwIfAborted();
      events.rotationFailed(log, current.reattestable, error);
      await this.recover(Fault.from(error), signal);
      if (this.#current() === current && isExpired(current, clock)) await this.#startOver(current, error, signal);
    }
    return this.#current() !== current;
  }

  /**
   * With an expired SVID only a fresh attestation helps. It's tried for as long as the server is away; the agent stops
   * when the server is there and refuses.
   */
  async #startOver(expired: AgentIdentity, error: unknown, signal: AbortSignal): Promise<void> {
    const what = expired.reattestable ? "reattest agent" : "rotate agent SVID";
    const failure = expired.reattestable ? error : await this.#reattestAnew(signal);
    if (failure === undefined || !isRefusal(failure)) return;
    throw new Fault("denied", `current SVID has already expired and ${what} failed: ${messageOf(error)}`, {
      code: "agent-svid-expired",
      hint: "start the agent with a new join token",
      cause: failure,
    });
  }

  async #reattestAnew(signal: AbortSignal): Promise<unknown> {
    try {
      await this.#rotate("reattested", signal);
      return undefined;
    } catch (error) {
      signal.throwIfAborted();
      events.rotationFailed(this.#options.log, true, error);
      return error;
    }
  }

  #mustRebootstrap(): boolean {
    const { rebootstrap, serverTrust, state } = this.#options;
    const { strangerForMs } = serverTrust;
    if (rebootstrap.mode === "never" || strangerForMs === undefined) return false;
    const isAble = state.data.svid.length === 0 || state.data.reattestable;
    return isAble && strangerForMs >= rebootstrap.delayMs;
  }

  /** What is held stays until another server has proved itself and attested the node. */
  async #tryRebootstrap(signal: AbortSignal): Promise<boolean> {
    const { upstream, bootstrap, log } = this.#options;
    events.rebootstrapping(log);
    try {
      const trust = await bootstrap.trust("rebootstrap", signal);
      const { keyId } = this.#current();
      const identity = await upstream.exclusively(() => this.#attest({ trust, keyId }, signal));
      events.rotated(log, identity.id, "reattested");
      return true;
    } catch (error) {
      signal.throwIfAborted();
      events.rebootstrapFailed(log, error);
      return false;
    }
  }

  /** Throws for `always` when the node cannot attest again. */
  #checkRebootstrap(reattestable: boolean): void {
    const { rebootstrap, log } = this.#options;
    if (reattestable || rebootstrap.mode === "never") return;
    const message =
      "you have requested rebootstrap support but the NodeAttestor plugin or the spire server configuration is not allowing it";
    if (rebootstrap.mode === "auto") log.warn(`${message}. Disabling`);
    else
      throw new Fault("precondition", message, {
        code: "rebootstrap-impossible",
        hint: "use a node attestor that can attest again, or rebootstrap_mode auto",
      });
  }

  async #rotate(how: "renewed" | "reattested", signal: AbortSignal): Promise<void> {
    const { upstream, log, clock } = this.#options;
    const identity = await events.chore({ log, clock }, how === "renewed" ? "agent_svid.rotate" : "node.attest", () =>
      upstream.exclusively(() => (how === "renewed" ? this.#renew(signal) : this.#reattest(signal))),
    );
    events.rotated(log, identity.id, how);
  }

  async #renew(signal: AbortSignal): Promise<AgentIdentity> {
    const { key, csr } = await this.#newKey(this.#current().keyId);
    const svid = await this.#options.upstream.renew(csr, signal);
    return this.#adopt({ svid, reattestable: false }, key);
  }

  #reattest(signal: AbortSignal): Promise<AgentIdentity> {
    const { credentials } = this.#options;
    return this.#attest(
      { trust: { kind: "bundle", bundle: credentials.bundle.value }, keyId: this.#current().keyId },
      signal,
    );
  }

  async #attest(
    { trust, keyId }: { readonly trust: Trust; readonly keyId: string | undefined },
    signal: AbortSignal,
  ): Promise<AgentIdentity> {
    const { upstream, attestor, credentials, log, clock } = this.#options;
    const { key, csr } = await this.#attestingKey(keyId);
    const { chain, reattestable, bundle } = await events.chore(
      { log, clock, attestor: attestor.type },
      "node.attestor.new_svid",
      () => upstream.attest({ attestor, csr, trust }, signal),
    );
    this.#checkBundle(bundle);
    credentials.bundle.set(bundle);
    return this.#adopt({ svid: chain, reattestable, ...keptOf(bundle), attestingKey: undefined }, key);
  }

  async #adopt(
    data: Partial<AgentData> & Pick<AgentData, "svid" | "reattestable">,
    key: ManagedKey,
  ): Promise<AgentIdentity> {
    const { credentials, bootstrap, attestor, clock, log } = this.#options;
    const read = await readSvid({ ...data, key, from: "server" }, this.#options);
    const identity = { ...read, rotation: refreshedBy(read, attestor.refreshMs, clock) };
    if (clock.now() < identity.leaf.notBefore) events.clockTooEarly(log, "the agent's SVID", identity.leaf.notBefore);
    this.#checkRebootstrap(identity.reattestable);
    bootstrap.succeeded();
    await this.#store(data);
    credentials.identity.set(identity);
    return identity;
  }

  /**
   * The key of the attestation that was not finished, also in an earlier run: what the node showed may count for that key
   * alone. Otherwise a new one.
   */
  async #attestingKey(currentKeyId: string | undefined): Promise<KeyAndCsr> {
    const { keys, state } = this.#options;
    const begun = state.data.attestingKey;
    const kept = (await keys.list()).find((key) => key.id !== currentKeyId && fingerprintOf(key) === begun);
    if (kept !== undefined) return { key: kept, csr: await csrOf(kept) };
    const made = await this.#newKey(currentKeyId);
    await this.#store({ attestingKey: fingerprintOf(made.key) });
    return made;
  }

  /** In the slot that the current key does not use, so that the current one survives a failure. */
  async #newKey(currentKeyId: string | undefined): Promise<KeyAndCsr> {
    const key = await this.#options.keys.generate(nextKeyId(currentKeyId), "ec-p256");
    return { key, csr: await csrOf(key) };
  }

  async #trust(signal: AbortSignal): Promise<Trust> {
    const { state, trustDomain, bootstrap } = this.#options;
    const isKept = state.data.bundle.length > 0;
    if (isKept) await this.#followBundles(keptBundle(trustDomain, state.data), signal);
    if (this.#mustRebootstrap()) events.rebootstrapping(this.#options.log);
    else if (isKept) return { kind: "bundle", bundle: keptBundle(trustDomain, state.data) };
    const trust = await bootstrap.trust(isKept ? "rebootstrap" : "bootstrap", signal);
    if (trust.kind === "insecure" || !(await this.#followBundles(trust.bundle, signal))) return trust;
    return { kind: "bundle", bundle: keptBundle(trustDomain, state.data) };
  }

  #checkBundle(bundle: Bundle): void {
    if (bundle.trustDomain === this.#options.trustDomain && bundle.x509Authorities.length > 0) return;
    throw new Fault("internal", "the server's bundle is empty or names another trust domain", {
      code: "bundle-unusable",
    });
  }

  #current(): AgentIdentity {
    const identity = this.#options.credentials.identity.value;
    if (identity === undefined)
      throw new Fault("precondition", "the agent has no SVID yet", { code: "agent-not-attested" });
    return identity;
  }

  async #giveUp(error: Fault, say: () => void): Promise<never> {
    say();
    await this.#options.state.deleteSvid();
    const hint =
      denialReason(error) === "banned"
        ? 'an administrator has banned this agent: "steeple-server agent evict" lets it attest again'
        : "start the agent again, with a new join token if that is how it attests";
    throw new Fault(error.kind, error.message, { code: error.code, hint, details: error.details, cause: error });
  }

  /** What cannot be kept is still good until the next start. */
  async #store(change: Partial<AgentData>): Promise<void> {
    const { state, log } = this.#options;
    try {
      await state.update(change);
    } catch (error) {
      events.stateNotStored(log, change.svid === undefined ? "bundle" : "SVID", error);
    }
  }
}

/** The server has answered, and the answer is no. */
function isRefusal(error: unknown): boolean {
  return (isFault(error, "denied") || isFault(error, "invalid")) && error.code !== "join-token-missing";
}

function notReattestable(): Fault {
  return new Fault("precondition", "attestation method is not re-attestable", { code: "not-reattestable" });
}

function svidWithoutBundle(): Fault {
  return new Fault("precondition", "SVID loaded but no bundle in cache", {
    code: "bundle-missing",
    hint: "set trust_bundle_path, or remove agent-data.json so that the agent attests anew",
  });
}
