import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { http2Floods, plainFloods } from "../support/flood.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { freePort } from "../support/server-process.ts";

const floods = [...Object.entries(plainFloods), ...Object.entries(http2Floods)].map(([what, flood]) => ({
  what,
  flood,
}));

/** Several programs start, one after the other. */
const START_MS = 120_000;

describe("T-X9 what strangers send to the ports of server and agent", () => {
  let server: TestServer;
  let agent: TestAgent;
  let ports: readonly number[];

  beforeAll(async () => {
    const [bundle, health, metrics, agentHealth, agentMetrics] = [
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
    ];
    const profile = { https_spiffe: {} };
    server = await startServer({
      server: { federation: { bundle_endpoint: { address: "127.0.0.1", port: bundle, profile } } },
      sections: listeners(health, metrics),
      startMs: 60_000,
    });
    agent = await startAgent(server, { sections: listeners(agentHealth, agentMetrics) });
    await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id(), selectors: [OWN_SELECTOR] });
    ports = [server.port, bundle, health, metrics, agentHealth, agentMetrics];
  }, START_MS);
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
  });

  const listeners = (health: number, metrics: number) => ({
    health_checks: { listener_enabled: true, bind_address: "127.0.0.1", bind_port: health },
    telemetry: { Prometheus: { port: metrics } },
  });

  test.each(floods)("$what: both go on, on every port", async ({ flood }) => {
    await Promise.all(ports.map((port) => flood(port)));
    using anonymous = server.connect();
    expect((await anonymous.bundle.GetBundle({})).trust_domain).toBe("example.org");
    const [, bundle = 0, ...others] = ports;
    const answers = await Promise.all(
      others.map((port, index) => fetch(`http://127.0.0.1:${port}/${index % 2 === 0 ? "live" : "metrics"}`)),
    );
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
    // The certificate is a SPIFFE ID's, which no web client accepts: an answer at all is what counts here.
    const refusal = await fetch(`https://127.0.0.1:${bundle}/`).then(String, (error: Error) => String(error.cause));
    expect(refusal).toMatch(/certificate/i);
    expect((await agent.fetch()).svids).toHaveLength(1);
    for (const pid of [server.pid, agent.pid]) expect(() => process.kill(pid, 0)).not.toThrow();
  });
});
