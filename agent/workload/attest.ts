import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { type Selector, selectorSet } from "../../src/spiffe/selector.ts";
import * as events from "../events.ts";
import { withDeadline } from "./deadline.ts";
import { CallerGate, OVERLOAD, once } from "./gate.ts";
import { AttestationHistory, type AttestationRecord, type SourceRecord } from "./history.ts";
import { verifyCaller } from "./process.ts";
import type { ClusterReferences } from "./references.ts";

/** One source of facts about a process. */
export interface Attestor {
  /** As configuration names it; the type of its selectors. */
  readonly name: string;
  /** Milliseconds an answer may take, where it is not the general limit. */
  readonly timeoutMs?: number;
  /** Resolves references to objects of a cluster, where it knows one. */
  readonly references?: ClusterReferences | undefined;
  /** What can be said at once, where that is all there is to say; undefined when `attest` must be asked. Throws as it does. */
  attestNow?(peer: PeerProcess): readonly Selector[] | undefined;
  /**
   * Throws when the facts cannot be had. May finish after the signal: the result is then ignored. Whoever outside of the
   * agent and the kernel has to be asked is asked through `remote`.
   */
  attest(peer: PeerProcess, signal: AbortSignal, remote?: Remote): Promise<readonly Selector[]>;
}

/**
 * Asks somebody outside, by a name that stays the same, for this caller. Those who wait for one that does not answer are
 * in nobody's way: each is asked in a queue of its own, and callers who need not ask do not stand in it.
 */
export type Remote = <T>(whom: string, ask: () => Promise<T>) => Promise<T>;

export const atOnce: Remote = (_whom, ask) => ask();

export interface WorkloadAttestorOptions {
  readonly attestors: readonly Attestor[];
  readonly clock: Clock;
  readonly log: Log;
  readonly timeoutMs?: number;
  /** Where the processes of this host are seen. */
  readonly procRoot?: string;
}

const TIMEOUT_MS = 30_000;

/** Turns a caller into selectors: every attestor side by side, between two proofs that it is still the same process. */
export class WorkloadAttestor {
  readonly #options: WorkloadAttestorOptions;
  /** For what is done here; those who wait for somebody outside have left. */
  readonly #gate = new CallerGate();
  readonly #remotes = new Map<string, CallerGate>();
  /** One look at a process is enough for all its streams that a change reaches at once. */
  readonly #looking = new WeakMap<PeerProcess, Promise<void>>();
  readonly #history = new AttestationHistory();

  constructor(options: WorkloadAttestorOptions) {
    this.#options = options;
  }

  /** What was found of the last callers. */
  get recent(): readonly AttestationRecord[] {
    return this.#history.records;
  }

