import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startAgent, type TestAgent } from "../support/agent.ts";
import { scrapeMetrics } from "../support/metrics.ts";
import { freePort, startServer, type TestServer } from "../support/server.ts";

let server: TestServer;
let agent: TestAgent;
let port = 0;
beforeAll(async () => {
  port = await freePort();
  server = await startServer();
  agent = await startAgent(server, {
    sections: { telemetry: { Prometheus: { port }, EnableHostnameLabel: false } },
  });
});
afterAll(async () => {
  await agent?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
});

describe("the metrics of an agent, under SPIRE's names", () => {
  test("say which version runs, for whom and for how long", async () => {
    const values = await scrapeMetrics(port);
    const started = [...values.keys()].find((name) => name.startsWith("spire_agent_started"));
    expect(started).toMatch(/^spire_agent_started\{trust_domain_id="example_org",version="[\w]+"\}$/);
    expect(values.get("spire_agent_uptime_in_ms")).toBeGreaterThan(0);
  });

  test("count the calls of workloads by their outcome, and not the agent's own look at its health", async () => {
    await agent.fetch().catch(() => {});
    const values = await scrapeMetrics(port);
    expect(values.get('spire_agent_rpc_workload_api_fetch_x509svid{status="PermissionDenied"}')).toBe(1);
    expect([...values.keys()].filter((name) => name.includes("fetch_x509_bundles"))).toEqual([]);
  });
});
