import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import type { AuthorityState__Output as State } from "../../../src/rpc/gen/spire/api/server/localauthority/v1/AuthorityState.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, protoId, startServer, type TestServer, type TestSvid } from "../../support/server.ts";
import { plainCsr } from "./csrs.ts";

let server: TestServer;
beforeAll(async () => {
  // So short that a prepared authority may be activated after a second.
  server = await startServer({
    server: { ca_ttl: "2m", default_x509_svid_ttl: "50s", experimental: { feature_flags: ["wit-svid"] } },
  });
});
afterAll(() => server[Symbol.asyncDispose]());

type Kind = "X509" | "JWT" | "WIT";

interface Authorities {
  readonly active: State | null;
  readonly prepared: State | null;
  readonly old: State | null;
}

/** The RPCs of one kind. */
function rpcs(kind: Kind) {
  const api = server.admin.localAuthority;
  const id = (authority_id: string) => ({ authority_id });
  const insist = { metadata: { "steeple-force": "true" } };
  return {
    state: (): Promise<Authorities> => api[`Get${kind}AuthorityState`]({}),
    prepare: async () => (await api[`Prepare${kind}Authority`]({})).prepared_authority?.authority_id ?? "",
    activate: async (name: string) => (await api[`Activate${kind}Authority`](id(name))).activated_authority,
    taint: async (name: string) => (await api[`Taint${kind}Authority`](id(name))).tainted_authority,
    revoke: async (name: string, force = false) =>
      (await api[`Revoke${kind}Authority`](id(name), force ? insist : {})).revoked_authority,
  };
}

async function published(kind: Kind): Promise<Readonly<Record<string, boolean>>> {
  const bundle = await server.admin.bundle.GetBundle({});
  const found =
    kind === "X509"
      ? bundle.x509_authorities.map(({ asn1, tainted }) => [parseCertificate(asn1).subjectKeyId, tainted])
      : (kind === "JWT" ? bundle.jwt_authorities : bundle.wit_authorities).map((key) => [key.key_id, key.tainted]);
  return Object.fromEntries(found);
}

/** Signs something under the active authority, and returns that authority's id. */
const SIGN: Readonly<Record<Kind, () => Promise<string>>> = {
  X509: async () => (await server.mint("spiffe://example.org/used")).chain[0]?.authorityKeyId ?? "",
  JWT: async () => {
    const { svid } = await server.admin.svid.MintJWTSVID({
      id: protoId("spiffe://example.org/u"),
      audience: ["a"],
      ttl: 1,
    });
    return kidOf(svid?.token);
  },
  WIT: async () => {
    const { publicKey } = await generateKey("ec-p256");
    const key = { public_key: publicKey, signing_algorithm: "ES256", ttl: 1 };
    return kidOf((await server.admin.svid.MintWITSVID({ id: protoId("spiffe://example.org/u"), ...key })).svid?.token);
  },
};

function kidOf(token = ""): string {
  return JSON.parse(Buffer.from(token.split(".")[0] ?? "", "base64url").toString()).kid;
}

async function refusal(work: Promise<unknown>): Promise<readonly [string, string]> {
  const { kind, message } = await faultFrom(work);
  return [kind, message];
}

