import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { request as httpsRequest, type RequestOptions } from "node:https";
import { connect as tlsConnect } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseBundleDocument } from "../../src/spiffe/bundle.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom } from "../support/faults.ts";
import { createCa } from "../support/pki.ts";
import { RawClient } from "../support/raw-client.ts";
import { startServer, type TestServer } from "../support/server.ts";

let home: TestServer;
let partner: TestServer;
let port: number;
const PARTNER = "partner.test";
const ENDPOINT_ID = `spiffe://${PARTNER}/spire/server`;

beforeAll(async () => {
  const bundle_endpoint = { address: "127.0.0.1", port: 0, refresh_hint: "10s", profile: { https_spiffe: {} } };
  partner = await startServer({ trustDomain: PARTNER, server: { federation: { bundle_endpoint } } });
  const { addr } = await partner.untilLogged("Serving bundle endpoint");
  port = Number(String(addr).split(":")[1]);
  home = await startServer({
    server: {
      federation: {
        federates_with: {
          "configured.test": {
            bundle_endpoint_url: `https://127.0.0.1:${port}/`,
            bundle_endpoint_profile: { https_spiffe: { endpoint_spiffe_id: ENDPOINT_ID } },
          },
        },
      },
    },
  });
});
afterAll(async () => {
  await home[Symbol.asyncDispose]();
  await partner[Symbol.asyncDispose]();
});

interface Reply {
  readonly status: number | undefined;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly body: string;
}

async function ask(options: RequestOptions = {}): Promise<Reply> {
  const request = httpsRequest({
    host: "127.0.0.1",
    port,
    path: "/",
    rejectUnauthorized: false,
    agent: false,
    ...options,
  });
  request.end();
  const [response] = await once(request, "response");
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  return { status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks).toString("utf8") };
}

describe("the server's bundle endpoint", () => {
  test("FED-01 FED-24 FED-26 FED-27 TDB-06 TDB-10 GET gives the bundle as JSON to whoever asks", async () => {
    const { status, headers, body } = await ask();
    expect(status).toBe(200);
    expect(headers).toMatchObject({ "content-type": "application/json", "cache-control": "no-store" });
    const bundle = await partner.admin.bundle.GetBundle({});
    const read = parseBundleDocument(parseTrustDomain(PARTNER), body);
    expect(read.x509Authorities.map(({ asn1 }) => Buffer.from(asn1))).toEqual(
      bundle.x509_authorities.map(({ asn1 }) => asn1),
    );
    expect(read.jwtAuthorities.map(({ keyId }) => keyId)).toEqual(bundle.jwt_authorities.map(({ key_id }) => key_id));
    expect(read).toMatchObject({ refreshHint: 10, sequenceNumber: BigInt(bundle.sequence_number) });
  });

  test("FED-01 HEAD is fine, other methods are 405, other paths 404, and plain HTTP gets nothing", async () => {
    expect(await ask({ method: "HEAD" })).toMatchObject({ status: 200, body: "" });
    for (const method of ["POST", "PUT", "DELETE"])
      expect(await ask({ method })).toMatchObject({ status: 405, headers: { allow: "GET, HEAD" } });
    for (const path of ["/bundle", "//", "/../"]) expect((await ask({ path })).status).toBe(404);
    const plain = httpRequest({ host: "127.0.0.1", port, path: "/" });
    plain.end();
    const [error] = await once(plain, "error");
    expect(error).toBeInstanceOf(Error);
  });

  test("FED-25 what was changed is served within a second", async () => {
    const { der } = await createCa({ trustDomain: PARTNER });
    const { sequence_number } = await partner.admin.bundle.AppendBundle({
      x509_authorities: [{ asn1: Buffer.from(der) }],
    });
    const { body } = await ask();
    expect(parseBundleDocument(parseTrustDomain(PARTNER), body).sequenceNumber).toBe(BigInt(sequence_number));
  });

  test.each([
    { what: "TLS 1.1", options: { minVersion: "TLSv1.1", maxVersion: "TLSv1.1", ciphers: "DEFAULT@SECLEVEL=0" } },
    { what: "RSA key exchange", options: { maxVersion: "TLSv1.2", ciphers: "AES128-GCM-SHA256" } },
    { what: "CBC", options: { maxVersion: "TLSv1.2", ciphers: "ECDHE-ECDSA-AES128-SHA" } },
  ] as const)("FED-15 $what is refused", async ({ options }) => {
    const socket = tlsConnect({ host: "127.0.0.1", port, rejectUnauthorized: false, ...options });
    const [error] = await once(socket, "error");
    expect(String(error)).toMatch(/alert|no protocols|version/i);
  });
});

