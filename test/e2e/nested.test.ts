import { afterAll, beforeAll, expect, test } from "vitest";
import { openSpireUpstream } from "../../server/ca/upstream/spire.ts";
import { fetchJwtSvid, validateJwtSvid } from "../../src/client/index.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { createCa } from "../support/pki.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { changeTokenKey, rootOf, rootOfSvid, WIT, whileClientsMeet } from "../support/rotation.ts";
import { protoId, startServer, type TestServer } from "../support/server.ts";

/** A server, its agent, a server below that the agent identifies, and an agent of that one. */
let top: TestServer;
let identifier: TestAgent;
let below: TestServer;
let agent: TestAgent;

beforeAll(async () => {
  const wit = { experimental: WIT };
  top = await startServer({ server: { ca_ttl: "4m", default_x509_svid_ttl: "90s", ...wit } });
  identifier = await startAgent(top);
  const parentId = identifier.id();
  await top.createEntry({
    spiffeId: "spiffe://example.org/below",
    parentId,
    selectors: [OWN_SELECTOR],
    downstream: true,
  });
  below = await startServer({
    server: { ca_ttl: "4m", default_x509_svid_ttl: "90s", ...wit },
    upstream: {
      spire: { server_address: top.address, server_port: `${top.port}`, workload_api_socket: identifier.socketPath },
    },
  });
  agent = await startAgent(below, { agent: wit });
  await below.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id(), selectors: [OWN_SELECTOR] });
});
afterAll(async () => {
  for (const one of [agent, below, identifier, top]) await one[Symbol.asyncDispose]();
});

async function bundleOf(server: TestServer) {
  const { x509_authorities, jwt_authorities, wit_authorities } = await server.admin.bundle.GetBundle({});
  return {
    roots: x509_authorities.map(({ asn1 }) => parseCertificate(asn1)),
    tainted: x509_authorities.filter(({ tainted }) => tainted).map(({ asn1 }) => parseCertificate(asn1).subjectKeyId),
    jwt: jwt_authorities.map(({ key_id }) => key_id).sort(),
    wit: wit_authorities.map(({ key_id }) => key_id).sort(),
  };
}

test("SVIDs of the server below chain to the root above, and its bundle is that of above", async () => {
  await using watched = agent.watch();
  const { svids } = await watched.until("an SVID", () => true);
  const chain = svids[0]?.chain ?? [];
  const { roots } = await bundleOf(top);
  expect(chain).toHaveLength(2);
  expect(validateX509Svid({ chain, authorities: () => roots, at: new Date(Date.now()) })).toBe(
    "spiffe://example.org/w",
  );
  expect((await bundleOf(below)).roots.map(({ raw }) => raw)).toEqual(roots.map(({ raw }) => raw));
  const { active } = await below.admin.localAuthority.GetX509AuthorityState({});
  expect(active?.upstream_authority_subject_key_id).toBe(roots[0]?.subjectKeyId);
});

test("JWT and WIT keys go up before they are used, and those of above come down: tokens of either side hold on the other", async () => {
  const state = await below.admin.localAuthority.GetJWTAuthorityState({});
  const above = await bundleOf(top);
  expect(above.jwt).toContain(state.active?.authority_id);
  expect([above.jwt.length, above.wit.length]).toEqual([2, 2]);
  const held = await bundleOf(below);
  expect([held.jwt, held.wit]).toEqual([above.jwt, above.wit]);
  const { token } = await fetchJwtSvid("a", { socket: agent.socket });
  const byOther = await validateJwtSvid({ socket: identifier.socket, audience: "a", token });
  expect(byOther.id).toBe("spiffe://example.org/w");
  const minted = await top.admin.svid.MintJWTSVID({ id: protoId("spiffe://example.org/top"), audience: ["a"] });
  const atAgent = await validateJwtSvid({ socket: agent.socket, audience: "a", token: minted.svid?.token ?? "" });
  expect(atAgent.id).toBe("spiffe://example.org/top");
});

test("T-N12 T-C4 an impostor in the place of the server above, with every name right and another root, is not believed", async () => {
  await using impostor = await startServer();
  const stop = new AbortController();
  const upstreamAt = (port: number) =>
    openSpireUpstream({
      ...{ port, address: "127.0.0.1", workloadApiSocket: identifier.socketPath, clock: systemClock },
      ...{ trustDomain: parseTrustDomain("example.org"), log: new RecordingLog(), signal: stop.signal },
    });
  const signer = await generateKey("ec-p256");
  const csr = await createCertificateRequest({ signer, uris: ["spiffe://example.org"] });
  await using real = upstreamAt(top.port);
  expect((await real.mintX509CA({ csr, ttlSeconds: 60 })).chain).toHaveLength(1);
  await using fake = upstreamAt(impostor.port);
  await expect(fake.mintX509CA({ csr, ttlSeconds: 60 })).rejects.toThrow("signed by unknown authority");
  stop.abort();
});

