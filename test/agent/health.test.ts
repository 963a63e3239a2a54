import { connect } from "node:net";
import { describe, expect, test } from "vitest";
import { AgentHealth, workloadApiProbe } from "../../agent/health.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { FakeClock } from "../support/clock.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../support/endpoint.ts";
import { eventually } from "../support/eventually.ts";
import { FakeAgent, refuse } from "../support/fake-agent.ts";
import { createCa } from "../support/pki.ts";
import { RecordingLog } from "../support/recording-log.ts";

const UNAVAILABLE = "workload api is unavailable";
const PATHS = { bindAddress: "127.0.0.1", bindPort: 0, livePath: "/live", readyPath: "/ready" };

/** An agent whose Workload API works or not, as the test says. */
class Scene implements AsyncDisposable {
  readonly clock = new FakeClock();
  readonly log = new RecordingLog();
  working = false;
  started = false;
  probes = 0;
  readonly health: AgentHealth;
  readonly #stop = new AbortController();
  #running: Promise<unknown> = Promise.resolve();

  constructor() {
    const probe = async (): Promise<void> => {
      this.probes += 1;
      if (!this.working) throw new Fault("unavailable", UNAVAILABLE);
    };
    this.health = new AgentHealth({ probe, started: () => this.started, clock: this.clock, log: this.log });
  }

  run(): void {
    this.#running = this.health.run(this.#stop.signal).catch(() => undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.health[Symbol.asyncDispose]();
  }
}

async function get(port: number, path: string) {
  const response = await fetch(`http://127.0.0.1:${port}${path}`);
  return { status: response.status, type: response.headers.get("content-type"), body: await response.text() };
}

describe("the agent's health listener", () => {
  test("says 500 before the first check, 500 and why while it fails, 200 when it works", async () => {
    await using scene = new Scene();
    const { port } = await scene.health.listen(PATHS);
    expect(await get(port, "/ready")).toMatchObject({ status: 500 });
    scene.started = true;
    scene.run();
    await scene.clock.advance(0);
    const failing = {
      status: 500,
      type: "application/json",
      body: `{"agent":{"make_new_x509_err":"${UNAVAILABLE}"}}\n`,
    };
    expect(await get(port, "/ready")).toEqual(failing);
    expect(await get(port, "/live")).toEqual(failing);
    scene.working = true;
    await scene.clock.advance(1_000);
    const working = { status: 200, type: "application/json", body: '{"agent":{}}\n' };
    expect(await get(port, "/ready?verbose=1")).toEqual(working);
    expect(await get(port, "/live")).toEqual(working);
    expect(await get(port, "/other")).toMatchObject({ status: 404 });
  });

  test("calls an agent that is still starting alive and not ready", async () => {
    await using scene = new Scene();
    const { port } = await scene.health.listen(PATHS);
    scene.run();
    await scene.clock.advance(0);
    expect(await get(port, "/live")).toMatchObject({ status: 200, body: '{"agent":{}}\n' });
    expect(await get(port, "/ready")).toMatchObject({ status: 500 });
  });

  test("listens at the paths it is given", async () => {
    await using scene = new Scene();
    const { port } = await scene.health.listen({ ...PATHS, livePath: "/a", readyPath: "/b" });
    expect(await get(port, "/live")).toMatchObject({ status: 404 });
    expect(await get(port, "/a")).toMatchObject({ status: 500 });
  });

  test("closes idle connections when it is disposed", async () => {
    const scene = new Scene();
    const { port } = await scene.health.listen(PATHS);
    const idle = connect(port, "127.0.0.1");
    const closed = new Promise((resolve) => idle.on("close", resolve).on("error", () => undefined));
    await new Promise((resolve) => idle.once("connect", resolve));
    await scene[Symbol.asyncDispose]();
    await closed;
  });
});

describe("health checks", () => {
  test("run every second until the first success, then every minute", async () => {
    await using scene = new Scene();
    scene.run();
    await scene.clock.advance(3_000);
    expect(scene.probes).toBe(4);
    scene.working = true;
    await scene.clock.advance(1_000);
    expect(scene.probes).toBe(5);
    await scene.clock.advance(59_000);
    expect(scene.probes).toBe(5);
    await scene.clock.advance(1_000);
    expect(scene.probes).toBe(6);
  });

  test("log a failure while starting once, a later one each time, and the recovery", async () => {
    await using scene = new Scene();
    scene.run();
    await scene.clock.advance(2_000);
    const failed = { check: "agent", error: UNAVAILABLE };
    expect(scene.log.lines).toEqual([
      { level: "warn", message: "Health check has failed. Starting up still.", fields: failed },
    ]);
    scene.started = true;
    await scene.clock.advance(1_000);
    scene.working = true;
    await scene.clock.advance(1_000);
    expect(scene.log.lines.slice(1)).toEqual([
      { level: "error", message: "Health check has failed", fields: failed },
      { level: "info", message: "Health check recovered", fields: { check: "agent", failures: 4, duration: 4 } },
    ]);
  });
});

describe("the probe of the Workload API", () => {
  const signal = new AbortController().signal;

  test("is content with an answer, also with the one that there is no identity", async () => {
    const root = await createCa();
    await using endpoint = await Endpoint.start({ bundles: bundlesOf(root) });
    const probe = workloadApiProbe(endpoint.path);
    await expect(probe(signal)).rejects.toMatchObject({ kind: "unavailable", message: UNAVAILABLE });
    await endpoint.replace([], bundlesOf(root));
    await expect(probe(signal)).resolves.toBeUndefined();
    const entry = cachedEntry({ id: "web", selectors: [`unix:uid:${process.getuid?.()}`] });
    await endpoint.replace([entry], bundlesOf(root));
    await endpoint.accept([entry, await root.issue({ id: entry.spiffeId })]);
    await expect(probe(signal)).resolves.toBeUndefined();
  });

  test("is content with a call that is let in and waits for an SVID", async () => {
    const root = await createCa();
    await using endpoint = await Endpoint.start({ bundles: bundlesOf(root) });
    const entry = cachedEntry({ id: "web", selectors: [`unix:uid:${process.getuid?.()}`] });
    await endpoint.replace([entry], bundlesOf(root));
    await expect(workloadApiProbe(endpoint.path)(signal)).resolves.toBeUndefined();
  });

  test("fails when nobody listens, and when the endpoint says Unavailable", async () => {
    await using absent = await FakeAgent.absent(systemClock);
    await expect(workloadApiProbe(absent.path)(signal)).rejects.toMatchObject({ message: UNAVAILABLE });
    await using ill = await FakeAgent.start(systemClock, refuse(14));
    await eventually("a failed probe", async () => {
      await expect(workloadApiProbe(ill.path)(signal)).rejects.toMatchObject({ message: UNAVAILABLE });
      return true;
    });
  });
});
