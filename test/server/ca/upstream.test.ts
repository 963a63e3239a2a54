import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Authorities } from "../../../server/ca/authorities.ts";
import { Issuer } from "../../../server/ca/issue.ts";
import type { X509SigningAuthority } from "../../../server/ca/slots.ts";
import { openDiskUpstream } from "../../../server/ca/upstream/disk.ts";
import { type UpstreamAuthority, upstreamKind } from "../../../server/ca/upstream.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { EXT_KEY_USAGE } from "../../../src/crypto/extensions.ts";
import { generateKey, KEY_TYPES, privateKeyToPkcs8 } from "../../../src/crypto/key.ts";
import { parseName } from "../../../src/crypto/name.ts";
import { encodePem } from "../../../src/crypto/pem.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { MetricNaming } from "../../../src/runtime/metrics.ts";
import { PrometheusRegistry } from "../../../src/runtime/prometheus.ts";
import { faultFrom } from "../../support/faults.ts";
import { opensslVerifies } from "../../support/openssl.ts";
import { createCa, nameConstraints, type TestCa, uriName } from "../../support/pki.ts";
import { DAY, Fleet, HOUR, pass, type TestServer, ticking } from "./fleet.ts";
import { makeEntry, messagesOf, openTestStore, START, type TestStore } from "./support.ts";

let fleet: Fleet;
let files: TestStore;
beforeAll(async () => {
  [fleet, files] = [await Fleet.open(), await openTestStore()];
});
afterAll(async () => {
  await fleet[Symbol.asyncDispose]();
  await files[Symbol.asyncDispose]();
});
beforeEach(() => fleet.nextTrustDomain());

/** id-kp-emailProtection */
const EMAIL = "1.3.6.1.5.5.7.3.4";

const AGES = {
  notBefore: new Date(START.getTime() - DAY * 1000),
  notAfter: new Date(START.getTime() + 400 * DAY * 1000),
};

/** A corporate root: no SPIFFE ID. */
function root(options: Parameters<typeof createCa>[0] = {}): Promise<TestCa> {
  return createCa({ uris: [], subject: { organization: "Corp" }, ...AGES, ...options });
}

async function writeCa(ca: TestCa, chain: readonly Uint8Array[], roots?: readonly Uint8Array[]) {
  const folder = join(files.folder, fleet.trustDomain);
  await mkdir(folder, { recursive: true });
  const pem = (ders: readonly Uint8Array[]): string => ders.map((der) => encodePem("CERTIFICATE", der)).join("");
  const paths = {
    certPath: join(folder, "ca.pem"),
    keyPath: join(folder, "ca.key"),
    bundlePath: join(folder, "b.pem"),
  };
  await writeFile(paths.certPath, pem(chain));
  await writeFile(paths.keyPath, encodePem("PRIVATE KEY", privateKeyToPkcs8(ca.signer.privateKey)));
  if (roots !== undefined) await writeFile(paths.bundlePath, pem(roots));
  return { ...paths, bundlePath: roots === undefined ? undefined : paths.bundlePath };
}

type Paths = Awaited<ReturnType<typeof writeCa>>;

function diskUpstream(paths: Paths, { trustDomain, clock, log }: TestServer): Promise<UpstreamAuthority> {
  return openDiskUpstream({ ...paths, trustDomain, clock, log });
}

function openBelow(options: TestServer, upstream: Pick<UpstreamAuthority, "mintX509CA">) {
  return Authorities.open<X509SigningAuthority>({ ...options, type: upstreamKind({ ...options, upstream }) });
}

async function issued(authorities: Authorities<X509SigningAuthority>, { clock, trustDomain }: TestServer) {
  const lifetimes = { defaultTtlSeconds: HOUR, agentTtlSeconds: HOUR, caTtlSeconds: DAY };
  const issuer = new Issuer({ trustDomain, authorities, clock, ...lifetimes });
  const { publicKey } = await generateKey("ec-p256");
  const entry = makeEntry({ spiffeId: `spiffe://${trustDomain}/w` as never });
  const { chain } = await issuer.issueWorkload({ entry, publicKey });
  const bundle = await fleet.store.bundles.find(trustDomain);
  const roots = bundle?.x509Authorities.map(({ asn1 }) => asn1) ?? [];
  return { chain, roots, verifies: await opensslVerifies({ chain, roots, at: clock.now() }) };
}

