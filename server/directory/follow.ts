import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import * as events from "../events.ts";
import { type ChangeStore, SCHEMA_NEWER, type Snapshot } from "../store/store.ts";
import type { Directory, Reload } from "./authorized.ts";
import { inTurns } from "./steps.ts";

export interface FollowerOptions {
  readonly changes: Pick<ChangeStore, "load" | "since" | "wake">;
  readonly directory: Directory;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Keeps the directory equal to the database by the change feed. While the database is away the directory keeps what it
 * holds, and catches up afterwards.
 */
export class Follower {
  readonly #options: FollowerOptions;
  readonly #steps: Coalesced;
  #cursor: string | undefined;
  #away = false;
  #replaced = 0;

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#steps = new Coalesced(() => this.#step());
  }

  /** How often the database was found to be another one than before. */
  get replaced(): number {
    return this.#replaced;
  }

  /** Loads everything. Throws when the database does not answer: a server starts only with a whole directory. */
  async load(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#reload();
    signal.throwIfAborted();
  }

  /**
   * Applies changes as they come, until the signal. Failures are logged once and tried again with the next wake. Throws
   * when a newer release has changed the database so that this one must not serve from it.
   */
  async run(signal: AbortSignal): Promise<void> {
    for await (const _ of this.#options.changes.wake(signal)) {
      await this.#steps.run().then(
        () => this.#back(),
        (error: unknown) => this.#failed(error),
      );
      if (signal.aborted) return;
    }
  }

  /**
   * Resolves when whatever was committed before the call is in the directory. Rejects when the database is away; the
   * directory is then as it was.
   */
  caughtUp(): Promise<void> {
    return this.#steps.run();
  }

  async #step(): Promise<void> {
    if (this.#cursor === undefined) return this.#reload();
    const changes = await this.#options.changes.since(this.#cursor);
    if (changes === "reload" || changes === "other") return this.#reload(changes);
    const { directory, log, clock } = this.#options;
    const isNews = changes.entries.size + changes.nodes.size > 0;
    const apply = () => inTurns(clock, directory.apply(changes));
    await (isNews ? events.chore(this.#options, "entry.cache.reload", apply) : apply());
    this.#cursor = changes.cursor;
    if (isNews) events.directoryFollowed(log, directory.counts);
  }

  #reload(why: "reload" | "other" = "reload"): Promise<void> {
    return events.chore(this.#options, "entry.cache.reload", () => this.#loadAll(why));
  }

  async #loadAll(why: "reload" | "other"): Promise<void> {
    const started = this.#options.clock.monotonic();
    const { directory, clock } = this.#options;
    const reload = directory.reload();
    let loaded: { readonly cursor: string; readonly loss: Loss | undefined };
    try {
      loaded = await this.#options.changes.load(async (snapshot) => {
        // Only then does it matter, and looking at every entry costs.
        const loss = why === "other" ? new Loss(directory) : undefined;
        await readAll(snapshot, { clock, reload, loss });
        return { cursor: snapshot.cursor, loss };
      });
    } catch (error) {
      await inTurns(clock, reload.abandon());
      throw error;
    }
    const lost = loaded.loss?.count();
    await inTurns(clock, reload.finish());
    if (lost !== undefined) {
      events.datastoreReplaced(this.#options.log, lost);
      this.#replaced += 1;
    }
    this.#cursor = loaded.cursor;
    const { counts } = directory;
    const { entries, nodes, bundles } = counts;
    events.directoryFollowed(this.#options.log, counts);
    const elapsedMs = Math.round(this.#options.clock.monotonic() - started);
    this.#options.log.debug("Directory loaded", { entries, agents: nodes, bundles, elapsed_ms: elapsedMs });
  }

  #failed(error: unknown): void {
    if (isFault(error, "precondition") && error.code === SCHEMA_NEWER) throw error;
    if (this.#away) return;
    this.#away = true;
    this.#options.log.warn("Could not read changes from the datastore; serving what is held", {
      error: Fault.from(error),
    });
  }

  #back(): void {
    if (!this.#away) return;
    this.#away = false;
    this.#options.log.info("Reading changes from the datastore again");
  }
}

/** Runs never overlap; whoever asks during a run is served by one run that begins after it. */
class Coalesced {
  readonly #work: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(work: () => Promise<void>) {
    this.#work = work;
  }

  run(): Promise<void> {
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#begin();
    const begin = (): Promise<void> => {
      this.#next = undefined;
      return this.#begin();
    };
    this.#next = this.#running.then(begin, begin);
    return this.#next;
  }

  #begin(): Promise<void> {
    const running = this.#work().finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    return running;
  }
}

/** What the directory holds and a snapshot does not. */
class Loss {
  readonly #directory: Directory;
  #known = 0;
  #older = 0;

  constructor(directory: Directory) {
    this.#directory = directory;
  }

  see({ id, revisionNumber }: Entry): void {
    const held = this.#directory.entry(id);
    if (held !== undefined) this.#known += 1;
    if (held !== undefined && held.revisionNumber > revisionNumber) this.#older += 1;
  }

  count(): { readonly gone: number; readonly older: number } {
    return { gone: this.#directory.counts.entries - this.#known, older: this.#older };
  }
}

interface Reading {
  readonly clock: Clock;
  readonly reload: Reload;
  readonly loss: Loss | undefined;
}

async function readAll(snapshot: Snapshot, { clock, reload, loss }: Reading): Promise<void> {
  await receive(clock, snapshot.entries, (entry) => {
    loss?.see(entry);
    reload.entry(entry);
  });
  await receive(clock, snapshot.nodes, (node) => reload.node(node));
  await receive(clock, snapshot.bundles, (bundle) => reload.bundle(bundle));
}

async function receive<T>(clock: Clock, portions: AsyncIterable<readonly T[]>, take: (row: T) => void): Promise<void> {
  for await (const rows of portions) {
    for (const row of rows) take(row);
    await clock.sleep(0);
  }
}
