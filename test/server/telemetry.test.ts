import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { faultFrom } from "../support/faults.ts";
import { scrapeMetrics } from "../support/metrics.ts";
import { freePort, protoId, startServer, type TestServer } from "../support/server.ts";

let server: TestServer;
let port = 0;
beforeAll(async () => {
  port = await freePort();
  server = await startServer({
    server: { ratelimit: { attestation: true, signing: true } },
    sections: { telemetry: { Prometheus: { port }, EnableHostnameLabel: false } },
  });
});
afterAll(() => server[Symbol.asyncDispose]());

const scrape = () => scrapeMetrics(port);

async function grown(name: string, work: () => Promise<unknown>): Promise<number> {
  const before = (await scrape()).get(name) ?? 0;
  await work();
  return ((await scrape()).get(name) ?? 0) - before;
}

const rpc = (name: string, status = "OK"): string => `spire_server_rpc_${name}{status="${status}"}`;

describe("the metrics of a server, under SPIRE's names", () => {
  test("say which version runs, for whom and for how long", async () => {
    const values = await scrape();
    const started = [...values.keys()].find((name) => name.startsWith("spire_server_started"));
    expect(started).toMatch(/^spire_server_started\{trust_domain_id="example_org",version="[\w]+"\}$/);
    expect(values.get("spire_server_uptime_in_ms")).toBeGreaterThan(0);
    expect(values.get("spire_server_runtime_alloc_bytes")).toBeGreaterThan(1e6);
    expect(values.get("process_resident_memory_bytes")).toBeGreaterThan(1e6);
  });

  test("count each call by its outcome, with its time", async () => {
    const list = rpc("entry_v1_entry_list_entries");
    expect(await grown(list, () => server.admin.entry.ListEntries({}))).toBe(1);
    const missing = () => faultFrom(server.admin.entry.GetEntry({ id: "none" }));
    expect(await grown(rpc("entry_v1_entry_get_entry", "NotFound"), missing)).toBe(1);
    const values = await scrape();
    expect(values.get('spire_server_rpc_entry_v1_entry_list_entries_elapsed_time_count{status="OK"}')).toBe(
      values.get(list),
    );
    expect(values.get('spire_server_rpc_entry_v1_entry_list_entries_elapsed_time_sum{status="OK"}')).toBeGreaterThan(0);
  });

  test("count the calls that were refused", async () => {
    using stranger = server.connect();
    const call = () => faultFrom(stranger.entry.ListEntries({}));
    expect(await grown(rpc("entry_v1_entry_list_entries", "PermissionDenied"), call)).toBe(1);
  });

  test("count what the datastore is asked", async () => {
    const create = () => server.createEntry({ spiffeId: "spiffe://example.org/m", parentId: "spiffe://example.org/n" });
    expect(await grown('spire_server_datastore_registration_entry_create{status="OK"}', create)).toBe(1);
    const gone = () => faultFrom(server.admin.agent.BanAgent({ id: protoId("spiffe://example.org/spire/agent/none") }));
    expect(await grown('spire_server_datastore_node_update{status="NotFound"}', gone)).toBe(1);
  });

  test("time the turns that rate limits give", async () => {
    const limited = 'spire_server_rateLimit_agent_v1_agent_attest_agent{status="OK"}';
    expect(await grown(limited, () => server.attest())).toBe(1);
  });

  test("T-J8 hold no token, and no part of one", async () => {
    const token = "canary-7c1f0a55";
    await server.attest(await server.createToken({ token }));
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    expect(text).not.toContain("canary");
    expect(text).toContain("attest_agent");
  });
});
