import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { bundleFromData } from "../../../server/cli/trust-bundle.ts";
import { fetchBundle } from "../../../server/federation/fetch.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { type Bundle, encodeBundleDocument } from "../../../src/spiffe/bundle.ts";
import type { EndpointProfile } from "../../../src/spiffe/federation.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { document, type ForeignEndpoint, startForeignEndpoint } from "../../support/bundle-endpoint.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";

const PARTNER = parseTrustDomain("partner.test");
const ENDPOINT_ID = parseSpiffeId("spiffe://partner.test/spire/server");
const SPIFFE: EndpointProfile = { type: "https_spiffe", endpointSpiffeId: ENDPOINT_ID };
const WEB: EndpointProfile = { type: "https_web" };
const defaultAuthorities = getCACertificates("default");

let ca: TestCa;
let svid: Issued;
let endpoint: ForeignEndpoint;
let served: Bundle;

beforeAll(async () => {
  ca = await createCa({ trustDomain: PARTNER });
  svid = await ca.issue({ id: ENDPOINT_ID });
  served = bundleOf(ca);
  endpoint = await startForeignEndpoint(svid, document(""));
});
afterAll(async () => {
  setDefaultCACertificates(defaultAuthorities);
  await endpoint[Symbol.asyncDispose]();
});
beforeEach(() => {
  setDefaultCACertificates(defaultAuthorities);
  endpoint.show(svid);
  endpoint.answer = document(encodeBundleDocument(served));
  endpoint.requests.length = 0;
});

function bundleOf(...roots: readonly TestCa[]): Bundle {
  const x509Authorities = roots.map(({ der }) => ({ asn1: der, tainted: false }));
  return {
    ...{ trustDomain: PARTNER, x509Authorities, jwtAuthorities: [], witAuthorities: [] },
    refreshHint: 300,
    sequenceNumber: 7n,
  };
}

function fetched(profile: EndpointProfile = SPIFFE, held: Bundle | undefined = served, url = endpoint.url) {
  return fetchBundle({
    relationship: { trustDomain: PARTNER, bundleEndpointUrl: url, profile },
    bundle: (name) => (name === held?.trustDomain ? held : undefined),
    notice: () => undefined,
    clock: systemClock,
    signal: new AbortController().signal,
  });
}

