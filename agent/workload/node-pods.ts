import type { Clock } from "../../src/runtime/clock.ts";
import { withDeadline } from "./deadline.ts";
import type { KubeWatch } from "./kube-watch.ts";
import { type Pod, type PodList, type PodSearch, type PodSource, podListOf, podOf } from "./pods.ts";

export interface NodePodsOptions {
  readonly watch: Pick<KubeWatch<Pod>, "objects" | "changed">;
  readonly kubelet: PodSource;
  /** Longest wait for an event before the kubelet is asked again. */
  readonly patienceMs: number;
  readonly clock: Clock;
}

/**
 * The pods of this node by a watch of the API server's, and by its kubelet: a pod that is not among the watched ones is
 * asked for once, then waited for. The kubelet itself learns of its pods and their containers from the API server, so
 * that nothing is found later by watching; static pods alone are the kubelet's own.
 */
export class NodePods implements PodSource {
  readonly #options: NodePodsOptions;
  #held: { readonly objects: ReadonlyMap<string, Pod>; readonly list: PodList } | undefined;

  constructor(options: NodePodsOptions) {
    this.#options = options;
  }

  search(): PodSearch {
    const { watch, kubelet, clock, patienceMs } = this.#options;
    const asked = kubelet.search();
    let seen: ReadonlyMap<string, Pod> | undefined;
    let askAt = Number.POSITIVE_INFINITY;
    return {
      next: async (signal) => {
        if (seen !== undefined && watch.objects === seen) await this.#changed(seen, askAt - clock.monotonic(), signal);
        const { objects } = watch;
        if (objects === undefined || objects === seen || clock.monotonic() >= askAt) {
          askAt = clock.monotonic() + patienceMs;
          return await asked.next(signal);
        }
        if (seen === undefined) askAt = clock.monotonic();
        seen = objects;
        return this.#listOf(objects);
      },
    };
  }

  /** Waits for others than those, for so long at most. */
  async #changed(seen: ReadonlyMap<string, Pod>, ms: number, signal: AbortSignal): Promise<void> {
    if (ms <= 0) return;
    try {
      await withDeadline({ ms, clock: this.#options.clock, signal }, (limit) =>
        this.#options.watch.changed(seen, limit),
      );
    } catch {
      signal.throwIfAborted();
    }
  }

  #listOf(objects: ReadonlyMap<string, Pod>): PodList {
    if (this.#held?.objects !== objects)
      this.#held = { objects, list: podListOf(objects.values(), "the Kubernetes API server") };
    return this.#held.list;
  }
}

/** The API server shows a static pod under another UID, and whoever may make pods could make what looks like one. */
export function watchedPod(object: unknown): Pod | undefined {
  const pod = podOf(object);
  return pod.uid === "" || pod.isMirror ? undefined : pod;
}
