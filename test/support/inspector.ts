import { once } from "node:events";

/** `NODE_OPTIONS` of a process that an `Inspector` is to look into. */
export const INSPECTED = "--inspect=127.0.0.1:0";

/** What a process that runs with `INSPECTED` tells of itself over V8's inspector protocol. */
export class Inspector implements Disposable {
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, PromiseWithResolvers<object>>();
  #sequence = 0;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#answered(JSON.parse(String(data)) as Answer));
  }

  /** `output` is what the process has written: its first lines say where it listens. */
  static async attach(output: string): Promise<Inspector> {
    const [url] = /ws:\/\/127\.0\.0\.1:\S+/.exec(output) ?? [];
    if (url === undefined) throw new Error("the process does not run with its inspector open");
    const socket = new WebSocket(url);
    await once(socket, "open");
    return new Inspector(socket);
  }

  /** Bytes that are reachable, buffers included, after a full collection of garbage. */
  async heapInUse(): Promise<number> {
    await this.#ask("HeapProfiler.collectGarbage");
    await this.#ask("HeapProfiler.collectGarbage");
    const heap = (await this.#ask("Runtime.getHeapUsage")) as HeapUsage;
    return heap.usedSize + heap.embedderHeapUsedSize + heap.backingStorageSize;
  }

  /** How often the function of this name was called in files whose address ends so, while `work` went on. */
  async callsDuring(
    { name, file }: { readonly name: string; readonly file: string },
    work: () => Promise<void>,
  ): Promise<number> {
    await this.#ask("Profiler.enable");
    await this.#ask("Profiler.startPreciseCoverage", { callCount: true, detailed: false });
    await work();
    const { result } = (await this.#ask("Profiler.takePreciseCoverage")) as Coverage;
    await this.#ask("Profiler.stopPreciseCoverage");
    const counts = result
      .filter(({ url }) => url.endsWith(file))
      .flatMap(({ functions }) => functions.filter(({ functionName }) => functionName === name))
      .map(({ ranges }) => ranges[0]?.count ?? 0);
    return counts.reduce((sum, count) => sum + count, 0);
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }

  #ask(method: string, params = {}): Promise<object> {
    const id = ++this.#sequence;
    const waiting = Promise.withResolvers<object>();
    this.#waiting.set(id, waiting);
    this.#socket.send(JSON.stringify({ id, method, params }));
    return waiting.promise;
  }

  #answered({ id, result, error }: Answer): void {
    const waiting = this.#waiting.get(id ?? 0);
    if (result === undefined) waiting?.reject(new Error(error?.message));
    else waiting?.resolve(result);
  }
}

interface Answer {
  readonly id?: number;
  readonly result?: object;
  readonly error?: { readonly message: string };
}

interface HeapUsage {
  readonly usedSize: number;
  readonly embedderHeapUsedSize: number;
  readonly backingStorageSize: number;
}

interface Coverage {
  readonly result: readonly {
    readonly url: string;
    readonly functions: readonly {
      readonly functionName: string;
      readonly ranges: readonly { readonly count: number }[];
    }[];
  }[];
}