  /**
   * Sorted, each once, never empty. Throws `unavailable` when nothing is known of the caller, and, with the code of its
   * fault, when the attestor failed that `needed` names.
   */
  async attest(peer: PeerProcess, signal: AbortSignal, needed?: string): Promise<readonly Selector[]> {
    const leave = once(await this.#gate.enter(peer, signal));
    try {
      return await events.chore(this.#options, "workload_api.workload_attestation", () =>
        this.#attest({ peer, signal, leave, needed }),
      );
    } finally {
      leave();
    }
  }

  async #attest(attestation: Attestation): Promise<readonly Selector[]> {
    const { peer } = attestation;
    const remember = this.#begin(peer);
    const sources: SourceRecord[] = [];
    try {
      await verifyCaller(peer, this.#options.procRoot);
      const selectors = selectorSet(await this.#collect(attestation, sources));
      if (selectors.length === 0) throw new Fault("unavailable", "no workload attestor knows the caller");
      await verifyCaller(peer, this.#options.procRoot);
      remember(sources);
      events.selectorsFound(this.#options.log, selectors.length);
      return selectors;
    } catch (error) {
      remember(sources, messageOf(error));
      throw error;
    }
  }

  /** Throws when the caller is gone, or is no longer the program or user that connected. T-W1. */
  async verify(peer: PeerProcess): Promise<void> {
    const looking = this.#looking.get(peer) ?? verifyCaller(peer, this.#options.procRoot);
    this.#looking.set(peer, looking);
    try {
      await looking;
    } finally {
      this.#looking.delete(peer);
    }
  }

  #begin({ pid, uid, gid }: PeerProcess): (sources: readonly SourceRecord[], error?: string) => void {
    const { clock } = this.#options;
    const [at, started] = [clock.now(), clock.monotonic()];
    return (sources, error) => {
      const failed = error === undefined ? {} : { error };
      this.#history.add({ at, pid, uid, gid, tookMs: clock.monotonic() - started, sources, ...failed });
    };
  }

  /**
   * A failed attestor's selectors are missing. Entries match by having all of their selectors among the caller's, so
   * what is missing can take identities away and never add one.
   */
  async #collect({ peer, signal, leave, needed }: Attestation, sources: SourceRecord[]): Promise<Selector[]> {
    const { attestors, log } = this.#options;
    let busy = attestors.length;
    const outside = (): void => {
      busy -= 1;
      if (busy === 0) leave();
    };
    const asked = attestors.map((attestor) => this.#ask(attestor, { peer, signal, leave: once(outside) }));
    sources.push(...(await Promise.all(asked)));
    signal.throwIfAborted();
    const failures = sources.flatMap(({ attestor, error }) => {
      if (error === undefined) return [];
      const failure = `workload attestor "${attestor}" failed`;
      log.error(failure, { pid: peer.pid, error });
      return [`${failure}: ${error}`];
    });
    const error = failures.join("; ");
    const { code } = sources.find(({ attestor }) => attestor === needed) ?? {};
    if (code !== undefined) throw new Fault("unavailable", error, { code });
    if (failures.length === attestors.length) throw new Fault("unavailable", error);
    if (failures.length > 0) log.error("Failed to collect all selectors", { pid: peer.pid, error });
    return sources.flatMap(({ selectors }) => selectors);
  }

  /** Each has a deadline of its own, so that a slow one costs nobody else's answer. */
  async #ask(attestor: Attestor, { peer, signal, leave }: Omit<Attestation, "needed">): Promise<SourceRecord> {
    const { clock, log, timeoutMs = TIMEOUT_MS } = this.#options;
    const ms = attestor.timeoutMs ?? timeoutMs;
    const started = clock.monotonic();
    const record = (): { attestor: string; tookMs: number } => ({
      attestor: attestor.name,
      tookMs: clock.monotonic() - started,
    });
    try {
      const selectors = await events.chore(
        { log, clock, attestor: attestor.name },
        "workload_api.workload_attestor",
        async () =>
          attestor.attestNow?.(peer) ??
          (await withDeadline({ ms, clock, signal }, (deadline) =>
            attestor.attest(peer, deadline, this.#remote({ peer, signal: deadline, leave })),
          )),
      );
      return { ...record(), selectors };
    } catch (error) {
      const { code, message } = Fault.from(error);
      if (code === OVERLOAD) throw error;
      return { ...record(), selectors: [], error: message, code };
    } finally {
      leave();
    }
  }

  #remote({ peer, signal, leave }: Omit<Attestation, "needed">): Remote {
    return async (whom, ask) => {
      leave();
      const gate = this.#remotes.get(whom) ?? new CallerGate();
      this.#remotes.set(whom, gate);
      const done = await gate.enter(peer, signal);
      try {
        return await ask();
      } finally {
        done();
      }
    };
  }
}

interface Attestation {
  readonly peer: PeerProcess;
  readonly signal: AbortSignal;
  /** Gives up the caller's place among those worked for: all that is left is to wait for somebody outside. */
  readonly leave: () => void;
  /** Name of the attestor without whose answer there is none. */
  readonly needed: string | undefined;
}