describe.each<{ readonly kind: Kind; readonly name: string; readonly untainted: string }>([
  { kind: "X509", name: "X.509", untainted: "it is not possible to revoke an untainted root CA" },
  { kind: "JWT", name: "JWT", untainted: "it is not possible to revoke an untainted key" },
  { kind: "WIT", name: "WIT", untainted: "it is not possible to revoke an untainted key" },
])("$kind authorities on demand", ({ kind, name, untainted }) => {
  test("TDB-08 TDB-19 prepare publishes, activate signs, taint marks, revoke removes; each only in its turn", async () => {
    const rpc = rpcs(kind);
    const first = (await rpc.state()).active?.authority_id ?? "";
    expect(await rpc.state()).toMatchObject({ prepared: null, old: null });
    expect(await SIGN[kind]()).toBe(first);
    const sequence = async () => BigInt((await server.admin.bundle.GetBundle({})).sequence_number);
    const started = await sequence();

    const second = await rpc.prepare();
    expect(await rpc.state()).toMatchObject({ active: { authority_id: first }, prepared: { authority_id: second } });
    expect(await published(kind)).toEqual({ [first]: false, [second]: false });
    expect([await SIGN[kind](), (await sequence()) > started]).toEqual([first, true]);

    const status = `only Prepared authorities can be activated`;
    expect(await refusal(rpc.activate(""))).toEqual(["invalid", "no authority ID provided"]);
    expect(await refusal(rpc.activate(first))).toEqual(["invalid", "unexpected authority ID"]);
    expect(await refusal(rpc.taint(first))).toEqual(["invalid", "unable to taint current local authority"]);
    expect(await refusal(rpc.taint("other"))).toEqual(["invalid", "unexpected authority ID"]);
    expect(await refusal(rpc.taint(second))).toEqual([
      "invalid",
      "only Old local authorities can be tainted: unsupported local authority status: PREPARED",
    ]);

    expect((await rpc.activate(second))?.authority_id).toBe(second);
    expect(await rpc.state()).toMatchObject({ active: { authority_id: second }, old: { authority_id: first } });
    expect(await SIGN[kind]()).toBe(second);
    expect(await refusal(rpc.activate(first))).toEqual([
      "internal",
      `${status}: unsupported local authority status: OLD`,
    ]);
    expect(await refusal(rpc.revoke(""))).toEqual(["invalid", "invalid authority ID: no authority ID provided"]);
    expect(await refusal(rpc.revoke(second))).toEqual([
      "invalid",
      "invalid authority ID: unable to use current authority",
    ]);
    expect(await refusal(rpc.revoke(first))).toEqual(["internal", `failed to revoke ${name} authority: ${untainted}`]);

    const before = await sequence();
    expect((await rpc.taint(first))?.authority_id).toBe(first);
    expect(await published(kind)).toEqual({ [first]: true, [second]: false });
    expect((await sequence()) > before).toBe(true);
    const again = kind === "X509" ? "root CA is already tainted" : "key is already tainted";
    expect(await refusal(rpc.taint(first))).toEqual(["internal", `failed to taint ${name} authority: ${again}`]);

    expect((await rpc.revoke(first, true))?.authority_id).toBe(first);
    expect(await published(kind)).toEqual({ [second]: false });
    expect(await SIGN[kind]()).toBe(second);
  });

  test("an authority that nobody knows can't be revoked", async () => {
    const message =
      kind === "X509"
        ? "only Old local authority can be revoked"
        : `no ${kind} authority found with provided authority ID`;
    expect(await refusal(rpcs(kind).revoke("unknown"))).toEqual(["invalid", `invalid authority ID: ${message}`]);
  });
});

describe("revoking what is in use", () => {
  let agent: TestSvid;
  let caller: Apis;
  beforeAll(async () => {
    agent = await server.attest();
    caller = server.connect(agent.tls);
  });
  afterAll(() => caller[Symbol.dispose]());

  test("is refused with what is in use, until all is replaced", async () => {
    const rpc = rpcs("X509");
    const entry = await server.createEntry({ spiffeId: "spiffe://example.org/held", parentId: agent.id });
    const csr = await plainCsr();
    const signed = async () =>
      (await caller.svid.BatchNewX509SVID({ params: [{ entry_id: entry.id, csr }] })).results[0];
    expect((await signed())?.status?.code).toBe(0);
    const old = (await rpc.state()).active?.authority_id ?? "";
    await rpc.activate(await rpc.prepare());
    await rpc.taint(old);
    const refused = await faultFrom(rpc.revoke(old));
    expect(refused).toMatchObject({ kind: "precondition", code: "authority-still-in-use" });
    expect(refused.message).toMatch(
      /^the authority is still in use by 1 agent, 1 workload SVID, until \S+Z at the latest$/,
    );
    expect((await signed())?.status?.code).toBe(0);
    expect((await faultFrom(rpc.revoke(old))).message).toContain("by 1 agent, until");
    const renewal = await plainCsr();
    const { svid } = await caller.agent.RenewAgent({ params: { csr: renewal } });
    expect(svid?.cert_chain).toHaveLength(1);
    expect((await faultFrom(rpc.revoke(old))).message).toContain("by 1 agent, until");
    await server.admin.agent.BanAgent({ id: protoId(agent.id) });
    expect((await faultFrom(rpc.revoke(old))).message).toContain("by tokens or replacements under way, until");
    const revoked = await eventually("what was replaced has settled", () => rpc.revoke(old));
    expect(revoked?.authority_id).toBe(old);
  });

  test("tokens count until they end", async () => {
    const rpc = rpcs("JWT");
    const old = (await rpc.state()).active?.authority_id ?? "";
    await server.admin.svid.MintJWTSVID({ id: protoId("spiffe://example.org/u"), audience: ["a"], ttl: 60 });
    await rpc.activate(await rpc.prepare());
    await rpc.taint(old);
    const refused = await faultFrom(rpc.revoke(old));
    expect(refused.message).toMatch(/^the authority is still in use by tokens or replacements under way, until \S+Z/);
    expect((await rpc.revoke(old, true))?.authority_id).toBe(old);
  });
});

test("authorities above this server: there are none", async () => {
  const api = server.admin.localAuthority;
  const request = { subject_key_id: "abc" };
  for (const call of [api.TaintX509UpstreamAuthority, api.RevokeX509UpstreamAuthority])
    expect(await refusal(call(request))).toEqual(["precondition", "upstream authority is not configured"]);
});