describe("https_spiffe", () => {
  test("FED-13 FED-45 the bundle of an endpoint with exactly the right ID is taken, whatever its host is called", async () => {
    expect(await fetched()).toEqual(served);
    expect(endpoint.requests).toEqual(["/"]);
  });

  test.each<{ what: string; shown: () => Promise<Issued>; says: RegExp }>([
    {
      what: "another ID of the same trust domain",
      shown: () => ca.issue({ id: "spiffe://partner.test/other" }),
      says: /unexpected ID/,
    },
    {
      what: "the right ID by another authority",
      shown: async () => (await createCa({ trustDomain: PARTNER })).issue({ id: ENDPOINT_ID }),
      says: /unknown authority/,
    },
    { what: "an expired SVID", shown: () => ca.issue({ id: ENDPOINT_ID, notAfter: new Date(1) }), says: /expired/ },
    {
      what: "two IDs",
      shown: () => ca.issue({ uris: [ENDPOINT_ID, "spiffe://partner.test/b"] }),
      says: /more than one URI SAN/,
    },
    {
      what: "a certificate for its host and no ID",
      shown: () => ca.issue({ uris: [], dnsNames: ["localhost"] }),
      says: /no URI SAN/,
    },
    { what: "a CA certificate", shown: async () => ca, says: /./ },
  ])("FED-45 FED-52 an endpoint with $what is refused before a request is sent", async ({ shown, says }) => {
    endpoint.show(await shown());
    const fault = await faultFrom(fetched());
    expect(fault.message).toMatch(says);
    expect(endpoint.requests).toEqual([]);
  });

  test("FED-38 FED-41 without the bundle of the endpoint's trust domain nothing is asked", async () => {
    const fault = await faultFrom(fetched(SPIFFE, { ...served, trustDomain: parseTrustDomain("other.test") }));
    expect(fault).toMatchObject({
      kind: "precondition",
      message: "can't perform SPIFFE Authentication: local copy of bundle not found",
    });
    expect(endpoint.requests).toEqual([]);
  });

  test.each([
    { ids: "FED-39", format: "spiffe", write: (roots: readonly TestCa[]) => encodeBundleDocument(bundleOf(...roots)) },
    { ids: "FED-40", format: "pem", write: (roots: readonly TestCa[]) => roots.map(({ pem }) => pem).join("") },
  ] as const)(
    "$ids the first bundle may come as a file of format $format: each of its roots vouches for the endpoint",
    async ({ format, write }) => {
      const roots = [ca, await createCa({ trustDomain: PARTNER })];
      const { x509_authorities = [] } = bundleFromData({ text: write(roots), format, id: PARTNER });
      const x509Authorities = (x509_authorities ?? []).map(({ asn1 }) => ({
        asn1: Buffer.from(asn1 ?? ""),
        tainted: false,
      }));
      const held = { ...served, x509Authorities };
      for (const root of roots) {
        endpoint.show(await root.issue({ id: ENDPOINT_ID }));
        expect(await fetched(SPIFFE, held)).toEqual(served);
      }
      endpoint.show(await (await createCa({ trustDomain: PARTNER })).issue({ id: ENDPOINT_ID }));
      expect((await faultFrom(fetched(SPIFFE, held))).message).toMatch(/unknown authority/);
    },
  );

  test("FED-46 what was fetched last verifies the endpoint next time", async () => {
    const next = await createCa({ trustDomain: PARTNER });
    endpoint.answer = document(encodeBundleDocument(bundleOf(ca, next)));
    const second = await fetched();
    endpoint.show(await next.issue({ id: ENDPOINT_ID }));
    endpoint.answer = document(encodeBundleDocument(bundleOf(next)));
    const third = await fetched(SPIFFE, second);
    expect(third.x509Authorities).toHaveLength(1);
    endpoint.show(svid);
    expect((await faultFrom(fetched(SPIFFE, third))).message).toMatch(/unknown authority/);
  });
});

test("FED-47 FED-42 FED-41 an endpoint of another trust domain is verified with the newest bundle of that one, which came over https_web", async () => {
  const next = await createCa({ trustDomain: PARTNER });
  await using ofThird = await startForeignEndpoint(
    await next.issue({ id: ENDPOINT_ID }),
    document(encodeBundleDocument(served)),
  );
  const third = (held: Bundle) =>
    fetchBundle({
      relationship: { trustDomain: parseTrustDomain("third.test"), bundleEndpointUrl: ofThird.url, profile: SPIFFE },
      bundle: (name) => (name === PARTNER ? held : undefined),
      notice: () => undefined,
      clock: systemClock,
      signal: new AbortController().signal,
    });
  expect((await faultFrom(third(served))).message).toMatch(/unknown authority/);
  setDefaultCACertificates([...defaultAuthorities, ca.pem]);
  endpoint.show(await ca.issue({ uris: [], dnsNames: ["localhost"] }));
  endpoint.answer = document(encodeBundleDocument(bundleOf(next)));
  const newest = await fetched(WEB, undefined, `https://localhost:${endpoint.port}/`);
  expect(await third(newest)).toMatchObject({ trustDomain: "third.test" });
});

describe("https_web", () => {
  test("FED-13 FED-21 FED-31b a certificate for the host by an authority of the machine is taken", async () => {
    endpoint.show(await ca.issue({ uris: [], dnsNames: ["localhost"] }));
    const url = `https://localhost:${endpoint.port}/`;
    expect((await faultFrom(fetched(WEB, undefined, url))).kind).toBe("unavailable");
    setDefaultCACertificates([...defaultAuthorities, ca.pem]);
    expect(await fetched(WEB, undefined, url)).toEqual(served);
  });

  test("FED-31a FED-52 a certificate for another name is refused, and an SVID is no stand-in", async () => {
    setDefaultCACertificates([...defaultAuthorities, ca.pem]);
    endpoint.show(await ca.issue({ uris: [], dnsNames: ["elsewhere.test"] }));
    const url = `https://localhost:${endpoint.port}/`;
    expect((await faultFrom(fetched(WEB, undefined, url))).message).toMatch(/altnames|IP/);
    endpoint.show(svid);
    expect((await faultFrom(fetched(WEB, served, url))).kind).toBe("unavailable");
    expect(endpoint.requests).toEqual([]);
  });
});

