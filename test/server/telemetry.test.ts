import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { faultFrom } from "../support/faults.ts";
import { scrapeMetrics } from "../support/metrics.ts";
import { protoId, startServer, type TestServer } from "../support/server.ts";
import { freePort } from "../support/server-process.ts";

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

  test("count what the key manager is asked, each signature with it", async () => {
    const signed = 'spire_server_server_key_manager_sign_data{status="OK"}';
    expect(await grown(signed, () => server.mint("spiffe://example.org/signed"))).toBe(1);
    expect((await scrape()).get('spire_server_server_key_manager_generate_key{status="OK"}')).toBeGreaterThan(0);
  });

  test("time the turns that rate limits give", async () => {
    const limited = 'spire_server_rateLimit_agent_v1_agent_attest_agent{status="OK"}';
    expect(await grown(limited, () => server.attest())).toBe(1);
  });

  test("tell of authorities and of what they sign", async () => {
    const before = await scrape();
    expect(before.get('spire_server_ca_manager_x509_ca_prepare{status="OK"}')).toBeGreaterThan(0);
    expect(before.get("spire_server_ca_manager_x509_ca_activate")).toBe(1);
    expect(before.get("spire_server_manager_jwt_key_activate")).toBe(1);
    const { x509_authorities } = await server.admin.bundle.GetBundle({});
    const ends = x509_authorities.map(({ asn1 }) => parseCertificate(asn1).notAfter.getTime() / 1000);
    const expiration = before.get('spire_server_manager_x509_ca_rotate_expiration{trust_domain_id="example_org"}');
    expect(ends).toContain(expiration);
    const left = before.get('spire_server_manager_x509_ca_rotate_ttl{trust_domain_id="example_org"}');
    expect(left).toBeGreaterThan(86_000);
    const mint = () => server.mint("spiffe://example.org/counted");
    expect(await grown("spire_server_server_ca_sign_x509_svid", mint)).toBe(1);
    const mintJwt = () =>
      server.admin.svid.MintJWTSVID({ id: protoId("spiffe://example.org/c"), audience: ["a"], ttl: 60 });
    expect(await grown("spire_server_server_ca_sign_jwt_svid", mintJwt)).toBe(1);
  });

  test("tell what the directory holds", async () => {
    const create = () => server.createEntry({ spiffeId: "spiffe://example.org/d", parentId: "spiffe://example.org/n" });
    expect(await grown("spire_server_entry_entries_by_entryid_cache_count", create)).toBe(1);
    expect(await grown("spire_server_node_agents_by_id_cache_count", () => server.attest())).toBe(1);
    expect((await scrape()).get('spire_server_entry_cache_reload{status="OK"}')).toBeGreaterThan(1);
    const id = protoId((await server.attest()).id);
    const quarantine = () => server.admin.quarantine.QuarantineAgent({ id });
    expect(await grown("spire_server_node_quarantined_agents_count", quarantine)).toBe(1);
    const release = () => server.admin.quarantine.ReleaseAgent({ id });
    expect(await grown("spire_server_node_quarantined_agents_count", release)).toBe(-1);
  });

  test("fill the server's panels of SPIRE's Grafana board", async () => {
    const agent = await server.attest();
    using apis = server.connect(agent.tls);
    const { id } = await server.createEntry({ spiffeId: "spiffe://example.org/board", parentId: agent.id });
    await apis.entry.GetAuthorizedEntries({});
    await apis.svid.NewJWTSVID({ entry_id: id, audience: ["a"] });
    const csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
    await apis.svid.BatchNewX509SVID({ params: [{ entry_id: id, csr }] });
    await apis.agent.RenewAgent({ params: { csr } });
    await server.admin.entry.BatchDeleteEntry({ ids: [id] });
    await server.admin.entry.ListEntries({});
    const names = new Set([...(await scrape()).keys()].map((name) => name.replace(/\{.*/, "")));
    const board = [
      ...["started", "uptime_in_ms", "runtime_alloc_bytes"],
      ...["datastore_registration_entry_list_elapsed_time_sum", "entry_cache_reload_elapsed_time_sum"],
      ...["rpc_agent_v1_agent_attest_agent", "rpc_agent_v1_agent_renew_agent", "rpc_bundle_v1_bundle_get_bundle"],
      ...["rpc_entry_v1_entry_batch_create_entry", "rpc_entry_v1_entry_batch_delete_entry"],
      ...["rpc_entry_v1_entry_get_authorized_entries", "rpc_entry_v1_entry_list_entries"],
      ...["rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_sum", "rpc_svid_v1_svid_new_jwtsvid_elapsed_time_sum"],
    ];
    expect(board.filter((name) => !names.has(`spire_server_${name}`))).toEqual([]);
  });

  test("T-J8 hold no token, and no part of one", async () => {
    const token = "canary-7c1f0a55";
    await server.attest(await server.createToken({ token }));
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    expect(text).not.toContain("canary");
    expect(text).toContain("attest_agent");
  });
});
