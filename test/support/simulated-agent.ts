import type { WatchAuthorizedEntriesRequest } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { EntryDigest, type EntryVersion } from "../../src/spiffe/entry-digest.ts";
import { eventually } from "./eventually.ts";
import type { Apis, ServerClient, TestSvid } from "./server.ts";

/**
 * An agent without workloads: it attests, holds its stream of changes and keeps what it is told, over the same wire as
 * a real one. Many fit into one process.
 */
export class SimulatedAgent implements AsyncDisposable {
  readonly id: string;
  readonly entries = new Map<string, EntryVersion>();
  /** How often its state had to be compared and repaired after the first time. */
  divergences = 0;
  readonly #server: () => Pick<ServerClient, "connect">;
  readonly #svid: TestSvid;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  readonly #told: (id: string) => void;
  #agreed = false;

  private constructor(svid: TestSvid, server: () => Pick<ServerClient, "connect">, told: (id: string) => void) {
    this.id = svid.id;
    this.#svid = svid;
    this.#server = server;
    this.#told = told;
    this.#running = this.#run();
  }

  /** Attests at the server; `server` is asked again for each connection, so that it may be another one by then. */
  static async start(
    server: () => Pick<ServerClient, "attest" | "connect">,
    told: (entryId: string) => void = () => undefined,
  ): Promise<SimulatedAgent> {
    const agent = new SimulatedAgent(await server().attest(), server, told);
    await eventually("agreement with the server", () => (agent.#agreed ? true : undefined));
    return agent;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        using apis = this.#server().connect(this.#svid.tls);
        await this.#talk(apis);
      } catch {
        this.#agreed = false;
        await new Promise((resolve) => setTimeout(resolve, 50 + Math.random() * 100));
      }
    }
  }

  async #talk({ push }: Apis): Promise<void> {
    const outbox: WatchAuthorizedEntriesRequest[] = [{ held: { digest: this.#digest() } }];
    let wake = (): void => undefined;
    const say = (request: WatchAuthorizedEntriesRequest): void => {
      outbox.push(request);
      wake();
    };
    const { signal } = this.#stop;
    async function* requests(): AsyncGenerator<WatchAuthorizedEntriesRequest> {
      for (;;) {
        const next = outbox.shift();
        if (next !== undefined) yield next;
        else
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
      }
    }
    for await (const { number, entries, divergence, drain } of push.WatchAuthorizedEntries(requests(), { signal })) {
      if (drain) throw new Fault("unavailable", "the server ends");
      if (divergence) say(this.#revisions());
      for (const id of entries?.removed ?? []) {
        this.entries.delete(id);
        this.#told(id);
      }
      for (const { id, revision_number, created_at } of entries?.changed ?? []) {
        this.entries.set(id, { id, revisionNumber: Number(revision_number), createdAt: Number(created_at) });
        this.#told(id);
      }
      say({ applied: number });
      if (!entries || entries.more) continue;
      if (!this.#digest().equals(entries.digest)) say(this.#revisions());
      else this.#agreed = true;
    }
  }

  #digest(): Buffer {
    return new EntryDigest(this.entries.values()).bytes();
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
}