describe("answers", () => {
  test("FED-32 what the document says of its trust domain has no effect", async () => {
    const text = JSON.stringify({ ...JSON.parse(encodeBundleDocument(served)), trust_domain: "evil.test" });
    endpoint.answer = document(text, 200, { "content-type": "text/plain" });
    expect(await fetched()).toEqual(served);
  });

  const whole = () => encodeBundleDocument(served);
  test.each<{ what: string; answer: () => ForeignEndpoint["answer"]; says: RegExp }>([
    { what: "404 with a bundle", answer: () => document(whole(), 404), says: /unexpected status 404/ },
    { what: "500 with a bundle", answer: () => document(whole(), 500), says: /unexpected status 500/ },
    { what: "204", answer: () => document("", 204), says: /unexpected status 204/ },
    { what: "half a document", answer: () => document(whole().slice(0, 100)), says: /not JSON/ },
    { what: "a list", answer: () => document("[]"), says: /not a JSON object/ },
    { what: "no keys", answer: () => document("{}"), says: /keys/ },
    {
      what: "bytes that are not UTF-8",
      answer: () => (_, response) => void response.end(Buffer.from([0x7b, 0xff, 0x7d])),
      says: /not UTF-8/,
    },
    {
      what: "a body without end",
      answer: () => (_, response) => {
        const more = (): void => {
          while (!response.destroyed && response.write("x".repeat(65_536)));
        };
        response.on("drain", more).on("error", () => undefined);
        more();
      },
      says: /longer than 4194304 bytes/,
    },
    {
      what: "a packed body",
      answer: () => (_, response) => {
        response.writeHead(200, { "content-encoding": "gzip" });
        response.end(gzipSync(Buffer.alloc(1_000_000)));
      },
      says: /encoded as gzip/,
    },
    {
      what: "a connection that breaks",
      answer: () => (_, response) => {
        response.writeHead(200, { "content-length": "1000" });
        response.write("{");
        setImmediate(() => response.destroy());
      },
      says: /./,
    },
  ])("FED-54 $what is an error", async ({ answer, says }) => {
    endpoint.answer = answer();
    expect((await faultFrom(fetched())).message).toMatch(says);
  });
});

describe("redirects", () => {
  const to = (location: string, status = 302) => document("", status, { location });
  const then =
    (location: string, status: number): ForeignEndpoint["answer"] =>
    (request, response) =>
      (request.url === "/" ? to(location, status) : document(encodeBundleDocument(served)))(request, response);

  test.each([301, 302, 303, 307, 308])("FED-33 FED-35a status %i is followed, each time anew", async (status) => {
    endpoint.answer = then("/bundle", status);
    expect(await fetched()).toEqual(served);
    expect(await fetched()).toEqual(served);
    expect(endpoint.requests).toEqual(["/", "/bundle", "/", "/bundle"]);
  });

  test.each([
    "http://127.0.0.1/",
    "https://user@127.0.0.1/",
    "file:///etc/passwd",
    "data:application/json,{}",
    "https:/x",
  ])("FED-29 a redirect to %s is refused", async (location) => {
    endpoint.answer = to(location);
    const fault = await faultFrom(fetched());
    expect(fault.message).toMatch(/^redirected to a URL that is refused/);
    expect(endpoint.requests).toEqual(["/"]);
  });

  test("FED-33 a loop ends", async () => {
    endpoint.answer = to("/");
    expect((await faultFrom(fetched())).message).toBe("more than 10 redirects");
    expect(endpoint.requests).toHaveLength(11);
  });

  test("FED-34 FED-44 the other host has to show the same ID", async () => {
    await using honest = await startForeignEndpoint(svid, document(encodeBundleDocument(served)));
    endpoint.answer = to(honest.url);
    expect(await fetched()).toEqual(served);
    honest.show(await ca.issue({ id: "spiffe://partner.test/other-server" }));
    expect((await faultFrom(fetched())).message).toMatch(/unexpected ID/);
  });
});
