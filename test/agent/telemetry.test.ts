import { get } from "node:https";
import type { TLSSocket } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodePem } from "../../src/crypto/pem.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { scrapeMetrics } from "../support/metrics.ts";
import { protoId, startServer, type TestServer } from "../support/server.ts";
import { freePort } from "../support/server-process.ts";

let server: TestServer;
let agent: TestAgent;
let port = 0;
let serverPort = 0;
const MONITOR = "spiffe://example.org/monitor";
const MONITORED = { use_spire_svid: true, authorized_spiffe_ids: [MONITOR] };
beforeAll(async () => {
  port = await freePort();
  serverPort = await freePort();
  server = await startServer({ sections: { telemetry: { Prometheus: { port: serverPort, tls: MONITORED } } } });
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
    expect(values.get('spire_agent_rpc_workload_api_fetch_x509svid{status="PermissionDenied"}')).toBeGreaterThan(0);
    expect([...values.keys()].filter((name) => name.includes("fetch_x509_bundles"))).toEqual([]);
  });

  test("tell whether the server has quarantined the agent", async () => {
    const id = protoId(agent.id());
    const shown = async (value: number) =>
      eventually(`quarantined ${value}`, async () => {
        return (await scrapeMetrics(port)).get("spire_agent_quarantined") === value;
      });
    await agent.untilLogged("Changes are pushed by the server");
    await server.admin.quarantine.QuarantineAgent({ id });
    await shown(1);
    await server.admin.quarantine.ReleaseAgent({ id });
    await shown(0);
  });

  test("tell how the node came to its SVID", async () => {
    const values = await scrapeMetrics(port);
    expect(values.get('spire_agent_node_attestor_new_svid{attestor="join_token",status="OK"}')).toBe(1);
    expect(values.get("spire_agent_bootstrapped")).toBe(1);
    expect(values.get('spire_agent_bootstrap_attempts{mode="bootstrap"}')).toBe(0);
    expect(values.get('spire_agent_agent_key_manager_generate_key{status="OK"}')).toBeGreaterThan(0);
    expect(values.get('spire_agent_agent_key_manager_get_keys{status="OK"}')).toBeGreaterThan(0);
  });

  test("count syncs, entries and what is signed", async () => {
    const entry = { spiffeId: "spiffe://example.org/counted", parentId: agent.id(), selectors: [OWN_SELECTOR] };
    const before = (await scrapeMetrics(port)).get("spire_agent_lru_cache_entry_add") ?? 0;
    const { id } = await server.createEntry(entry);
    await agent.untilLogged("SVID updated", { entry: id });
    const values = await scrapeMetrics(port);
    expect(values.get('spire_agent_manager_sync_fetch_entries_updates{status="OK"}')).toBeGreaterThan(0);
    expect(values.get('spire_agent_manager_sync_fetch_svids_updates{status="OK"}')).toBeGreaterThan(0);
    expect(values.get("spire_agent_lru_cache_entry_add")).toBe(before + 1);
    expect(values.get("spire_agent_sync_bundles_total")).toBe(1);
    expect(values.get("spire_agent_sync_entries_total")).toBe(before + 1);
    expect(values.get('spire_agent_lru_cache_record_map_size{svid_type="X509"}')).toBe(before + 1);
    expect(values.get('spire_agent_lru_cache_svid_map_size{svid_type="X509"}')).toBe(before + 1);
    await server.admin.entry.BatchDeleteEntry({ ids: [id] });
    await agent.untilLogged("Entry removed", { entry: id });
    const after = await scrapeMetrics(port);
    expect(after.get("spire_agent_lru_cache_entry_remove")).toBe(1);
    expect(after.get("spire_agent_sync_entries_dropped")).toBe(1);
  });

  test("count attestations of workloads, by attestor, and open calls", async () => {
    const connections = "spire_agent_workload_api_connection";
    await server.createEntry({
      spiffeId: "spiffe://example.org/open",
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
    });
    const before = (await scrapeMetrics(port)).get(connections) ?? 0;
    {
      await using _ = agent.watch();
      await eventually(
        "a call is open",
        async () => (await scrapeMetrics(port)).get("spire_agent_workload_api_connections") === 1,
      );
    }
    const values = await eventually("it is over", async () => {
      const now = await scrapeMetrics(port);
      return now.get("spire_agent_workload_api_connections") === 0 && now;
    });
    expect(values.get(connections)).toBeGreaterThan(before);
    expect(values.get('spire_agent_workload_api_workload_attestor{attestor="unix",status="OK"}')).toBeGreaterThan(0);
    expect(values.get('spire_agent_workload_api_workload_attestation{status="OK"}')).toBeGreaterThan(0);
    expect(values.get("spire_agent_workload_api_discovered_selectors_count")).toBeGreaterThan(0);
  });
});

describe("the metrics of a server that shows its own SVID", () => {
  /** What a monitor with this SVID gets, and who shows it; undefined when it is turned away. */
  async function fetchAs(
    id: string,
  ): Promise<{ readonly shownBy: string | undefined; readonly text: string } | undefined> {
    const { chain, signer } = await server.mint(id);
    const cert = chain.map(({ raw }) => encodePem("CERTIFICATE", raw)).join("");
    const key = signer.privateKey.export({ type: "pkcs8", format: "pem" });
    return new Promise((done) => {
      const settings = { host: "127.0.0.1", port: serverPort, cert, key, rejectUnauthorized: false, agent: false };
      const request = get(settings, (response) => {
        const shownBy = (response.socket as TLSSocket).getPeerX509Certificate()?.subjectAltName;
        let text = "";
        response.on("data", (chunk) => {
          text += chunk;
        });
        response.on("end", () => done({ shownBy, text }));
      });
      request.on("error", () => done(undefined));
    });
  }

  test("T-F6 are for the IDs of the configuration, and for nobody else", async () => {
    const seen = await fetchAs(MONITOR);
    expect(seen?.shownBy).toBe("URI:spiffe://example.org/spire/server");
    expect(seen?.text).toContain("spire_server_started");
    expect(await fetchAs("spiffe://example.org/other")).toBeUndefined();
  });
});
