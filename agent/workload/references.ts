import { type PeerProcess, pinPid } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Selector } from "../../src/spiffe/selector.ts";

/** A workload that somebody else points at. Its owner disposes of it. */
export interface ReferencedWorkload extends Disposable {
  /** Never empty. */
  readonly selectors: readonly Selector[];
  /** Throws when it is gone, or is another than the one that was attested. */
  verify(): Promise<void>;
  /** Resolves with the reason once `verify` would throw, within about a second. Never resolves after the signal. */
  ended(signal: AbortSignal): Promise<unknown>;
}

/** An object of the Kubernetes API, as a reference names it: by key, by UID, or by both, which must then agree. */
export interface KubernetesObject {
  /** Such as `pods`. */
  readonly plural: string;
  /** API group; `core` for the one without a name. */
  readonly group: string;
  readonly key: { readonly namespace: string; readonly name: string } | undefined;
  /** In lower case. */
  readonly uid: string | undefined;
}

/** Who resolves such objects; an attestor that knows the cluster. */
export interface ObjectReferences {
  /** Throws `not_found` when there is no such object, `invalid` when the reference does not fit its type. */
  open(object: KubernetesObject, signal: AbortSignal): Promise<ReferencedWorkload>;
}

interface ProcessAttestor {
  attest(peer: PeerProcess, signal: AbortSignal): Promise<readonly Selector[]>;
  verify(peer: PeerProcess): Promise<void>;
}

const LOOK_EVERY_MS = 1_000;

/** Workloads by the pid of one of their processes, pinned before it is asked who it is. */
export class ProcessReferences {
  readonly #attestor: ProcessAttestor;
  readonly #clock: Clock;

  constructor(attestor: ProcessAttestor, clock: Clock) {
    this.#attestor = attestor;
    this.#clock = clock;
  }

  /** Throws `not_found` when there is no such process, and what attestation throws. */
  async open(pid: number, signal: AbortSignal): Promise<ReferencedWorkload> {
    using scope = new DisposableStack();
    const peer = scope.use(pinPid(pid));
    const selectors = await this.#attestor.attest(peer, signal);
    const verify = (): Promise<void> => this.#attestor.verify(peer);
    const held = scope.move();
    return {
      selectors,
      verify,
      ended: (until) => this.#untilGone(verify, until),
      [Symbol.dispose]: () => held.dispose(),
    };
  }

  async #untilGone(verify: () => Promise<void>, signal: AbortSignal): Promise<unknown> {
    for (;;) {
      await this.#clock.sleep(LOOK_EVERY_MS, signal);
      try {
        await verify();
      } catch (error) {
        if (!signal.aborted) return error;
      }
    }
  }
}