test("T-F1 a key of above that clashes with one below keeps neither roots nor keys from coming down", async () => {
  const [here, there] = await Promise.all([generateKey("ec-p256"), generateKey("ec-p256")]);
  const clashing = (publicKey: Uint8Array) => ({
    jwt_authorities: [{ key_id: "clash", public_key: Buffer.from(publicKey), expires_at: 4_000_000_000 }],
  });
  const root = await createCa();
  await below.admin.bundle.AppendBundle(clashing(here.publicKey));
  await top.admin.bundle.AppendBundle({
    ...clashing(there.publicKey),
    x509_authorities: [{ asn1: Buffer.from(root.der) }],
  });
  const { subjectKeyId } = parseCertificate(root.der);
  await eventually("the root has come down", () => hasRoot(subjectKeyId), 30_000);
  const { prepared_authority } = await below.admin.localAuthority.PrepareJWTAuthority({});
  expect((await bundleOf(top)).jwt).toContain(prepared_authority?.authority_id);
  const { jwt_authorities } = await below.admin.bundle.GetBundle({});
  const kept = jwt_authorities.find(({ key_id }) => key_id === "clash");
  expect(kept?.public_key).toEqual(Buffer.from(here.publicKey));
});

test("the local authority of a server below can't be tainted or revoked, and a root that is in use can't either", async () => {
  const api = below.admin.localAuthority;
  const { active } = await api.GetX509AuthorityState({});
  await expect(api.TaintX509Authority({ authority_id: active?.authority_id ?? "" })).rejects.toThrow(
    "local authority can't be tainted if there is an upstream authority",
  );
  await expect(api.RevokeX509Authority({ authority_id: active?.authority_id ?? "" })).rejects.toThrow(
    "local authority can't be revoked if there is an upstream authority",
  );
  const upstream = { subject_key_id: (active?.upstream_authority_subject_key_id ?? "").toUpperCase() };
  await expect(api.TaintX509UpstreamAuthority(upstream)).rejects.toThrow(
    "provided subject key id is not valid: unable to use upstream authority singing current authority",
  );
  await expect(api.RevokeX509UpstreamAuthority({ subject_key_id: "" })).rejects.toThrow(
    "invalid subject key ID: no subject key ID provided",
  );
  await expect(api.RevokeX509UpstreamAuthority({ subject_key_id: "ab" })).rejects.toThrow(
    "invalid subject key ID: upstream authority didn't sign the old local authority",
  );
});

test("a root that is tainted above, a JWT and a WIT key tainted below: the server below gets another CA first, then all re-key, and of 50 clients of both servers none fails a handshake", async () => {
  const old = rootOf((await top.admin.localAuthority.GetX509AuthorityState({})).active);
  await whileClientsMeet([agent.socket, identifier.socket], async () => {
    const parties = { server: below, agent, id: "spiffe://example.org/w" };
    await Promise.all([changeRoot(old), changeTokenKey("jwt", parties), changeTokenKey("wit", parties)]);
  });
  const force = { metadata: { "steeple-force": "true" } };
  await top.admin.localAuthority.RevokeX509Authority({ authority_id: old }, force);
  await eventually("the root is gone below", async () => !(await hasRoot(old)));
  await below.untilLogged("X.509 authority revoked", { subject_key_id: old });
  const { svids } = await agent.fetch();
  const { roots } = await bundleOf(below);
  const at = new Date(Date.now());
  expect(validateX509Svid({ chain: svids[0].chain, authorities: () => roots, at })).toBe("spiffe://example.org/w");
});

async function hasRoot(subjectKeyId: string): Promise<boolean> {
  return (await bundleOf(below)).roots.some((root) => root.subjectKeyId === subjectKeyId);
}

/** Until the new root is in use on both levels; it does not wait until the old one may leave. */
async function changeRoot(old: string): Promise<void> {
  const api = top.admin.localAuthority;
  await using watched = agent.watch();
  const prepared = rootOf((await api.PrepareX509Authority({})).prepared_authority);
  await eventually("the next root is below", () => hasRoot(prepared));
  await api.ActivateX509Authority({ authority_id: prepared });
  await api.TaintX509Authority({ authority_id: old });
  const rekeyed = await watched.until("an SVID under the new root", (context) => rootOfSvid(context) === prepared);
  expect(rekeyed.svids[0]?.chain).toHaveLength(2);
  await eventually("the agent of above has re-keyed", async () => rootOfSvid(await identifier.fetch()) === prepared);
  await eventually("the taint is below", async () => (await bundleOf(below)).tainted.includes(old));
  await below.untilLogged("Current root CA is signed by a tainted upstream authority, preparing rotation");
  await below.untilLogged("Server SVID signed using a tainted authority, forcing rotation of the Server SVID");
  await below.untilLogged("X.509 authority tainted", { subject_key_id: old });
  const { active } = await below.admin.localAuthority.GetX509AuthorityState({});
  expect(rootOf(active)).toBe(prepared);
}