describe("UpstreamAuthority disk", () => {
  test.each(KEY_TYPES)(
    "X509-09 X509-12 a self-signed CA with a key of type %s signs ours; its root is the bundle's",
    async (keyType) => {
      const ca = await root({ keyType });
      const options = await fleet.server();
      const authorities = await openBelow(options, await diskUpstream(await writeCa(ca, [ca.der]), options));
      const { certificate, upstreamAuthorityId, intermediates } = authorities.signing();
      expect(upstreamAuthorityId).toBe(ca.certificate.subjectKeyId);
      expect([certificate.uris, certificate.isCa, intermediates]).toEqual([
        [`spiffe://${fleet.trustDomain}`],
        true,
        [],
      ]);
      expect(parseName(certificate.subject)).toMatchObject({
        country: ["US"],
        organization: ["SPIFFE"],
        serialNumber: expect.any(String),
      });
      expect(certificate.notAfter.getTime()).toBeLessThanOrEqual(START.getTime() + DAY * 1000);
      const { chain, roots, verifies } = await issued(authorities, options);
      expect([chain.length, roots.length, verifies]).toEqual([2, 1, true]);
      expect(Buffer.from(roots[0] ?? [])).toEqual(Buffer.from(ca.der));
      expect(options.log.lines).toContainEqual(
        expect.objectContaining({
          message: "X509 CA prepared",
          fields: expect.objectContaining({ self_signed: false, upstream_authority_id: ca.certificate.subjectKeyId }),
        }),
      );
    },
  );

  test("an intermediate: its chain goes with every SVID, and only its root is published", async () => {
    const top = await root();
    const middle = await top.intermediate({ uris: [], subject: { organization: "Middle" }, ...AGES });
    const low = await middle.intermediate({
      uris: [],
      subject: { organization: "Low" },
      ...AGES,
      notAfter: new Date(START.getTime() + 12 * HOUR * 1000),
    });
    const options = await fleet.server();
    const paths = await writeCa(low, [low.der, middle.der], [top.der]);
    const authorities = await openBelow(options, await diskUpstream(paths, options));
    expect(authorities.signing().upstreamAuthorityId).toBe(top.certificate.subjectKeyId);
    expect(authorities.signing().notAfter).toEqual(low.certificate.notAfter);
    const { chain, roots, verifies } = await issued(authorities, options);
    expect([chain.length, roots.length, verifies]).toEqual([4, 1, true]);
    const restarted = await openBelow(await fleet.server(), {
      mintX509CA: () => Promise.reject(new Error("not asked")),
    });
    expect(restarted.signing().id).toBe(authorities.signing().id);
    expect((await issued(restarted, options)).chain).toHaveLength(4);
  });

  test("files that are replaced count with the next certificate; files that are no good do not", async () => {
    const [first, second] = [await root(), await root({ subject: { organization: "Corp 2" } })];
    const options = await fleet.server();
    const paths = await writeCa(first, [first.der]);
    const authorities = await openBelow(options, await diskUpstream(paths, options));
    await writeCa(second, [first.der]);
    expect((await authorities.prepare()).upstreamAuthorityId).toBe(first.certificate.subjectKeyId);
    expect(messagesOf(options.log, "error")).toContain("Could not reload the upstream CA; the one from before is used");
    await writeCa(second, [second.der]);
    const next = await authorities.prepare();
    expect(next.upstreamAuthorityId).toBe(second.certificate.subjectKeyId);
    expect(await fleet.roots()).toEqual([first.certificate.subjectKeyId, second.certificate.subjectKeyId]);
  });

  test.each<{ readonly what: string; readonly files: () => Promise<Paths>; readonly message: string }>([
    {
      what: "another key",
      files: async () => writeCa(await root(), [(await root()).der]),
      message: "certificate and private key do not match",
    },
    {
      what: "an intermediate without its bundle",
      files: async () => {
        const top = await root();
        const low = await top.intermediate({ uris: [], ...AGES });
        return writeCa(low, [low.der, top.der]);
      },
      message: "with no bundle_file_path configured only self-signed CAs are supported",
    },
    {
      what: "a bundle of somebody else",
      files: async () => {
        const low = await (await root()).intermediate({ uris: [], subject: { organization: "Low" }, ...AGES });
        return writeCa(low, [low.der], [(await root()).der]);
      },
      message: "cannot be validated with the provided bundle",
    },
    {
      what: "a CA that starts in two hours, by this clock",
      files: async () => {
        const ca = await root({ notBefore: new Date(START.getTime() + 2 * HOUR * 1000) });
        return writeCa(ca, [ca.der]);
      },
      message: "certificate starts 2030-01-02T05:04:05Z, and it is 2030-01-02T03:04:05Z: 1h59m59s too early",
    },
    {
      what: "a CA that has ended",
      files: async () => {
        const ca = await root({ notAfter: new Date(START.getTime() - HOUR * 1000) });
        return writeCa(ca, [ca.der]);
      },
      message: "certificate ended 2030-01-02T02:04:05Z, and it is 2030-01-02T03:04:05Z: 1h too late",
    },
    {
      what: "no key",
      files: async () => {
        const ca = await root();
        const paths = await writeCa(ca, [ca.der]);
        await writeFile(paths.keyPath, "hunter2");
        return paths;
      },
      message: "the key file can't be read or holds no key that we know",
    },
  ])(
    "$what is refused at the start, without a word of what is in the file (T-J8)",
    async ({ files: write, message }) => {
      const fault = await faultFrom(diskUpstream(await write(), await fleet.server()));
      expect([fault.kind, fault.code]).toEqual(["invalid", "upstream-files"]);
      expect(fault.message).toContain(message);
      expect(fault.message).not.toContain("hunter2");
    },
  );
});

