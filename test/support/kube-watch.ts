import type { ServerResponse } from "node:http";

type Json = Readonly<Record<string, unknown>>;

/** An object as the API server holds it. */
export type KubeObject = Json & { readonly metadata: Json };

interface Change {
  readonly version: number;
  readonly before: KubeObject | undefined;
  readonly after: KubeObject | undefined;
}

interface Watch {
  readonly matches: (object: KubeObject) => boolean;
  readonly response: ServerResponse;
  readonly shape: (object: object) => object;
  readonly bookmarks: boolean;
}

export interface KubeType {
  readonly kind: string;
  readonly plural: string;
}

/** Counts the writes of one API server. */
export class Versions {
  current = 1000;
}

/**
 * Objects of one type that can be listed and watched: every write has a version, a watch goes on from one, and is
 * refused as gone when that is older than what is remembered.
 */
export class KubeCollection<V> extends Map<string, V> {
  readonly type: KubeType;
  /** Refuses an old version by status, as some servers do, instead of by an event. */
  refusesByStatus = false;
  /** Lists that were asked for. */
  lists = 0;
  /** Of each watch that was asked for, from where. */
  readonly watchedFrom: number[] = [];
  readonly #versions: Versions;
  readonly #objectOf: (key: string, value: V) => KubeObject;
  readonly #objects = new Map<string, KubeObject>();
  #changes: Change[] = [];
  #oldest: number;
  readonly #watches = new Set<Watch>();

  constructor(type: KubeType, versions: Versions, objectOf: (key: string, value: V) => KubeObject) {
    super();
    this.type = type;
    this.#versions = versions;
    this.#oldest = versions.current;
    this.#objectOf = objectOf;
  }

  get watchers(): number {
    return this.#watches.size;
  }

  object(key: string): KubeObject | undefined {
    return this.#objects.get(key);
  }

  list(matches: (object: KubeObject) => boolean = () => true): {
    readonly version: string;
    readonly items: KubeObject[];
  } {
    this.lists += 1;
    return { version: String(this.#versions.current), items: [...this.#objects.values()].filter(matches) };
  }

  override set(key: string, value: V): this {
    super.set(key, value);
    this.#versions.current += 1;
    const object = this.#objectOf(key, value);
    const metadata = { ...object.metadata, resourceVersion: String(this.#versions.current) };
    this.#change(key, { ...object, apiVersion: "v1", kind: this.type.kind, metadata });
    return this;
  }

  override delete(key: string): boolean {
    if (!super.delete(key)) return false;
    this.#versions.current += 1;
    this.#change(key, undefined);
    return true;
  }

  override clear(): void {
    for (const key of [...this.keys()]) this.delete(key);
  }

  /** Serves a watch until the response is closed, or for as long as the watcher wants it. */
  watch(query: URLSearchParams, response: ServerResponse, rest: Pick<Watch, "matches" | "shape">): void {
    const from = Number(query.get("resourceVersion") || this.#versions.current);
    this.watchedFrom.push(from);
    const gone = status(410, "Expired", `too old resource version: ${from} (${this.#oldest})`);
    const isGone = from < this.#oldest;
    response.writeHead(isGone && this.refusesByStatus ? 410 : 200, { "content-type": "application/json" });
    if (isGone) {
      response.end(this.refusesByStatus ? JSON.stringify(gone) : line({ type: "ERROR", object: gone }));
      return;
    }
    response.flushHeaders();
    const watch: Watch = { ...rest, response, bookmarks: query.get("allowWatchBookmarks") === "true" };
    for (const change of this.#changes.filter(({ version }) => version > from)) tell(watch, change);
    this.#watches.add(watch);
    const seconds = Number(query.get("timeoutSeconds") ?? 0);
    const timer = seconds > 0 ? setTimeout(() => this.#end(watch), seconds * 1000) : undefined;
    response.on("close", () => {
      clearTimeout(timer);
      this.#watches.delete(watch);
    });
  }

  /** Tells every watcher the version it has come to. */
  bookmark(): void {
    for (const watch of this.#watches) this.#mark(watch);
  }

  /** Ends all watches as a server does that is asked to: by their time. */
  endWatches(): void {
    for (const watch of this.#watches) this.#end(watch);
  }

  /** Breaks all watches off in the middle. */
  breakWatches(): void {
    for (const { response } of this.#watches) response.socket?.destroy();
  }

  /** Forgets what was before, as compaction does. */
  forget(): void {
    this.#changes = [];
    this.#oldest = this.#versions.current;
  }

  /** Says something to all watchers that is no event. */
  garble(text: string): void {
    for (const { response } of this.#watches) response.write(text);
  }

  #change(key: string, after: KubeObject | undefined): void {
    const change = { version: this.#versions.current, before: this.#objects.get(key), after };
    if (after === undefined) this.#objects.delete(key);
    else this.#objects.set(key, after);
    this.#changes.push(change);
    for (const watch of this.#watches) tell(watch, change);
  }

  #mark({ response, bookmarks }: Watch): void {
    if (!bookmarks) return;
    const metadata = { resourceVersion: String(this.#versions.current), creationTimestamp: null };
    response.write(line({ type: "BOOKMARK", object: { kind: this.type.kind, apiVersion: "v1", metadata } }));
  }

  #end(watch: Watch): void {
    this.#mark(watch);
    watch.response.end();
  }
}

/** What leaves the watcher's selection is deleted for it, what enters it is new. */
function tell({ matches, response, shape }: Watch, { before, after, version }: Change): void {
  const had = before !== undefined && matches(before);
  const has = after !== undefined && matches(after);
  if (has) response.write(line({ type: had ? "MODIFIED" : "ADDED", object: shape(after) }));
  else if (had) {
    const metadata = { ...before.metadata, resourceVersion: String(version) };
    response.write(line({ type: "DELETED", object: shape({ ...before, metadata }) }));
  }
}

function line(event: object): string {
  return `${JSON.stringify(event)}\n`;
}

export function status(code: number, reason: string, message: string): object {
  return { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure", message, reason, code };
}

/** Of the form `spec.nodeName=node-1`; of several, all. Only what Kubernetes can select pods by. */
export function fieldMatcher(selector: string | null): (object: KubeObject) => boolean {
  const terms = (selector ?? "").split(",").filter(Boolean);
  return (object) =>
    terms.every((term) => {
      const [path = "", value] = term.split(/==?/);
      if (!["spec.nodeName", "metadata.name", "metadata.namespace"].includes(path))
        throw new Error(`not selectable: ${path}`);
      const found = path.split(".").reduce<unknown>((at, key) => (at as Json | undefined)?.[key], object);
      return found === value;
    });
}
