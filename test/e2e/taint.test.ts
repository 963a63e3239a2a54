import { afterAll, beforeAll, expect, test } from "vitest";
import { fetchJwtSvid, validateJwtSvid, type X509Context } from "../../src/client/index.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { openMesh } from "../support/mesh.ts";
import { startServer, type TestServer } from "../support/server.ts";

let server: TestServer;
let agent: TestAgent;
beforeAll(async () => {
  server = await startServer({ server: { ca_ttl: "3m", default_x509_svid_ttl: "90s" } });
  agent = await startAgent(server, { agent: { experimental: { sync_interval: "1s" } } });
  await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id(), selectors: [OWN_SELECTOR] });
});
afterAll(async () => {
  await agent[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

function rootsIn(bundles: X509Context["bundles"]): number {
  return bundles.get(parseTrustDomain("example.org"))?.authorities.length ?? 0;
}

test("a tainted authority: agent and workload re-key on the open stream, then nothing holds it any more, and of 50 clients none fails a handshake", async () => {
  const api = server.admin.localAuthority;
  const old = (await api.GetX509AuthorityState({})).active?.authority_id ?? "";
  await using watched = agent.watch();
  const signerOf = (chain: readonly { readonly authorityKeyId: string }[] | undefined): string =>
    chain?.[0]?.authorityKeyId ?? "";
  await watched.until("an SVID under the first authority", ({ svids }) => signerOf(svids[0]?.chain) === old);
  await using mesh = await openMesh([agent.socket], 50);
  await mesh.rounds(1);
  const prepared = (await api.PrepareX509Authority({})).prepared_authority?.authority_id ?? "";
  await watched.until("the next authority is in the bundle", ({ bundles }) => rootsIn(bundles) === 2);
  await api.ActivateX509Authority({ authority_id: prepared });
  await api.TaintX509Authority({ authority_id: old });
  await watched.until("an SVID under the second authority", ({ svids }) => signerOf(svids[0]?.chain) === prepared);
  await agent.untilLogged("Agent SVID is tainted by a root authority, forcing rotation");
  await mesh.rounds(1);
  expect(mesh.failures, "before the old authority leaves").toEqual([]);
  await eventually("nothing under the old authority is in use", () =>
    api.RevokeX509Authority({ authority_id: old }).then(
      () => true,
      () => false,
    ),
  );
  const context = await watched.until(
    "the old authority is gone",
    ({ svids, bundles }) => rootsIn(bundles) === 1 && signerOf(svids[0]?.chain) === prepared,
  );
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  expect(x509_authorities.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId)).toEqual([prepared]);
  expect(signerOf(context.svids[0]?.chain)).toBe(prepared);
  await mesh.rounds(2);
  expect(mesh.failures).toEqual([]);
  expect(mesh.handshakes).toBeGreaterThan(150);
});

test("T-J6 a tainted JWT key: the agent drops what it signed, and no token that is fetched ever fails to validate", async () => {
  const api = server.admin.localAuthority;
  const { socket } = agent;
  const old = (await api.GetJWTAuthorityState({})).active?.authority_id ?? "";
  const kids: string[] = [];
  const stop = new AbortController();
  const using = (async () => {
    while (!stop.signal.aborted) {
      const { token } = await fetchJwtSvid("reports", { socket });
      kids.push(JSON.parse(Buffer.from(token.split(".")[0] ?? "", "base64url").toString()).kid);
      expect((await validateJwtSvid({ socket, audience: "reports", token })).id).toBe("spiffe://example.org/w");
      await systemClock.sleep(20);
    }
  })();
  const failed = using.catch((error: unknown) => error);
  await eventually("tokens under the first key", () => kids.includes(old));
  const prepared = (await api.PrepareJWTAuthority({})).prepared_authority?.authority_id ?? "";
  await api.ActivateJWTAuthority({ authority_id: prepared });
  await api.TaintJWTAuthority({ authority_id: old });
  await eventually("tokens under the second key", () => kids.at(-1) === prepared);
  await expect(api.RevokeJWTAuthority({ authority_id: old })).rejects.toThrow("still in use by tokens");
  const seen = kids.length;
  await eventually("many more tokens", () => kids.length > seen + 10);
  expect(new Set(kids.slice(seen))).toEqual(new Set([prepared]));
  stop.abort();
  expect(await failed).toBeUndefined();
});