describe("T-C4 T-C8 T-X2 T-X7 X509-11 what an upstream authority answers is used only when SVIDs under it will verify", () => {
  type Answer = (
    asked: Uint8Array,
    options: TestServer,
  ) => Promise<{ chain: readonly Uint8Array[]; roots: { asn1: Uint8Array; tainted: boolean }[] }>;
  const signed =
    (options: Parameters<TestCa["issue"]>[0] = {}, top: Parameters<typeof createCa>[0] = {}): Answer =>
    async (publicKey, { trustDomain }) => {
      const ca = await root(top);
      const made = await ca.issue({
        ...{
          publicKey,
          ca: true,
          id: `spiffe://${trustDomain}`,
          keyUsage: ["keyCertSign", "cRLSign"],
          extKeyUsage: null,
        },
        ...AGES,
        ...options,
      });
      return { chain: [made.der], roots: [{ asn1: ca.der, tainted: false }] };
    };

  test.each<{ readonly what: string; readonly answer: Answer; readonly reason: string }>([
    { what: "no certificate", answer: async () => ({ chain: [], roots: [] }), reason: "it sent no certificate" },
    {
      what: "another key",
      answer: async (_, options) => signed()((await generateKey("ec-p256")).publicKey, options),
      reason: "is for another key",
    },
    { what: "a leaf", answer: signed({ ca: false }), reason: "may not sign others" },
    { what: "no keyCertSign", answer: signed({ keyUsage: ["cRLSign"] }), reason: "may not sign others" },
    {
      what: "another trust domain's ID",
      answer: signed({ id: "spiffe://other.test" }),
      reason: 'has the ID ["spiffe://other.test"]',
    },
    { what: "an ID with a path", answer: signed({ id: "spiffe://example.org/ca" }), reason: "has the ID" },
    { what: "one that has expired", answer: signed({ notAfter: new Date(START.getTime() - 1000) }), reason: "expired" },
    {
      what: "one that starts later",
      answer: signed({ notBefore: new Date(START.getTime() + HOUR * 1000) }),
      reason: "not yet valid: current time 2030-01-02T03:04:05.678Z is before 2030-01-02T04:04:05.000Z",
    },
    { what: "a root that leaves no room", answer: signed({}, { pathLength: 0 }), reason: "leaves no room" },
    {
      what: "a root that may not sign for the trust domain",
      answer: signed({}, { extensions: [nameConstraints({ permitted: [uriName("other.test")] })] }),
      reason: "can't be used",
    },
    { what: "one for mail alone", answer: signed({ extKeyUsage: [EMAIL] }), reason: "extended key usage" },
    {
      what: "one for servers alone",
      answer: signed({ extKeyUsage: [EXT_KEY_USAGE.serverAuth] }),
      reason: "extended key usage",
    },
    {
      what: "a namesake of the root with its key identifier",
      answer: async (key, options) => {
        const ours = await root();
        const namesake = { subjectKeyId: Buffer.from(ours.certificate.subjectKeyId, "hex") };
        return { ...(await signed({}, namesake)(key, options)), roots: [{ asn1: ours.der, tainted: false }] };
      },
      reason: "signature does not verify",
    },
    {
      what: "no root that fits",
      answer: async (key, options) => ({
        ...(await signed()(key, options)),
        roots: [{ asn1: (await root()).der, tainted: false }],
      }),
      reason: "can't be used",
    },
  ])("$what is refused, and nothing is published", async ({ answer, reason }) => {
    const options = await fleet.server();
    const mintX509CA: UpstreamAuthority["mintX509CA"] = async () => {
      const key = await options.keys.find("x509-CA-A");
      return answer(key?.publicKey ?? new Uint8Array(), options);
    };
    const fault = await faultFrom(openBelow(options, { mintX509CA }));
    expect([fault.code, fault.message]).toEqual(["upstream-answer", expect.stringContaining(reason)]);
    expect(await fleet.roots()).toEqual([]);
  });
});

