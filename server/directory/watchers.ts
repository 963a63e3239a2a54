import { Feed } from "../../src/runtime/feed.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";

interface Watched {
  readonly feed: Feed<number>;
  users: number;
}

/** Who waits for news of which agent. Nothing is held of an agent that nobody watches. */
export class Watchers {
  readonly #watched = new Map<SpiffeId, Watched>();

  /** How many agents are watched. */
  get size(): number {
    return this.#watched.size;
  }

  /** Yields at once, and whenever the agent was touched since; several touches may count as one. Ends with the signal. */
  async *watch(agent: SpiffeId, signal: AbortSignal): AsyncGenerator<void, void, undefined> {
    const watched = this.#watched.get(agent) ?? { feed: new Feed(0), users: 0 };
    this.#watched.set(agent, watched);
    watched.users += 1;
    try {
      for await (const _ of watched.feed.watch(signal)) yield;
    } finally {
      watched.users -= 1;
      if (watched.users === 0 && this.#watched.get(agent) === watched) this.#watched.delete(agent);
    }
  }

  has(agent: SpiffeId): boolean {
    return this.#watched.has(agent);
  }

  watched(): readonly SpiffeId[] {
    return [...this.#watched.keys()];
  }

  /** False when nobody watches it. */
  touch(agent: SpiffeId): boolean {
    const watched = this.#watched.get(agent);
    if (watched === undefined) return false;
    watched.feed.set(watched.feed.value + 1);
    return true;
  }
}
