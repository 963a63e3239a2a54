import { connect } from "node:net";
import { describe, expect, test } from "vitest";
import { type AgentCondition, AgentHealth, workloadApiProbe } from "../../agent/health.ts";
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

function later(clock: FakeClock, seconds: number): Date {
  return new Date(clock.now().getTime() + seconds * 1000);
}

/** An agent whose Workload API works or not, as the test says. */
class Scene implements AsyncDisposable {
  readonly clock = new FakeClock();
  readonly log = new RecordingLog();
  working = false;
  started = false;
  probes = 0;
  condition: AgentCondition = {
    attestedUntil: later(this.clock, 3_600),
    lastSync: this.clock.now(),
    quarantined: false,
    signingFailsSince: undefined,
    firstSvidEnds: undefined,
  };
  readonly health: AgentHealth;
  readonly #stop = new AbortController();
  #running: Promise<unknown> = Promise.resolve();

  constructor() {
    const probe = async (): Promise<void> => {
      this.probes += 1;
      if (!this.working) throw new Fault("unavailable", UNAVAILABLE);
    };
    const { clock, log } = this;
    this.health = new AgentHealth({
      ...{ probe, clock, log },
      started: () => this.started,
      condition: () => this.condition,
    });
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
  const text = await response.text();
  const body = text.startsWith("{") ? (JSON.parse(text) as object) : undefined;
  return { status: response.status, type: response.headers.get("content-type"), body };
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
      body: { agent: { make_new_x509_err: UNAVAILABLE } },
    };
    expect(await get(port, "/ready")).toMatchObject(failing);
    expect(await get(port, "/live")).toMatchObject(failing);
    scene.working = true;
    await scene.clock.advance(1_000);
    const working = { status: 200, type: "application/json", body: { agent: {} } };
    for (const path of ["/ready?verbose=1", "/live"]) {
      const answer = await get(port, path);
      expect(answer).toMatchObject(working);
      expect(answer.body).not.toMatchObject({ agent: { make_new_x509_err: expect.anything() } });
    }
    expect(await get(port, "/other")).toMatchObject({ status: 404 });
  });

  test("calls an agent that is still starting alive and not ready", async () => {
    await using scene = new Scene();
    const { port } = await scene.health.listen(PATHS);
    scene.run();
    await scene.clock.advance(0);
    expect(await get(port, "/live")).toMatchObject({ status: 200 });
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

describe("readiness", () => {
  const MINUTE = 60;

  async function working(): Promise<{ scene: Scene; port: number } & AsyncDisposable> {
    const scene = new Scene();
    scene.started = true;
    scene.working = true;
    const { port } = await scene.health.listen(PATHS);
    scene.run();
    await scene.clock.advance(0);
    return { scene, port, [Symbol.asyncDispose]: () => scene[Symbol.asyncDispose]() };
  }

  test("tells when the agent's own SVID and the first of the workloads end, and how old the last sync is", async () => {
    await using at = await working();
    const { clock } = at.scene;
    at.scene.condition = { ...at.scene.condition, firstSvidEnds: later(clock, 90), lastSync: later(clock, -5) };
    expect(await get(at.port, "/ready")).toEqual({
      status: 200,
      type: "application/json",
      body: {
        agent: {
          attested_until: later(clock, 3600).toISOString(),
          last_sync: later(clock, -5).toISOString(),
          seconds_since_sync: 5,
          first_svid_ends: later(clock, 90).toISOString(),
          seconds_to_first_svid_end: 90,
        },
      },
    });
  });

  test.each([
    { what: "not attested", change: () => ({ attestedUntil: undefined }), why: "the agent is not attested" },
    {
      what: "its own SVID has ended",
      change: (clock: FakeClock) => ({ attestedUntil: clock.now() }),
      why: "the agent's own SVID has expired",
    },
    { what: "never synchronised", change: () => ({ lastSync: undefined }), why: "the agent has not synchronised yet" },
    {
      what: "no sync for over ten minutes",
      change: (clock: FakeClock) => ({ lastSync: later(clock, -10 * MINUTE - 1) }),
      why: "the agent cannot synchronise with its server",
    },
    {
      what: "no signature for over ten minutes",
      change: (clock: FakeClock) => ({ signingFailsSince: later(clock, -10 * MINUTE - 1) }),
      why: "the server signs no SVIDs",
    },
    {
      what: "a quarantine",
      change: () => ({ quarantined: true }),
      why: "the server has quarantined the agent",
    },
  ])("is withdrawn, and life is not, when $what", async ({ change, why }) => {
    await using at = await working();
    at.scene.condition = { ...at.scene.condition, ...change(at.scene.clock) };
    expect(await get(at.port, "/ready")).toMatchObject({ status: 500, body: { agent: { not_ready: [why] } } });
    expect(await get(at.port, "/live")).toMatchObject({ status: 200 });
  });

  test("outlasts a server that is away for a while", async () => {
    await using at = await working();
    const { clock, condition } = at.scene;
    const since = later(clock, -10 * MINUTE);
    at.scene.condition = { ...condition, lastSync: since, signingFailsSince: since };
    expect(await get(at.port, "/ready")).toMatchObject({
      status: 200,
      body: { agent: { signing_fails_since: since.toISOString() } },
    });
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

  test("log nothing of a start that takes less than a minute", async () => {
    await using scene = new Scene();
    scene.run();
    await scene.clock.advance(59_000);
    scene.started = true;
    scene.working = true;
    await scene.clock.advance(1_000);
    expect(scene.log.lines.filter(({ level }) => level !== "info")).toEqual([]);
  });

  test("log a failure while starting once, a later one each time, and the recovery", async () => {
    await using scene = new Scene();
    scene.run();
    await scene.clock.advance(62_000);
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
      { level: "info", message: "Health check recovered", fields: { check: "agent", failures: 64, duration: 64 } },
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
