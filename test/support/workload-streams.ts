import { watchX509Svids, type X509Context } from "../../src/client/index.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { eventually } from "./eventually.ts";

const LOOK_MS = 100;

/**
 * Workloads that hold their stream of SVIDs open for as long as the test lasts. Whatever they could notice is written
 * down: a stream that broke, an SVID that does not verify as it comes, a moment without a valid one.
 */
export class WorkloadStreams implements AsyncDisposable {
  readonly troubles: string[] = [];
  readonly #stop = new AbortController();
  readonly #contexts: (X509Context | undefined)[];
  readonly #running: Promise<unknown>;
  readonly #looking: NodeJS.Timeout;
  #updates = 0;

  private constructor(socket: string, count: number) {
    this.#contexts = new Array(count).fill(undefined);
    this.#running = Promise.all(this.#contexts.map((_, index) => this.#watch(socket, index)));
    this.#looking = setInterval(() => this.#look(), LOOK_MS);
  }

  /** Resolves when each has an SVID. */
  static async open(socket: string, count: number): Promise<WorkloadStreams> {
    const streams = new WorkloadStreams(socket, count);
    await eventually("every workload has an SVID", () => !streams.#contexts.includes(undefined), 30_000);
    return streams;
  }

  /** How many answers came in all, the first ones too. */
  get updates(): number {
    return this.#updates;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#looking);
    this.#stop.abort();
    await this.#running;
  }

  async #watch(socket: string, index: number): Promise<void> {
    const onError = (fault: Error): void => void this.troubles.push(`stream ${index}: ${fault.message}`);
    for await (const context of watchX509Svids({ socket, signal: this.#stop.signal, onError })) {
      this.#updates += 1;
      this.#contexts[index] = context;
      this.#verify(context, index);
    }
  }

  #verify({ svids, bundles }: X509Context, index: number): void {
    for (const { chain } of svids) {
      try {
        validateX509Svid({ chain, authorities: (domain) => bundles.get(domain)?.authorities, at: new Date() });
      } catch (error) {
        this.troubles.push(`answer on stream ${index}: ${error}`);
      }
    }
  }

  #look(): void {
    const now = new Date();
    for (const [index, context] of this.#contexts.entries())
      for (const { id, expiresAt } of context?.svids ?? [])
        if (expiresAt <= now) this.troubles.push(`stream ${index}: ${id} ended at ${expiresAt.toISOString()}`);
  }
}