describe("a relationship between two servers", () => {
  const create = async (fields: object) => {
    const bundle_endpoint_url = `https://127.0.0.1:${port}/`;
    const federation_relationships = [{ trust_domain: PARTNER, bundle_endpoint_url, ...fields }];
    const { results } = await home.admin.trustDomain.BatchCreateFederationRelationship({ federation_relationships });
    expect(results[0]?.status).toEqual({ code: 0, message: "OK" });
  };
  const end = () => home.admin.trustDomain.BatchDeleteFederationRelationship({ trust_domains: [PARTNER] });
  const refresh = () => home.admin.trustDomain.RefreshBundle({ trust_domain: PARTNER });
  const https_spiffe = { endpoint_spiffe_id: ENDPOINT_ID };

  test("FED-38 FED-41 without a first bundle it stays unestablished, and a refresh says so", async () => {
    await create({ https_spiffe });
    expect(await faultFrom(refresh())).toMatchObject({
      kind: "precondition",
      message: "failed to refresh bundle: can't perform SPIFFE Authentication: local copy of bundle not found",
    });
    await end();
  });

  test("FED-13 FED-46 FED-49 FED-51 a first bundle is enough: new keys of the partner reach the workloads here, and none of ours go there", async () => {
    const first = await partner.admin.bundle.GetBundle({});
    await create({ https_spiffe, trust_domain_bundle: { ...first, sequence_number: "1", jwt_authorities: [] } });
    await refresh();
    expect(await home.admin.bundle.GetFederatedBundle({ trust_domain: PARTNER })).toMatchObject({
      x509_authorities: first.x509_authorities,
      refresh_hint: "10",
      sequence_number: first.sequence_number,
    });

    const agent: TestAgent = await startAgent(home);
    await using _ = agent;
    const entry = { parentId: agent.id(), selectors: [OWN_SELECTOR], federates_with: [PARTNER] };
    const { id } = await home.createEntry({ spiffeId: "spiffe://example.org/web", ...entry });
    await agent.untilLogged("Entry created", { entry: id });
    await using client = new RawClient(agent.socketPath);
    const watch = client.bundles();
    const trusted = (held: readonly { readonly asn1: Buffer }[]) => Buffer.concat(held.map(({ asn1 }) => asn1));
    expect((await watch.x509Bundles()).bundles[`spiffe://${PARTNER}`]).toEqual(trusted(first.x509_authorities));

    const { der } = await createCa({ trustDomain: PARTNER });
    const next = await partner.admin.bundle.AppendBundle({ x509_authorities: [{ asn1: Buffer.from(der) }] });
    await refresh();
    expect((await watch.x509Bundles(2)).bundles[`spiffe://${PARTNER}`]).toEqual(trusted(next.x509_authorities));
    expect((await partner.admin.bundle.ListFederatedBundles({})).bundles).toEqual([]);
    await end();
  });

  test("FED-06 a new relationship is polled at once, unattended", async () => {
    const first = await partner.admin.bundle.GetBundle({});
    await create({ https_spiffe, trust_domain_bundle: { ...first, sequence_number: "1", jwt_authorities: [] } });
    const fetched = () => home.admin.bundle.GetFederatedBundle({ trust_domain: PARTNER });
    await eventually("the bundle is here", async () => (await fetched()).sequence_number === first.sequence_number);
    expect((await fetched()).jwt_authorities.map(({ key_id }) => key_id)).toEqual(
      first.jwt_authorities.map(({ key_id }) => key_id),
    );
    await end();
  });

  test("FED-45 FED-52 another endpoint ID, and another profile, are refused", async () => {
    const trust_domain_bundle = await partner.admin.bundle.GetBundle({});
    await create({ https_spiffe: { endpoint_spiffe_id: `spiffe://${PARTNER}/other` }, trust_domain_bundle });
    expect((await faultFrom(refresh())).message).toBe(`failed to refresh bundle: unexpected ID "${ENDPOINT_ID}"`);
    await end();
    await create({ https_web: {}, trust_domain_bundle });
    expect(await faultFrom(refresh())).toMatchObject({ kind: "unavailable" });
    await end();
  });

  test("a relationship of the configuration is polled, and is none of those that the API lists", async () => {
    await home.untilLogged("Trust domain is now managed", { trust_domain: "configured.test" });
    const first = await partner.admin.bundle.GetBundle({});
    await home.admin.bundle.BatchSetFederatedBundle({ bundle: [{ ...first, trust_domain: PARTNER }] });
    await home.admin.trustDomain.RefreshBundle({ trust_domain: "configured.test" });
    const held = await home.admin.bundle.GetFederatedBundle({ trust_domain: "configured.test" });
    expect(held.x509_authorities).toEqual(first.x509_authorities);
    expect((await home.admin.trustDomain.ListFederationRelationships({})).federation_relationships).toEqual([]);
  });
});
