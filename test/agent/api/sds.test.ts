import { createPrivateKey, X509Certificate } from "node:crypto";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, test } from "vitest";
import { Secrets } from "../../../agent/api/sds-secrets.ts";
import { bundlesOf, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { SdsClient, SECRET_TYPE, secretsIn } from "../../support/sds.ts";
import {
  chainOf,
  client,
  endpoint,
  ext,
  grant,
  issued,
  issueFor,
  logged,
  next,
  nobodys,
  opened,
  pemOf,
  root,
  rootB,
  rootC,
  web,
} from "../../support/sds-endpoint.ts";

describe("StreamSecrets", () => {
  test("SDS-01 SDS-04 SDS-11 T-W5 gives a certificate by SPIFFE ID, and roots by trust domain, in PEM, without the security header", async () => {
    const { stream, first } = await opened(["spiffe://example.org/web-ext", "spiffe://partner.test"]);
    expect(first.type_url).toBe(SECRET_TYPE);
    const { "spiffe://example.org/web-ext": svid, "spiffe://partner.test": roots } = secretsIn(
      first.resources as never,
    );
    expect(svid?.chain).toBe(chainOf(issued.get("web-ext")));
    expect(svid?.key).toMatch(/^-----BEGIN PRIVATE KEY-----\n/);
    expect(new X509Certificate(svid?.chain ?? "").checkPrivateKey(createPrivateKey(svid?.key ?? ""))).toBe(true);
    expect(roots?.domains).toEqual([["partner.test", pemOf(rootB)]]);
    stream[Symbol.dispose]();
  });

  test("SDS-01 SDS-12 default, ROOTCA, ALL, IDs and trust domains are answered together in one request", async () => {
    const names = [
      "ALL",
      "ROOTCA",
      "default",
      "spiffe://another.test",
      "spiffe://example.org",
      "spiffe://example.org/web",
    ];
    const { stream, first } = await opened(names);
    const secrets = secretsIn(first.resources as never);
    expect(Object.keys(secrets).sort()).toEqual(names);
    expect(secrets["default"]).toEqual(secrets["spiffe://example.org/web"]);
    expect(secrets["ROOTCA"]?.domains).toEqual([["example.org", pemOf(root)]]);
    expect(secrets["ROOTCA"]).toEqual(secrets["spiffe://example.org"]);
    expect(secrets["ALL"]?.domains).toEqual([
      ["another.test", pemOf(rootC)],
      ["example.org", pemOf(root)],
      ["partner.test", pemOf(rootB)],
    ]);
    stream[Symbol.dispose]();
  });

  test.each([{ names: [] }, { names: ["", ""] }])("SDS-02 $names asks for all there is", async ({ names }) => {
    const { stream, first } = await opened(names);
    expect(Object.keys(secretsIn(first.resources as never)).sort()).toEqual([
      "spiffe://another.test",
      "spiffe://example.org",
      "spiffe://example.org/web",
      "spiffe://example.org/web-ext",
      "spiffe://partner.test",
    ]);
    stream[Symbol.dispose]();
  });

  test("SDS-03 a name that is not the caller's ends the stream, with nothing of the rest", async () => {
    using stream = client.world();
    stream.send({ resource_names: ["default", "spiffe://example.org/nobody", "spiffe://else.test"] });
    expect(await stream.ended).toMatchObject({
      kind: "invalid",
      message:
        'workload is not authorized for the requested identities ["spiffe://else.test" "spiffe://example.org/nobody"]',
      code: "sds-not-authorized",
    });
    expect(stream.responses).toEqual([]);
  });

  test("a type of resource that is not a secret is refused", async () => {
    using stream = client.world();
    stream.send({ type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster", resource_names: ["default"] });
    expect(await stream.ended).toMatchObject({ kind: "invalid", code: "sds-type-unknown" });
  });

  test("SDS-06 versions count, nonces are 8 hex digits and new each time; rotation is pushed", async () => {
    const { stream, first, ack } = await opened(["default"]);
    expect(first).toMatchObject({ version_info: "1", nonce: expect.stringMatching(/^[0-9a-f]{8}$/) });
    ack();
    const rotated = await issueFor(web);
    await endpoint.accept([web, rotated]);
    const second = await stream.response(2);
    expect(second).toMatchObject({ version_info: "2", nonce: expect.stringMatching(/^[0-9a-f]{8}$/) });
    expect(second.nonce).not.toBe(first.nonce);
    expect(secretsIn(second.resources as never)["default"]?.chain).toBe(chainOf(rotated));
    stream[Symbol.dispose]();
  });

  test("a change of what was not asked for is not sent", async () => {
    const roots = await opened(["ROOTCA"]);
    const svid = await opened(["default"]);
    await endpoint.accept([web, await issueFor(web)]);
    await svid.stream.response(2);
    await endpoint.replace([web, ext], bundlesOf(next));
    const second = await roots.stream.response(2);
    expect(secretsIn(second.resources as never)["ROOTCA"]?.domains).toEqual([["example.org", pemOf(next)]]);
    expect(second.version_info).toBe("2");
    for (const { stream } of [roots, svid]) stream[Symbol.dispose]();
  });

  test("SDS-07 an ACK of the same names sends nothing, other names are sent at once, a stale nonce is ignored", async () => {
    const { stream, first, ack } = await opened(["default"]);
    ack();
    ack({ response_nonce: "00000000", resource_names: ["ROOTCA"] });
    ack({ resource_names: ["spiffe://example.org/web-ext", "default"] });
    const second = await stream.response(2);
    expect(Object.keys(secretsIn(second.resources as never))).toEqual(["spiffe://example.org/web-ext", "default"]);
    expect(second.version_info).toBe(first.version_info);
    ack({ resource_names: ["default", "spiffe://example.org/web-ext"] });
    ack({ resource_names: ["ROOTCA"] });
    expect(Object.keys(secretsIn((await stream.response(3)).resources as never))).toEqual(["ROOTCA"]);
    const stale = await logged("Received unexpected nonce; ignoring request");
    expect(stale.at(-1)).toMatchObject({ level: "warn", fields: { nonce: "00000000", expect: first.nonce } });
    stream[Symbol.dispose]();
  });

  test("SDS-07 a NACK is logged with its reason, and answered only by the next change", async () => {
    const { stream, ack } = await opened(["default"]);
    ack({ version_info: "", error_detail: { code: 13, message: "the certificate is not to my liking" } });
    ack({ version_info: "" });
    const rotated = await issueFor(web);
    await eventually("the NACKs are read", async () => {
      const rejected = await logged("Client rejected expected version and rolled back");
      return rejected.length >= 2;
    });
    expect(stream.responses).toHaveLength(1);
    expect((await logged("Envoy reported errors applying secrets")).at(-1)).toMatchObject({
      level: "error",
      fields: {
        error: "the certificate is not to my liking",
        resource_names: "default",
        service: "SDS.v3",
        method: "StreamSecrets",
        pid: process.pid,
      },
    });
    await endpoint.accept([web, rotated]);
    expect(secretsIn((await stream.response(2)).resources as never)["default"]?.chain).toBe(chainOf(rotated));
    stream[Symbol.dispose]();
  });

  test("ends when what it asked for is the caller's no more", async () => {
    const { stream } = await opened(["default"]);
    await endpoint.replace([nobodys], bundlesOf(root));
    expect(await stream.ended).toMatchObject({ kind: "invalid", code: "sds-not-authorized" });
    expect(stream.responses).toHaveLength(1);
  });

  test("a client that says no more after its request is answered first", async () => {
    using stream = client.world();
    stream.send({ resource_names: ["default"] });
    stream.end();
    expect(await stream.ended).toBeUndefined();
    expect(stream.responses).toHaveLength(1);
  });

  test("T-F4 more names than any proxy needs are refused", async () => {
    using stream = client.world();
    stream.send({ resource_names: Array.from({ length: 300 }, (_, at) => `${at}`.padEnd(1024, "x")) });
    expect(await stream.ended).toMatchObject({ kind: "invalid", code: "sds-too-many-names" });
  });

  test("T-X9 what all streams of one control group ask for is bounded, and given back when they end", async () => {
    const names = (stream: number) => Array.from({ length: 250 }, (_, at) => `${stream}-${at}`.padEnd(1024, "x"));
    const ask = (stream: number) => {
      const opened = client.delta();
      const had = Object.fromEntries(names(stream).map((name) => [name, ""]));
      opened.send(stream % 2 === 0 ? { resource_names_subscribe: names(stream) } : { initial_resource_versions: had });
      return opened;
    };
    const streams = Array.from({ length: 20 }, (_, stream) => ask(stream));
    const refusal = await Promise.race(streams.map(({ ended }) => ended));
    expect(refusal).toMatchObject({ kind: "exhausted", code: "sds-too-many-names" });
    for (const stream of streams) stream[Symbol.dispose]();
    await eventually("room for the next", async () => {
      using next = ask(0);
      return await Promise.race([next.response(1).then(() => true), next.ended.then(() => false)]);
    });
  });

  test("T-X9 names of nothing are not remembered", () => {
    setFlagsFromString("--expose-gc");
    const collectGarbage = runInNewContext("gc") as () => void;
    const update = { identities: [], bundle: bundlesOf(root).own, federatedBundles: new Map(), entitled: true };
    const secrets = new Secrets(update, { svid: "default", bundle: "ROOTCA", allBundles: "ALL" });
    collectGarbage();
    const before = process.memoryUsage().heapUsed;
    for (let at = 0; at < 20_000; at += 1)
      expect(secrets.find(Buffer.alloc(2048, `${at} `).toString("latin1"), false)).toBeUndefined();
    collectGarbage();
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(10 * 1024 * 1024);
  });

  test("keys are not logged", async () => {
    const { stream } = await opened([]);
    expect(JSON.stringify((await endpoint.look()).lines)).not.toContain("PRIVATE KEY");
    stream[Symbol.dispose]();
  });
});

describe("the form of roots", () => {
  const version = (major_number: number, minor_number: number) => ({
    user_agent_build_version: { version: { major_number, minor_number, patch: 0 } },
  });
  const metadata = (value: object) => ({ metadata: { fields: { disable_spiffe_cert_validation: value } } });
  const PLAIN = { roots: expect.stringContaining("BEGIN CERTIFICATE") };
  const SPIFFE = { domains: [["example.org", expect.any(String)]] };

  test.each([
    { what: "an unknown version", node: {}, expected: SPIFFE },
    { what: "1.17", node: version(1, 17), expected: PLAIN },
    { what: "1.18", node: version(1, 18), expected: SPIFFE },
    { what: "2.0", node: version(2, 0), expected: SPIFFE },
    { what: "0.20", node: version(0, 20), expected: PLAIN },
    { what: "a build version without numbers", node: { user_agent_build_version: {} }, expected: SPIFFE },
    { what: "metadata true", node: metadata({ boolValue: true }), expected: PLAIN },
    { what: "metadata false", node: metadata({ boolValue: false }), expected: SPIFFE },
    { what: 'metadata "T"', node: metadata({ stringValue: "T" }), expected: PLAIN },
    { what: 'metadata "0"', node: metadata({ stringValue: "0" }), expected: SPIFFE },
    { what: 'metadata "yes", which is no bool', node: metadata({ stringValue: "yes" }), expected: SPIFFE },
    { what: "metadata 1, which is no bool", node: metadata({ numberValue: 1 }), expected: SPIFFE },
  ])("SDS-05 for $what", async ({ node, expected }) => {
    const { resources } = await client.fetch(["ROOTCA"], node);
    expect(secretsIn(resources as never)["ROOTCA"]).toEqual(expected);
  });

  test("SDS-05 ALL needs the SPIFFE validator", async () => {
    await expect(client.fetch(["ALL"], version(1, 17))).rejects.toMatchObject({
      kind: "internal",
      message: 'unable to use "SPIFFE validator" on Envoy below 1.17',
      code: "sds-validator-needed",
    });
  });

  test("SDS-08 a later request without a node has the node of an earlier one", async () => {
    const { stream, ack } = await opened(["ROOTCA"], { node: version(1, 17) });
    ack({ resource_names: ["spiffe://partner.test"] });
    expect(secretsIn((await stream.response(2)).resources as never)).toEqual({ "spiffe://partner.test": PLAIN });
    stream[Symbol.dispose]();
  });

  test("SDS-01 SDS-05 names and form are as configured; metadata overrides", async () => {
    await using other = await Endpoint.start({
      bundles: bundlesOf(root),
      sds: { names: { svid: "me", bundle: "us", allBundles: "everyone" }, disableSpiffeCertValidation: true },
    });
    await grant(other, web);
    using proxy = new SdsClient(other.path);
    const { resources } = await proxy.fetch(["me", "us"]);
    expect(secretsIn(resources as never)).toMatchObject({ me: { key: expect.any(String) }, us: PLAIN });
    const all = await proxy.fetch(["everyone"], metadata({ boolValue: false }));
    expect(secretsIn(all.resources as never)["everyone"]?.domains).toHaveLength(3);
    await expect(proxy.fetch(["default"])).rejects.toMatchObject({ kind: "invalid" });
  });
});

describe("FetchSecrets", () => {
  test("SDS-09 answers once, with neither version nor nonce", async () => {
    const answer = await client.fetch(["default", "ROOTCA"]);
    expect(answer).toMatchObject({ version_info: "", nonce: "", type_url: SECRET_TYPE });
    expect(Object.keys(secretsIn(answer.resources as never))).toEqual(["default", "ROOTCA"]);
    await expect(client.fetch(["spiffe://example.org/nobody"])).rejects.toMatchObject({ kind: "invalid" });
  });

  test("waits for what is being signed", async () => {
    await endpoint.replace([{ ...web, revisionNumber: 7, spiffeId: ext.spiffeId }], bundlesOf(root));
    const answer = client.fetch(["default"]);
    const fresh = await issueFor(ext);
    await endpoint.accept([{ ...web, revisionNumber: 7, spiffeId: ext.spiffeId }, fresh]);
    expect(secretsIn((await answer).resources as never)["default"]?.chain).toBe(chainOf(fresh));
  });
});
