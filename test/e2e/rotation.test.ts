import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { X509Source } from "../../src/client/x509-source.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { OWN_SELECTOR, restartAgent, startAgent } from "../support/agent.ts";
import { startServer, type TestServer } from "../support/server.ts";

const MINUTE = 60_000;

/** A workload that uses its identity all the time, and would notice every moment without one. */
class Workload implements AsyncDisposable {
  readonly serials: string[] = [];
  samples = 0;
  failure: unknown;
  readonly #source: X509Source;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  private constructor(source: X509Source) {
    this.#source = source;
    this.#running = this.#use().catch((error) => {
      this.failure = error;
    });
  }

  static async open(socket: string): Promise<Workload> {
    return new Workload(await X509Source.open({ socket }));
  }

  get rotations(): number {
    return this.serials.length - 1;
  }

  async until(rotations: number, withinMs: number): Promise<void> {
    const end = performance.now() + withinMs;
    while (this.rotations < rotations) {
      if (this.failure !== undefined) throw this.failure;
      if (performance.now() > end) throw new Error(`${this.rotations} of ${rotations} rotations within ${withinMs} ms`);
      await systemClock.sleep(20);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.#source[Symbol.asyncDispose]();
  }

  /** The source throws for an expired SVID, verification for one that is not valid at this moment. */
  async #use(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const { svid } = this.#source;
      expect(this.#source.verify(svid.chain)).toBe(svid.id);
      const serial = svid.chain[0]?.serialNumber ?? "";
      if (serial !== this.serials.at(-1)) this.serials.push(serial);
      this.samples += 1;
      await systemClock.sleep(20);
    }
  }
}

async function folders(count: number) {
  const paths = await Promise.all(Array.from({ length: count }, () => mkdtemp(join(tmpdir(), "steeple-rotation-"))));
  const dispose = async () => {
    for (const path of paths) await rm(path, { recursive: true, force: true });
  };
  return { paths, [Symbol.asyncDispose]: dispose };
}

const createEntry = (server: TestServer, parentId: string, ttl: number) =>
  server.createEntry({ spiffeId: "spiffe://example.org/web", parentId, selectors: [OWN_SELECTOR], x509_svid_ttl: ttl });

describe.concurrent("a workload with an open stream always has a valid SVID", () => {
  test("through 20 rotations at a TTL of 10 s", { timeout: 5 * MINUTE }, async () => {
    await using server = await startServer();
    await using agent = await startAgent(server);
    await createEntry(server, agent.id(), 10);
    await using workload = await Workload.open(agent.socket);
    await workload.until(20, 4 * MINUTE);
    expect(workload.failure).toBeUndefined();
    expect(new Set(workload.serials).size).toBe(workload.serials.length);
    expect(workload.samples).toBeGreaterThan(500);
  });

  test("through a restart of the server", { timeout: 5 * MINUTE }, async () => {
    await using folder = await folders(1);
    const [path = ""] = folder.paths;
    const first = await startServer({ folder: path });
    await using agent = await startAgent(first);
    await createEntry(first, agent.id(), 30);
    await using workload = await Workload.open(agent.socket);
    await workload.until(1, MINUTE);
    await first.stop();
    await first[Symbol.asyncDispose]();
    await using _second = await startServer({ folder: path, server: { bind_port: first.port } });
    const before = workload.rotations;
    await workload.until(before + 2, 2 * MINUTE);
    expect(workload.failure).toBeUndefined();
  });

  test("through a restart of the agent, to which it connects again by itself", { timeout: 5 * MINUTE }, async () => {
    await using folder = await folders(1);
    const [path = ""] = folder.paths;
    await using server = await startServer();
    const first = await startAgent(server, { folder: path });
    await createEntry(server, first.id(), 30);
    await using workload = await Workload.open(first.socket);
    await workload.until(1, MINUTE);
    await first.stop();
    await using _second = await restartAgent(path);
    const before = workload.rotations;
    await workload.until(before + 2, 2 * MINUTE);
    expect(workload.failure).toBeUndefined();
  });
});