test("an upstream outage with a valid CA in hand changes nothing: signing goes on, one key is made, and the time left falls", async () => {
  const ca = await root();
  const metrics = new PrometheusRegistry(new MetricNaming({ prefix: "spire_server" }), systemClock);
  const given = await fleet.server();
  const options = { ...given, log: given.log.measured(metrics) };
  const left = (): number => Number(/rotate_ttl\{.*\} (\S+)/.exec(metrics.text())?.[1]);
  const disk = await diskUpstream(await writeCa(ca, [ca.der]), options);
  let [away, made] = [false, 0];
  const mintX509CA: UpstreamAuthority["mintX509CA"] = (request) =>
    away ? Promise.reject(new Fault("unavailable", "upstream is away")) : disk.mintX509CA(request);
  const keys = {
    find: (id: string) => options.keys.find(id),
    generate: (...args: Parameters<typeof options.keys.generate>) => {
      made += 1;
      return options.keys.generate(...args);
    },
  };
  const authorities = await openBelow({ ...options, keys }, { mintX509CA });
  const { id } = authorities.signing();
  await using _ = ticking(authorities);
  away = true;
  expect(left()).toBeCloseTo(DAY, -1);
  for (const [hours, hoursLeft] of [
    [13, 11],
    [5, 6],
    [4, 2],
  ] as const) {
    await pass(options, hours * HOUR);
    expect([authorities.signing().id, (await issued(authorities, options)).verifies]).toEqual([id, true]);
    expect(left() / HOUR).toBeCloseTo(hoursLeft, 1);
  }
  expect(made).toBe(2);
  away = false;
  for (let tick = 0; tick < 3; tick += 1) await pass(options, 11);
  expect(authorities.signing().id).not.toBe(id);
  expect([made, (await issued(authorities, options)).verifies]).toEqual([2, true]);
  expect(left()).toBeCloseTo(DAY, -2);
});

test("a configuration that gains or loses its upstream authority makes a new CA at once", async () => {
  const ca = await root();
  const options = await fleet.server();
  const disk = await diskUpstream(await writeCa(ca, [ca.der]), options);
  const { selfSignedKind } = await import("../../../server/ca/kinds.ts");
  const own = await Authorities.open<X509SigningAuthority>({ ...options, type: selfSignedKind(options) });
  const below = await openBelow(await fleet.server(), disk);
  expect(below.signing()).toMatchObject({ upstreamAuthorityId: ca.certificate.subjectKeyId });
  const again = await fleet.server();
  const back = await Authorities.open<X509SigningAuthority>({ ...again, type: selfSignedKind(again) });
  expect(back.signing().upstreamAuthorityId).toBe("");
  expect(back.signing().id).not.toBe(own.signing().id);
  expect(parseCertificate(back.signing().certificate.raw).authorityKeyId).toBe("");
});
