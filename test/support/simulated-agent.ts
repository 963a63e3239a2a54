import { setTimeout as delay } from "node:timers/promises";
import type { WatchAuthorizedEntriesRequest } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import type { WatchAuthorizedEntriesResponse__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesResponse.ts";
import { EntryApi, PushApi } from "../../src/rpc/protos.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Backoff } from "../../src/runtime/task.ts";
import { EntryDigest, type EntryVersion, sameVersion } from "../../src/spiffe/entry-digest.ts";
import { eventually } from "./eventually.ts";
import { LightChannel } from "./light-channel.ts";
import type { ServerClient, TestSvid } from "./server.ts";

export interface SimulatedAgentOptions {
  /** Called for each entry that is new, changed or gone. */
  readonly told?: (entryId: string) => void;
  /** Asks this often, as SPIRE's agents do, instead of holding a stream of changes. */
  readonly pollMs?: number;
  /** Shared with others of the same SVID, in place of one of its own. */
  readonly connection?: SharedConnection;
  /** Which of this machine's addresses to come from: a server lets in only so many from one. */
  readonly localAddress?: string;
  /** How long a start may take. */
  readonly startMs?: number;
}

type Home = Pick<ServerClient, "address" | "port" | "verifyServer">;

/** As a real agent's, but for the longest. */
const RETRY = { firstMs: 100, maxMs: 2_000, jitter: 0.5 } as const;
/** As often as a real agent compares what it holds with the server. */
export const COMPARE_MS = 60_000;
const ENTRY_MASK = { revision_number: true, created_at: true, spiffe_id: true, selectors: true };

/** One connection for several agents, made again when it is lost. */
export class SharedConnection implements Disposable {
  readonly #home: () => Home;
  readonly #svid: TestSvid;
  #open: Promise<LightChannel> | undefined;

  constructor(svid: TestSvid, home: () => Home) {
    this.#svid = svid;
    this.#home = home;
  }

  get(): Promise<LightChannel> {
    this.#open ??= this.#connect();
    return this.#open;
  }

  [Symbol.dispose](): void {
    void this.#open?.then((channel) => channel[Symbol.dispose]()).catch(() => undefined);
  }

  async #connect(): Promise<LightChannel> {
    const lost = (): void => {
      this.#open = undefined;
    };
    try {
      const channel = await LightChannel.open(this.#home(), this.#svid.tls);
      void channel.closed.then(lost);
      return channel;
    } catch (error) {
      lost();
      throw error;
    }
  }
}

/**
 * An agent without workloads: it attests, holds its stream of changes and keeps what it is told, over the same wire as
 * a real one. Thousands fit into one process.
 */
export class SimulatedAgent implements AsyncDisposable {
  readonly id: string;
  readonly entries = new Map<string, EntryVersion>();
  /** How often its state had to be compared and repaired after the first time. */
  divergences = 0;
  /** Agreements with the server, each at the start of a connection. */
  agreements = 0;
  /** Each time that a server sent it away: for how many milliseconds. */
  readonly drains: number[] = [];
  readonly #home: () => Home;
  readonly #svid: TestSvid;
  readonly #options: SimulatedAgentOptions;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  readonly #digest = new EntryDigest();
  #channel: LightChannel | undefined;
  #stream: Disposable | undefined;
  #agreed = false;

  private constructor(svid: TestSvid, home: () => Home, options: SimulatedAgentOptions) {
    this.id = svid.id;
    this.#svid = svid;
    this.#home = home;
    this.#options = options;
    this.#running = this.#run();
  }

  /** Attests at the server; `server` is asked again for each connection, so that it may be another one by then. */
  static async start(
    server: () => Home & Pick<ServerClient, "attest">,
    options: SimulatedAgentOptions = {},
  ): Promise<SimulatedAgent> {
    const agent = SimulatedAgent.of(await server().attest(), server, options);
    await eventually("agreement with the server", () => agent.agreed, options.startMs);
    return agent;
  }

  /** One that has attested. Any number may go by one SVID. */
  static of(svid: TestSvid, home: () => Home, options: SimulatedAgentOptions = {}): SimulatedAgent {
    return new SimulatedAgent(svid, home, options);
  }

  /** It has agreed with the server on its present connection. */
  get agreed(): boolean {
    return this.#agreed;
  }

  /** Of the present connection, for further calls. */
  get channel(): LightChannel {
    if (this.#channel === undefined) throw new Error(`${this.id} has no connection`);
    return this.#channel;
  }

  /** Loses its connection; it makes another one by itself. */
  drop(): void {
    this.#channel?.[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#stream?.[Symbol.dispose]();
    await this.#running;
  }

  async #run(): Promise<void> {
    const pauses = new Backoff(systemClock, RETRY);
    while (!this.#stop.signal.aborted) {
      try {
        const channel = await this.#connect();
        this.#channel = channel;
        if (this.#options.pollMs !== undefined) await this.#poll(channel, this.#options.pollMs);
        else await this.#follow(channel);
      } catch {
        if (this.#agreed) pauses.reset();
        this.#agreed = false;
        await this.#pause(pauses.next());
      } finally {
        if (this.#options.connection === undefined) this.drop();
        this.#channel = undefined;
        this.#agreed = false;
      }
    }
  }

  #connect(): Promise<LightChannel> {
    const { localAddress, connection } = this.#options;
    if (connection !== undefined) return connection.get();
    return LightChannel.open(
      { ...this.#home(), ...(localAddress === undefined ? {} : { localAddress }) },
      this.#svid.tls,
    );
  }

  #pause(ms: number): Promise<void> {
    return delay(ms, undefined, { signal: this.#stop.signal }).catch(() => undefined);
  }

  /** Returns when the server has sent it away, and that time is over. */
  async #follow(channel: LightChannel): Promise<void> {
    using stream = channel.stream(PushApi, "WatchAuthorizedEntries");
    this.#stream = stream;
    stream.send({ held: { digest: this.#digest.bytes(), output_mask: ENTRY_MASK } });
    const comparing = setInterval(() => stream.send({ held: { digest: this.#digest.bytes() } }), COMPARE_MS);
    try {
      for await (const { number, entries, divergence, drain } of stream) {
        if (this.#stop.signal.aborted) return;
        if (drain) return await this.#stayAway(drain.reconnect_after_ms);
        if (divergence) stream.send(this.#revisions());
        if (entries) this.#take(entries);
        stream.send({ applied: number });
        if (!entries || entries.more) continue;
        if (!this.#digest.equals(entries.digest as Buffer)) stream.send(this.#revisions());
        else if (!this.#agreed) {
          this.agreements += 1;
          this.#agreed = true;
        }
      }
    } finally {
      clearInterval(comparing);
    }
    throw new Fault("unavailable", "the server ended the stream");
  }

  async #stayAway(ms: number): Promise<void> {
    this.#agreed = false;
    this.drains.push(ms);
    if (this.#options.connection === undefined) this.drop();
    await this.#pause(ms);
  }

  #take({ changed, removed }: NonNullable<WatchAuthorizedEntriesResponse__Output["entries"]>): void {
    for (const id of removed) this.#hold(id, undefined);
    for (const { id, revision_number, created_at } of changed)
      this.#hold(id, { id, revisionNumber: Number(revision_number), createdAt: Number(created_at) });
  }

  #hold(id: string, version: EntryVersion | undefined): void {
    const before = this.entries.get(id);
    if (before !== undefined) this.#digest.toggle(before);
    if (version === undefined) this.entries.delete(id);
    else {
      this.entries.set(id, version);
      this.#digest.toggle(version);
    }
    this.#options.told?.(id);
  }

  #revisions(): WatchAuthorizedEntriesRequest {
    this.divergences += 1;
    const revisions = [...this.entries.values()].map(({ id, revisionNumber, createdAt }) => ({
      id,
      revision_number: revisionNumber,
      created_at: createdAt,
    }));
    return { held: { revisions: { revisions, more: false } } };
  }

  /** The first time at once, then spread over the interval, as agents that started at different times are. */
  async #poll(channel: LightChannel, everyMs: number): Promise<void> {
    await this.#ask(channel);
    this.agreements += 1;
    this.#agreed = true;
    const lost = new AbortController();
    void channel.closed.then(() => lost.abort());
    const signal = AbortSignal.any([this.#stop.signal, lost.signal]);
    for (let wait = Math.random() * everyMs; ; wait = everyMs) {
      await delay(wait, undefined, { signal });
      await this.#ask(channel);
    }
  }

  /** A server with few entries sends them all at once; one with many their revisions first, and then what is asked for. */
  async #ask(channel: LightChannel): Promise<void> {
    using stream = channel.stream(EntryApi, "SyncAuthorizedEntries");
    const named = new Set<string>();
    const missing: string[] = [];
    stream.send({ output_mask: ENTRY_MASK });
    let asked = false;
    for await (const { entries, entry_revisions, more } of stream) {
      for (const { id, revision_number, created_at } of [...entries, ...entry_revisions]) {
        const version = { id, revisionNumber: Number(revision_number), createdAt: Number(created_at) };
        named.add(id);
        if (sameVersion(this.entries.get(id), version)) continue;
        if (entry_revisions.length > 0) missing.push(id);
        else this.#hold(id, version);
      }
      if (more) continue;
      if (asked || missing.length === 0) break;
      asked = true;
      stream.send({ ids: missing });
    }
    for (const id of [...this.entries.keys()].filter((one) => !named.has(one))) this.#hold(id, undefined);
  }
}
