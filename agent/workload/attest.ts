import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { type Selector, selectorSet } from "../../src/spiffe/selector.ts";
import { withDeadline } from "./deadline.ts";
import { KeyedGate } from "./gate.ts";
import { verifyCaller } from "./process.ts";

/** One source of facts about a process. */
export interface Attestor {
  /** As configuration names it; the type of its selectors. */
  readonly name: string;
  /** Milliseconds an answer may take, where it is not the general limit. */
  readonly timeoutMs?: number;
  /** Throws when the facts cannot be had. May finish after the signal: the result is then ignored. */
  attest(peer: PeerProcess, signal: AbortSignal): Promise<readonly Selector[]>;
}

export interface WorkloadAttestorOptions {
  readonly attestors: readonly Attestor[];
  readonly clock: Clock;
  readonly log: Log;
  readonly timeoutMs?: number;
  /** Where the processes of this host are seen. */
  readonly procRoot?: string;
}

const TIMEOUT_MS = 30_000;
/** Attestations of one uid at the same time, and those that wait their turn. One user's storm starves no other. */
const CONCURRENT_PER_UID = 16;
const WAITING_PER_UID = 4096;

/** Turns a caller into selectors: every attestor side by side, between two proofs that it is still the same process. */
export class WorkloadAttestor {
  readonly #options: WorkloadAttestorOptions;
  readonly #gate = new KeyedGate({ concurrent: CONCURRENT_PER_UID, waiting: WAITING_PER_UID });

  constructor(options: WorkloadAttestorOptions) {
    this.#options = options;
  }

  /** Sorted, each once, never empty. Throws `unavailable` when nothing is known of the caller. */
  async attest(peer: PeerProcess, signal: AbortSignal): Promise<readonly Selector[]> {
    return this.#gate.run(peer.uid, signal, async () => {
      await this.verify(peer);
      const selectors = selectorSet(await this.#collect(peer, signal));
      if (selectors.length === 0) throw new Fault("unavailable", "no workload attestor knows the caller");
      await this.verify(peer);
      return selectors;
    });
  }

  /** Throws when the caller is gone, or is no longer the program or user that connected. T-W1. */
  async verify(peer: PeerProcess): Promise<void> {
    await verifyCaller(peer, this.#options.procRoot);
  }

  async #collect(peer: PeerProcess, signal: AbortSignal): Promise<Selector[]> {
    const { attestors, log } = this.#options;
    const outcomes = await Promise.allSettled(attestors.map((attestor) => this.#ask(attestor, peer, signal)));
    signal.throwIfAborted();
    const failures = outcomes.flatMap((outcome, index) => {
      if (outcome.status === "fulfilled") return [];
      const failure = `workload attestor "${attestors[index]?.name}" failed`;
      const { message } = Fault.from(outcome.reason);
      log.error(failure, { pid: peer.pid, error: message });
      return [`${failure}: ${message}`];
    });
    const error = failures.join("; ");
    if (failures.length === attestors.length) throw new Fault("unavailable", error);
    if (failures.length > 0) log.error("Failed to collect all selectors", { pid: peer.pid, error });
    return outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? outcome.value : []));
  }

  /** Each has a deadline of its own, so that a slow one costs nobody else's answer. */
  #ask(attestor: Attestor, peer: PeerProcess, signal: AbortSignal): Promise<readonly Selector[]> {
    const { clock, timeoutMs = TIMEOUT_MS } = this.#options;
    const ms = attestor.timeoutMs ?? timeoutMs;
    return withDeadline({ ms, clock, signal }, (deadline) => attestor.attest(peer, deadline));
  }
}
