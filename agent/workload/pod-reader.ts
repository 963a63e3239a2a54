import { hash } from "node:crypto";
import { jsonOf } from "./http.ts";
import { JsonItems } from "./json-items.ts";
import { type Pod, podOf } from "./pods.ts";

/** The API server takes objects of 1.5 MiB at most; a kubelet adds little. */
const MAX_POD_BYTES = 4 * 1024 * 1024;

/** One list of pods as it comes. */
export interface PodReading {
  push(chunk: Buffer): void;
  /** The very array of the time before when it holds the same pods. Throws `unavailable` when this is no list of pods. */
  end(): readonly Pod[];
}

/**
 * Reads lists of the same pods again and again: a pod whose JSON is the one of the time before is not parsed. A kubelet
 * has no versions or ETags for its list, and names the pods in another order each time.
 */
export class PodReader {
  readonly #peer: string;
  #known: ReadonlyMap<string, Pod> = new Map();
  #pods: readonly Pod[] = [];

  constructor(peer: string) {
    this.#peer = peer;
  }

  /** Nothing is remembered of a reading that does not end. */
  begin(): PodReading {
    const pods: Pod[] = [];
    const seen = new Map<string, Pod>();
    const onItem = (json: Buffer): void => {
      const digest = hash("sha256", json, "latin1");
      const pod = this.#known.get(digest) ?? podOf(jsonOf(json, this.#peer));
      seen.set(digest, pod);
      if (pod.uid !== "") pods.push(pod);
    };
    const items = new JsonItems({ maxItemBytes: MAX_POD_BYTES, onItem, peer: this.#peer });
    return {
      push: (chunk) => items.push(chunk),
      end: () => {
        items.end();
        const counts = new Set([pods.length, seen.size, this.#pods.length, this.#known.size]);
        const isSame = counts.size === 1 && [...seen.keys()].every((digest) => this.#known.has(digest));
        this.#known = seen;
        if (!isSame) this.#pods = pods;
        return this.#pods;
      },
    };
  }
}
