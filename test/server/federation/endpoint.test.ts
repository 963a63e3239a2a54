import { generateKeyPairSync } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { afterAll, beforeAll, expect, test } from "vitest";
import { serveBundleEndpoint } from "../../../server/federation/endpoint.ts";
import { fetchBundle } from "../../../server/federation/fetch.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { RecordingLog } from "../../support/recording-log.ts";

const HOME = parseTrustDomain("home.test");
const defaultAuthorities = getCACertificates("default");
let folder: string;
let ca: TestCa;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-endpoint-"));
  ca = await createCa({ trustDomain: HOME });
});
afterAll(async () => {
  setDefaultCACertificates(defaultAuthorities);
  await rm(folder, { recursive: true, force: true });
});

const profile = () => ({
  ...{ type: "https_web" as const, certFile: join(folder, "cert.pem"), keyFile: join(folder, "key.pem") },
  syncIntervalMs: 60_000,
});
async function write({ pem, keyPem }: Issued): Promise<void> {
  await writeFile(join(folder, "cert.pem"), pem);
  await writeFile(join(folder, "key.pem"), keyPem);
}
const forHost = (authority: TestCa) => authority.issue({ uris: [], dnsNames: ["localhost"] });

async function start(clock = new FakeClock(), more: Partial<Bundle> = {}) {
  const bundle: Bundle = {
    ...{ trustDomain: HOME, jwtAuthorities: [], witAuthorities: [], refreshHint: 1, sequenceNumber: 3n },
    x509Authorities: [{ asn1: Uint8Array.from(ca.der), tainted: true }],
    ...more,
  };
  const log = new RecordingLog();
  const identity = new Feed({ chain: ca.chain, privateKey: ca.signer.privateKey });
  const settings = { address: "127.0.0.1", port: 0, refreshHintSeconds: 300, profile: profile() };
  const endpoint = await serveBundleEndpoint({ ...settings, bundle: () => bundle, identity, clock, log });
  const fetched = () =>
    fetchBundle({
      relationship: {
        ...{ trustDomain: HOME, bundleEndpointUrl: `https://localhost:${endpoint.port}/` },
        profile: { type: "https_web" },
      },
      bundle: () => undefined,
      notice: () => undefined,
      clock: systemClock,
      signal: new AbortController().signal,
    });
  return { endpoint, bundle, log, clock, fetched };
}

test("FED-13 FED-14 FED-43 https_web shows the certificate of the files, a new one as it comes, and keeps it over one that is no good", async () => {
  await write(await forHost(ca));
  setDefaultCACertificates([...defaultAuthorities, ca.pem]);
  const { endpoint, bundle, log, clock, fetched } = await start();
  await using _ = endpoint;
  const stop = new AbortController();
  const running = endpoint.run(stop.signal).catch(() => undefined);
  const published = {
    ...bundle,
    refreshHint: 300,
    x509Authorities: [{ asn1: Uint8Array.from(ca.der), tainted: false }],
  };
  expect(comparable(await fetched())).toEqual(published);

  const next = await createCa({ trustDomain: HOME });
  setDefaultCACertificates([...defaultAuthorities, next.pem]);
  expect((await faultFrom(fetched())).kind).toBe("unavailable");
  await write(await forHost(next));
  await eventually("the new certificate is shown", async () => {
    await clock.advance(60_000);
    return fetched().then(Boolean, () => false);
  });

  await writeFile(join(folder, "key.pem"), "no key");
  await eventually("the bad file is logged", async () => {
    await clock.advance(60_000);
    return log.lines.some(({ level }) => level === "error");
  });
  expect(comparable(await fetched())).toEqual(published);
  stop.abort();
  await running;
});

test("T-X5 T-X6 authorities whose keys nobody takes are left out, and whoever asks does not end the server", async () => {
  await write(await forHost(ca));
  setDefaultCACertificates([...defaultAuthorities, ca.pem]);
  const spki = (curve: string): Uint8Array =>
    generateKeyPairSync("ec", { namedCurve: curve }).publicKey.export({ type: "spki", format: "der" });
  const odd = await ca.issue({ id: "spiffe://home.test", ca: true, publicKey: spki("secp224r1") });
  const token = { publicKey: spki("secp256k1"), keyId: "k", expiresAt: 0, tainted: false };
  const authority = { asn1: Uint8Array.from(ca.der), tainted: false };
  const { endpoint, fetched } = await start(undefined, {
    x509Authorities: [authority, { asn1: Uint8Array.from(odd.der), tainted: false }],
    jwtAuthorities: [token],
    witAuthorities: [token],
  });
  await using _ = endpoint;
  expect(comparable(await fetched())).toMatchObject({
    x509Authorities: [authority],
    jwtAuthorities: [],
    witAuthorities: [],
  });
});

test("a certificate file that is not there ends the start", async () => {
  await rm(join(folder, "cert.pem"));
  expect(await faultFrom(start())).toMatchObject(refusal("precondition", "bundle-endpoint-certificate"));
});

/** Bytes are compared, not the kind of their array. */
function comparable(bundle: Bundle): Bundle {
  const x509Authorities = bundle.x509Authorities.map(({ asn1, tainted }) => ({ asn1: Uint8Array.from(asn1), tainted }));
  return { ...bundle, x509Authorities };
}
