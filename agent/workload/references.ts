import { type PeerProcess, pinPid } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { Selector } from "../../src/spiffe/selector.ts";

/** A workload that somebody else points at. Its owner disposes of it. */
export interface ReferencedWorkload extends Disposable {
  /** Never empty. */
  readonly selectors: readonly Selector[];
  /** Throws when it is gone, or is another than the one that was attested. */
  verify(): Promise<void>;
  /** Resolves with the reason once it is gone, within seconds. Never resolves after the signal. */
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

/** Who points, and for how long the answer is waited for. */
export interface Asking {
  readonly broker: SpiffeId;
  readonly signal: AbortSignal;
}

/** Who resolves such objects; an attestor that knows the cluster. */
export interface ObjectReferences {
  /**
   * Throws `not_found` when there is no such object, `invalid` when the reference does not fit its type, and `denied`
   * with the code `object-access-denied` when the cluster does not let this broker have it.
   */
  open(object: KubernetesObject, asking: Asking): Promise<ReferencedWorkload>;
}

export interface ClusterReferences extends ObjectReferences {
  /** Name of the workload attestor that says which pod a process belongs to. */
  readonly attestor: string;
  /** Throws as `open` does for the pod, if any, that the process with these selectors belongs to. */
  authorize(selectors: readonly Selector[], asking: Asking): Promise<void>;
}

/** Fault code of what a broker may not have, although it is there. */
export const OBJECT_ACCESS_DENIED = "object-access-denied";

interface ProcessAttestor {
  /** Throws when the attestor fails that is needed. */
  attest(peer: PeerProcess, signal: AbortSignal, needed?: string): Promise<readonly Selector[]>;
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
  async open(pid: number, signal: AbortSignal, needed?: string): Promise<ReferencedWorkload> {
    using scope = new DisposableStack();
    const peer = scope.use(pinPid(pid));
    const selectors = await this.#attestor.attest(peer, signal, needed);
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

/**
 * The same for brokers: a process in a pod is theirs only if the cluster lets them have the pod, and nobody's while that
 * cannot be found out. While nothing says which brokers may have pods, they get what a process has besides its pod.
 */
export class BrokerProcessReferences {
  readonly #processes: Pick<ProcessReferences, "open">;
  readonly #cluster: ClusterReferences | undefined;

  constructor(processes: Pick<ProcessReferences, "open">, cluster: ClusterReferences | undefined) {
    this.#processes = processes;
    this.#cluster = cluster;
  }

  async open(pid: number, asking: Asking): Promise<ReferencedWorkload> {
    using scope = new DisposableStack();
    const opening = this.#processes.open(pid, asking.signal, this.#cluster?.attestor);
    const workload = scope.use(await opening.catch(refuseUnknown));
    await this.#cluster?.authorize(workload.selectors, asking);
    const selectors = this.#cluster === undefined ? withoutPod(workload.selectors) : workload.selectors;
    const held = scope.move();
    return {
      selectors,
      verify: () => workload.verify(),
      ended: (until) => workload.ended(until),
      [Symbol.dispose]: () => held.dispose(),
    };
  }
}

/** The pause process of a pod, for one. */
function refuseUnknown(error: unknown): never {
  if (!(isFault(error) && error.code === "container-unknown")) throw error;
  throw new Fault("denied", "the process is in a container that the cluster does not know", {
    code: OBJECT_ACCESS_DENIED,
    cause: error,
  });
}

function withoutPod(selectors: readonly Selector[]): readonly Selector[] {
  const others = selectors.filter(({ type }) => type !== "k8s");
  if (others.length > 0) return others;
  throw new Fault("denied", "brokers may not refer to the pods of this node", {
    code: OBJECT_ACCESS_DENIED,
    hint: "name the broker in experimental.broker.brokers of the agent's k8s workload attestor",
  });
}
