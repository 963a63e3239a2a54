import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import * as events from "../events.ts";
import { jsonOf } from "./http.ts";
import { JsonItems } from "./json-items.ts";
import { JsonLines } from "./json-lines.ts";
import { type KubeApi, kubernetesFault, VERSION_GONE } from "./kube-api.ts";
import { objectOf, textOf } from "./pods.ts";

export interface KubeWatchOptions<T> {
  readonly api: Pick<KubeApi, "stream">;
  readonly clock: Clock;
  readonly log: Log;
  /** Of the list, such as `/api/v1/pods`. */
  readonly path: string;
  /** Which of them, as in `spec.nodeName=node-1`. */
  readonly fieldSelector?: string;
  /** For the metadata alone. */
  readonly accept?: { readonly list: string; readonly watch: string };
  /** What is kept of an object; undefined for those that are not wanted. */
  readonly read: (object: unknown) => T | undefined;
}

/** Objects by UID, as the API server has them. */
type Objects<T> = ReadonlyMap<string, T>;

const PEER = "the Kubernetes API server";
const MAX_OBJECT_BYTES = 4 * 1024 * 1024;
const LIST_MS = 60_000;
/** The server ends each watch after this time; whoever is still there some time later hangs. */
const WATCH_S = 290;
const WATCH_MS = 330_000;
const BACKOFF = { firstMs: 100, maxMs: 30_000, factor: 2, jitter: 0.3 } as const;
/** A watch that held this long is no failure when it ends. */
const SETTLED_MS = 10_000;

/**
 * A list of the API server's that is kept up to date: listed once, then watched from the version of the list on, with
 * bookmarks, and listed anew only when the server does not remember that version any more.
 */
export class KubeWatch<T> {
  readonly #options: KubeWatchOptions<T>;
  readonly #feed = new Feed<Objects<T> | undefined>(undefined);
  #objects: Map<string, T> = new Map();
  #version: string | undefined;
  #wasListed = false;
  #wasOpened = false;
  #failure: string | undefined;

  constructor(options: KubeWatchOptions<T>) {
    this.#options = options;
  }

  /** Undefined while the API server is away, or was not asked yet. */
  get objects(): Objects<T> | undefined {
    return this.#feed.value;
  }

  /** Resolves when they are others than those seen. */
  async changed(seen: Objects<T>, signal: AbortSignal): Promise<void> {
    await this.#feed.until((objects) => objects !== seen, signal);
  }

  /** Goes on until the signal ends it. */
  start(signal: AbortSignal): void {
    void this.#run(signal).catch(() => undefined);
  }

  async #run(signal: AbortSignal): Promise<never> {
    const { clock } = this.#options;
    const backoff = new Backoff(clock, BACKOFF);
    for (;;) {
      const startedAt = clock.monotonic();
      try {
        if (this.#version === undefined) await this.#list(signal);
        await this.#follow(signal);
      } catch (error) {
        signal.throwIfAborted();
        this.#failed(error);
      }
      if (clock.monotonic() - startedAt >= SETTLED_MS) backoff.reset();
      await clock.sleep(backoff.next(), signal);
    }
  }

  /** The first list may come from the server's memory, one after a gap must be as new as can be. */
  async #list(signal: AbortSignal): Promise<void> {
    const { api, accept, read } = this.#options;
    const objects = new Map<string, T>();
    const onItem = (json: Buffer): void => {
      const object: unknown = jsonOf(json, PEER);
      const kept = read(object);
      if (kept !== undefined) objects.set(uidOf(object), kept);
    };
    const sink = new JsonItems({ maxItemBytes: MAX_OBJECT_BYTES, onItem, peer: PEER });
    const path = this.#path(this.#wasListed ? {} : { resourceVersion: "0" });
    await api.stream({ path, signal, ms: LIST_MS, sink, ...(accept === undefined ? {} : { accept: accept.list }) });
    this.#version = textOf(objectOf(sink.end()["metadata"])["resourceVersion"]);
    this.#wasListed = true;
    this.#objects = objects;
    this.#publish();
  }

  async #follow(signal: AbortSignal): Promise<void> {
    const { api, accept } = this.#options;
    const path = this.#path({
      ...{ watch: "true", allowWatchBookmarks: "true", timeoutSeconds: String(WATCH_S) },
      resourceVersion: this.#version ?? "",
    });
    let isChanged = false;
    const lines = new JsonLines({
      maxBytes: MAX_OBJECT_BYTES,
      peer: PEER,
      onLine: (json) => {
        isChanged = this.#apply(objectOf(jsonOf(json, PEER))) || isChanged;
      },
    });
    const push = (chunk: Buffer): void => {
      isChanged = false;
      try {
        lines.push(chunk);
      } finally {
        if (isChanged) this.#publish();
      }
    };
    this.#wasOpened = false;
    const opened = (): void => {
      this.#wasOpened = true;
      if (this.#feed.value === undefined) this.#publish();
    };
    const sink = { opened, push };
    await api.stream({ path, signal, ms: WATCH_MS, sink, ...(accept === undefined ? {} : { accept: accept.watch }) });
  }

  /** Whether there is something new. Throws when the event is an error. */
  #apply(event: Readonly<Record<string, unknown>>): boolean {
    const { type, object } = event;
    const { metadata, code, message } = objectOf(object);
    if (type === "ERROR") throw kubernetesFault(Number(code), `the watch was ended: ${textOf(message)}`);
    const version = textOf(objectOf(metadata)["resourceVersion"]);
    if (version !== "") this.#version = version;
    if (type === "BOOKMARK") return false;
    const kept = type === "DELETED" ? undefined : this.#options.read(object);
    if (kept === undefined) return this.#objects.delete(uidOf(object));
    this.#objects.set(uidOf(object), kept);
    return true;
  }

  #publish(): void {
    if (this.#failure !== undefined) events.watchRecovered(this.#options.log, this.#options.path);
    this.#failure = undefined;
    this.#feed.set(new Map(this.#objects));
  }

  /** What is known stays good while a watch that broke is resumed, or all is listed anew; not while nobody answers. */
  #failed(error: unknown): void {
    const { code, message } = Fault.from(error);
    if (code === VERSION_GONE || code === "peer-answer") this.#version = undefined;
    if (code === VERSION_GONE || (code === "peer-unreachable" && this.#wasOpened)) return;
    const { log, path } = this.#options;
    if (message !== this.#failure) events.watchFailed(log, path, message);
    this.#failure = message;
    this.#feed.set(undefined);
  }

  #path(query: Readonly<Record<string, string>>): string {
    const { path, fieldSelector } = this.#options;
    return `${path}?${new URLSearchParams({ ...(fieldSelector === undefined ? {} : { fieldSelector }), ...query })}`;
  }
}

function uidOf(object: unknown): string {
  return textOf(objectOf(objectOf(object)["metadata"])["uid"]);
}
