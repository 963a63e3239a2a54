import { beforeAll, describe, expect, test } from "vitest";
import { bundleOf } from "../../../agent/node/bootstrap.ts";
import { verifyServer, verifyServerIdOnly } from "../../../agent/node/verify.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { faultOf } from "../../support/faults.ts";
import { type CertificateOptions, createCa, type TestCa } from "../../support/pki.ts";

const HOME = parseTrustDomain("home.test");
const SERVER = "spiffe://home.test/spire/server";
const HOUR = 3_600_000;

let ca: TestCa;
let stranger: TestCa;

beforeAll(async () => {
  ca = await createCa({ trustDomain: "home.test" });
  stranger = await createCa({ trustDomain: "home.test" });
});

const now = () => systemClock.now();
const later = (ms: number) => new Date(now().getTime() + ms);

describe("the server's certificate", () => {
  test("T-C4 T-X1 is accepted when it leads to the bundle and names the server, whatever the host", async () => {
    const intermediate = await ca.intermediate();
    for (const issuer of [ca, intermediate]) {
      const { certificates } = await issuer.issue({ id: SERVER, dnsNames: ["elsewhere.example"] });
      expect(() => verifyServer({ chain: certificates, bundle: bundleOf(HOME, [ca.der]), at: now() })).not.toThrow();
    }
  });

  test.each<{ what: string; options: CertificateOptions; code: string }>([
    { what: "a workload of the trust domain", options: { id: "spiffe://home.test/web" }, code: "server-id" },
    { what: "an agent", options: { id: "spiffe://home.test/spire/agent/join_token/a" }, code: "server-id" },
    { what: "an ID that the server's is a prefix of", options: { id: `${SERVER}/x` }, code: "server-id" },
    {
      what: "the server of another trust domain under our authority",
      options: { id: "spiffe://evil.test/spire/server" },
      code: "no-bundle",
    },
    { what: "two URI names", options: { uris: [SERVER, "spiffe://home.test/web"] }, code: "several-uri-sans" },
    { what: "no URI name", options: { uris: [], subject: { commonName: SERVER } }, code: "no-uri-san" },
    { what: "a CA", options: { id: SERVER, ca: true }, code: "leaf-is-ca" },
    {
      what: "a leaf that may sign certificates",
      options: { id: SERVER, keyUsage: ["digitalSignature", "keyCertSign"] },
      code: "leaf-key-cert-sign",
    },
    {
      what: "an upper-case trust domain",
      options: { id: "spiffe://HOME.test/spire/server" },
      code: "trust-domain-characters",
    },
  ])("T-X1 T-C4 that names $what is refused", async ({ options, code }) => {
    const { certificates } = await ca.issue(options);
    const fault = faultOf(() => verifyServer({ chain: certificates, bundle: bundleOf(HOME, [ca.der]), at: now() }));
    expect([fault.kind, fault.code]).toEqual(["denied", code]);
  });

  test("T-C4 of another authority with the same names is refused", async () => {
    const { certificates } = await stranger.issue({ id: SERVER });
    const fault = faultOf(() => verifyServer({ chain: certificates, bundle: bundleOf(HOME, [ca.der]), at: now() }));
    expect([fault.kind, fault.code]).toEqual(["denied", "unknown-authority"]);
  });

  test("T-C4 that is self-issued under the authority's name is refused", async () => {
    const forged = await stranger.issue({ id: SERVER, issuerName: ca.certificate.subject });
    expect(
      faultOf(() => verifyServer({ chain: forged.certificates, bundle: bundleOf(HOME, [ca.der]), at: now() })).kind,
    ).toBe("denied");
  });

  test("that is expired is refused", async () => {
    const { certificates } = await ca.issue({ id: SERVER, notBefore: later(-HOUR), notAfter: later(-1000) });
    const fault = faultOf(() => verifyServer({ chain: certificates, bundle: bundleOf(HOME, [ca.der]), at: now() }));
    expect(fault.kind).toBe("denied");
    expect(fault.message).toContain("expired");
  });

  test("T-F7 that is not valid yet says that this machine's clock is early", async () => {
    const { certificates } = await ca.issue({ id: SERVER, notBefore: later(HOUR), notAfter: later(2 * HOUR) });
    const fault = faultOf(() => verifyServer({ chain: certificates, bundle: bundleOf(HOME, [ca.der]), at: now() }));
    expect([fault.kind, fault.code]).toEqual(["precondition", "clock-too-early"]);
    expect(fault.message).toMatch(
      /the clock of this machine \(.+Z\) is earlier than the start of the server's certificate/,
    );
  });
});

describe("the server's certificate in an insecure bootstrap", () => {
  test("is accepted from anyone who names the server", async () => {
    const { certificates } = await stranger.issue({ id: SERVER });
    expect(() => verifyServerIdOnly(certificates, HOME)).not.toThrow();
  });

  test.each<{ what: string; options: CertificateOptions; code: string }>([
    { what: "a workload", options: { id: "spiffe://home.test/web" }, code: "server-id" },
    {
      what: "the server of another trust domain",
      options: { id: "spiffe://evil.test/spire/server" },
      code: "server-id",
    },
    { what: "two URI names", options: { uris: [SERVER, SERVER] }, code: "several-uri-sans" },
    { what: "no URI name", options: { uris: [] }, code: "no-uri-san" },
  ])("with $what is refused", async ({ options, code }) => {
    const { certificates } = await stranger.issue(options);
    expect(faultOf(() => verifyServerIdOnly(certificates, HOME)).code).toBe(code);
  });
});
