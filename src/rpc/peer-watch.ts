import type { Clock } from "../runtime/clock.ts";
import { libc } from "./libc.ts";
import type { PeerProcess } from "./peer-credentials.ts";

const INTERVAL_MS = 500;

/**
 * Tells of processes that have exited while their connections stand, because another process holds them too. One system
 * call looks at all of them; with none there is nothing to do.
 */
export class PeerWatch {
  readonly #clock: Clock;
  readonly #signal: AbortSignal;
  readonly #watched = new Map<PeerProcess, () => void>();
  #running = false;

  /** The signal ends the watch. */
  constructor(clock: Clock, signal: AbortSignal) {
    this.#clock = clock;
    this.#signal = signal;
  }

  /** Calls `onExit` once, within a second of the exit, unless the process is forgotten before. */
  add(peer: PeerProcess, onExit: () => void): void {
    this.#watched.set(peer, onExit);
    if (!this.#running) void this.#run();
  }

  forget(peer: PeerProcess): void {
    this.#watched.delete(peer);
  }

  async #run(): Promise<void> {
    this.#running = true;
    try {
      while (this.#watched.size > 0) {
        await this.#clock.sleep(INTERVAL_MS, this.#signal);
        this.#look();
      }
    } catch {
      // Only the signal ends the wait.
    } finally {
      this.#running = false;
    }
  }

  #look(): void {
    const open = [...this.#watched].filter(([{ pidfd }]) => pidfd !== undefined);
    const exited = libc().haveExited(open.map(([{ pidfd }]) => pidfd ?? -1));
    for (const [at, [peer, onExit]] of open.entries()) {
      if (exited[at] !== true) continue;
      this.forget(peer);
      onExit();
    }
  }
}
