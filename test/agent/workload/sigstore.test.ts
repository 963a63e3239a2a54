import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ImageVerifier } from "../../../agent/workload/image-verifier.ts";
import { openSigstore, type SigstoreOptions } from "../../../agent/workload/sigstore/open.ts";
import { EXT_KEY_USAGE } from "../../../src/crypto/extensions.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { RegistryDouble } from "../../support/registry.ts";
import {
  type AttestationOptions,
  ISSUER,
  type MadeLayer,
  newAuthority,
  newLog,
  publish,
  type SignatureOptions,
  SigstoreDouble,
  SUBJECT,
} from "../../support/sigstore.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const stop = new AbortController();
const scope = new AsyncDisposableStack();
const REPOSITORY = "team/app";
let sigstore: SigstoreDouble;
let registry: RegistryDouble;
let trustedRootPath: string;

beforeAll(async () => {
  sigstore = scope.use(await SigstoreDouble.open());
  registry = scope.use(await RegistryDouble.open());
  trustedRootPath = join(scope.use(await temporaryDirectory()).path, "trusted_root.json");
  await writeFile(trustedRootPath, JSON.stringify(sigstore.trustedRoot()));
});

afterAll(async () => {
  stop.abort();
  await scope.disposeAsync();
});

async function verifier(options: Partial<SigstoreOptions> = {}): Promise<ImageVerifier> {
  return openSigstore({
    allows: ({ issuer, subjects }) => issuer === ISSUER && subjects.includes(SUBJECT),
    ...{ skippedImages: new Set(), rekorUrl: sigstore.rekorUrl, registryCredentials: new Map() },
    ...{ ignoreSct: false, ignoreTlog: false, ignoreAttestations: true },
    trust: { type: "file", path: trustedRootPath },
    loginFiles: [],
    ...{ clock: systemClock, log: new RecordingLog(), signal: stop.signal },
    ...options,
  });
}

interface Signed {
  /** As kubelet and engine name it. */
  readonly name: string;
  readonly digest: string;
}

function newImage(held: RegistryDouble = registry): Signed {
  const digest = held.image(REPOSITORY, randomUUID());
  return { digest, name: `${held.host}/${REPOSITORY}@${digest}` };
}

/** An image with these signatures. */
async function signed(
  ...options: readonly SignatureOptions[]
): Promise<Signed & { readonly made: readonly MadeLayer[] }> {
  const { digest, name } = newImage();
  const made = await Promise.all(options.map((each) => sigstore.signature(digest, each)));
  publish(registry, { repository: REPOSITORY, digest, suffix: "sig" }, made);
  return { digest, name, made };
}

function valuesOf(made: MadeLayer, subject = SUBJECT): readonly string[] {
  return [
    ...[`image-signature-subject:${subject}`, `image-signature-issuer:${ISSUER}`],
    ...[`image-signature-value:${made.signature}`, `image-signature-log-id:${made.entry?.logID}`],
    ...[`image-signature-log-index:${made.entry?.logIndex}`],
    `image-signature-integrated-time:${made.entry?.integratedTime}`,
    `image-signature-signed-entry-timestamp:${made.entry?.promise}`,
  ];
}

const OTHER_DIGEST = `sha256:${"a".repeat(64)}`;
const LONG_AGO = new Date("2024-05-01T10:00:00Z");

describe("an image that is verified", () => {
  const HOUR = 3_600_000;

  /** Time passes when the test says so; what is waited for takes the time that it takes. */
  async function scene(options: Partial<SigstoreOptions> = {}) {
    let passed = 0;
    const clock = { ...systemClock, monotonic: () => systemClock.monotonic() + passed };
    const log = new RecordingLog();
    const verifying = await verifier({ clock, log, ...options });
    const asked = () => registry.requests.length;
    return { ...{ verifying, log, asked }, pass: (ms: number) => (passed += ms) };
  }

  test("is taken for verified while it is verified again, once an hour and only when it is used", async () => {
    const { name } = await signed({});
    const { verifying, asked, pass } = await scene();
    const selectors = await verifying.verify(name);
    let before = asked();
    expect(await verifying.verify(name)).toBe(selectors);
    pass(HOUR);
    expect(asked()).toBe(before);
    expect(verifying.held(name)).toBe(selectors);
    await eventually("it is verified again", () => asked() > before && verifying.held(name) !== selectors);
    before = asked();
    expect(verifying.held(name)).toEqual(selectors);
    expect(asked()).toBe(before);
  });

  test("is no longer so when its signature is gone", async () => {
    const { name, digest } = await signed({});
    const { verifying, log, pass } = await scene();
    await verifying.verify(name);
    registry.remove(REPOSITORY, `${digest.replace(":", "-")}.sig`);
    pass(HOUR);
    expect(verifying.held(name)).toBeDefined();
    await eventually("it is found out", () => verifying.held(name) === undefined);
    await expect(verifying.verify(name)).rejects.toMatchObject({ kind: "denied", code: "image-signature" });
    expect(log.lines.map(({ message }) => message)).toEqual(["Image does not count as verified any more"]);
  });

  test("is so for a day while its registry is away, and no longer", async () => {
    const { name } = await signed({});
    const { verifying, log, pass } = await scene();
    await verifying.verify(name);
    registry.override = (_, response) => {
      response.writeHead(503).end();
      return true;
    };
    pass(HOUR);
    expect(await verifying.verify(name)).toContain("image-signature:verified");
    await eventually("a failed attempt", () => log.lines.length > 0);
    pass(23 * HOUR - 60_000);
    expect(await verifying.verify(name)).toContain("image-signature:verified");
    pass(60_000);
    await expect(verifying.verify(name)).rejects.toMatchObject({ kind: "unavailable" });
    registry.override = undefined;
    pass(5_000);
    expect(await verifying.verify(name)).toContain("image-signature:verified");
  });

  test("makes room for others when it was used longest ago", async () => {
    const [first, second, third] = [await signed({}), await signed({}), await signed({})];
    const { verifying } = await scene({ maxImages: 2 });
    for (const { name } of [first, second]) await verifying.verify(name);
    expect(verifying.held(first.name)).toBeDefined();
    await verifying.verify(third.name);
    const held = [first, second, third].map(({ name }) => verifying.held(name) !== undefined);
    expect(held).toEqual([true, false, true]);
  });
});

describe("image signatures", () => {
  test("a signed image has SPIRE's selectors, with what its certificate and the transparency log say", async () => {
    const { name, made } = await signed({ at: LONG_AGO });
    const [only] = made;
    expect(only && (await (await verifier()).verify(name))).toEqual([
      "image-signature:verified",
      ...valuesOf(only as MadeLayer),
    ]);
  });

  test("of several signatures those that hold count", async () => {
    const { name, made } = await signed({ certificateLog: null }, {}, { subject: "mallory@example.org" });
    const selectors = await (await verifier()).verify(name);
    expect(selectors).toEqual(["image-signature:verified", ...valuesOf(made[1] as MadeLayer)]);
  });

  /** Each differs from an honest signature in one thing. */
  const forged: readonly [what: string, options: () => Promise<SignatureOptions> | SignatureOptions, reason: RegExp][] =
    [
      ["names another digest", () => ({ payload: named(OTHER_DIGEST) }), /signature of another image/],
      ["is of another type", () => ({ payload: typed("atomic container signature") }), /not of cosign's type/],
      [
        "was altered after it was signed",
        () => ({ altered: (payload) => Buffer.concat([payload, Buffer.from(" ")]) }),
        /about other content/,
      ],
      [
        "was logged before its certificate was made",
        () => ({ at: LONG_AGO, loggedAt: new Date("2024-05-01T09:59:59Z") }),
        /not yet valid/,
      ],
      [
        "was logged after its certificate expired",
        () => ({ at: LONG_AGO, loggedAt: new Date("2024-05-01T10:10:01Z") }),
        /has expired/,
      ],
      [
        "is of an authority that the trusted root does not have",
        async () => ({ authority: await newAuthority("other") }),
        /unknown authority/,
      ],
      [
        "has an authority's name and another key",
        async () => ({ certificate: { signedBy: (await newAuthority("other")).signer } }),
        /signature does not verify/,
      ],
      [
        "is by a certificate for TLS servers",
        () => ({ certificate: { extKeyUsage: [EXT_KEY_USAGE.serverAuth] } }),
        /not for signing code/,
      ],
      [
        "is by a certificate for nothing in particular",
        () => ({ certificate: { extKeyUsage: null } }),
        /not for signing code/,
      ],
      ["is of another issuer", () => ({ issuer: `${ISSUER}.evil.test` }), /not among allowed_identities/],
      ["is of another subject", () => ({ subject: `x${SUBJECT}` }), /not among allowed_identities/],
      [
        "is by a certificate that no log promised to publish",
        () => ({ certificateLog: null }),
        /holds no signed certificate timestamp/,
      ],
      [
        "is by a certificate promised by another log",
        () => ({ certificateLog: newLog() }),
        /SCT\) is of an unknown log/,
      ],
      [
        "is by a certificate whose promise is false",
        () => ({ certificateLog: { ...newLog(), id: sigstore.certificateLog.id } }),
        /SCT\) does not verify/,
      ],
      ["was logged by another log", () => ({ log: newLog() }), /unknown transparency log/],
      [
        "has a false promise of the log",
        () => ({ log: { ...newLog(), id: sigstore.rekor.id } }),
        /signed entry timestamp does not verify/,
      ],
      [
        "has an entry about other content",
        () => ({ entry: (body) => withHash(body, "00".repeat(32)) }),
        /about other content/,
      ],
      ["has an entry about another signature", () => ({ entry: withSignature }), /about another signature/],
      [
        "has an entry about another signer",
        async () => withSigner((await sigstore.signer()).pem),
        /about another signer/,
      ],
      [
        "has an entry of another kind",
        () => ({ entry: (body) => ({ ...body, kind: "helm" }) }),
        /of a kind that says nothing/,
      ],
      ["has an entry that says things twice", () => ({ annotations: twice }), /not JSON/],
      ["is by a certificate without an issuer", () => ({ certificate: { extensions: [] } }), /names no OIDC issuer/],
      ["is by a certificate without a subject", () => ({ certificate: { emailAddresses: [""] } }), /names no subject/],
      [
        "has no certificate",
        () => ({ annotations: without("dev.sigstore.cosign/certificate") }),
        /holds no certificate/,
      ],
      [
        "has no signature",
        () => ({ annotations: without("dev.cosignproject.cosign/signature") }),
        /signature is missing/,
      ],
      ["is not logged, and the log does not know it", () => ({ log: null }), /has no entry about it/],
    ];

  test.each(forged)("none when it %s", async (_what, options, reason) => {
    const { name } = await signed(await options());
    const refused = (await verifier()).verify(name);
    await expect(refused).rejects.toMatchObject({ kind: "denied", message: reason });
  });

  test("none when it is the whole signature of another image", async () => {
    const other = await signed({});
    const { name, digest } = newImage();
    publish(registry, { repository: REPOSITORY, digest, suffix: "sig" }, other.made);
    const attesting = await verifier();
    await expect(attesting.verify(name)).rejects.toMatchObject({
      kind: "denied",
      message: /signature of another image/,
    });
    expect(await attesting.verify(other.name)).toContain("image-signature:verified");
  });

  test("none without a signature", async () => {
    const refused = (await verifier()).verify(newImage().name);
    await expect(refused).rejects.toMatchObject({ kind: "denied", message: /it has no signature in its registry/ });
  });

  test("none by another key, with an honest certificate and everything else made for it", async () => {
    const { name } = await signed({ certificate: { publicKey: (await sigstore.signer()).certificate.publicKey } });
    await expect((await verifier()).verify(name)).rejects.toMatchObject({ message: /the signature does not verify/ });
  });
});

function named(digest: string) {
  return (payload: Record<string, unknown>) => ({
    ...payload,
    critical: { ...(payload["critical"] as object), image: { "docker-manifest-digest": digest } },
  });
}

function typed(type: string) {
  return (payload: Record<string, unknown>) => ({ ...payload, critical: { ...(payload["critical"] as object), type } });
}

type Body = Record<string, unknown>;

function withHash(body: Body, value: string): Body {
  return { ...body, spec: { ...(body["spec"] as object), data: { hash: { algorithm: "sha256", value } } } };
}

function withSignature(body: Body): Body {
  const spec = body["spec"] as { signature: object };
  return { ...body, spec: { ...spec, signature: { ...spec.signature, content: "AAAA" } } };
}

function withSigner(pem: string): SignatureOptions {
  const publicKey = { content: Buffer.from(pem).toString("base64") };
  return {
    entry: (body) => {
      const spec = body["spec"] as { signature: object };
      return { ...body, spec: { ...spec, signature: { ...spec.signature, publicKey } } };
    },
  };
}

function withTwoSignatures(body: Body): Body {
  const spec = body["spec"] as { signatures: readonly object[] };
  return { ...body, spec: { ...spec, signatures: [...spec.signatures, ...spec.signatures] } };
}

function twice(annotations: Record<string, string>): Record<string, string> {
  const bundle = annotations["dev.sigstore.cosign/bundle"] ?? "";
  return { ...annotations, "dev.sigstore.cosign/bundle": bundle.replace('"logIndex"', '"logIndex":1,"logIndex"') };
}

function without(name: string) {
  return ({ [name]: _gone, ...rest }: Record<string, string>): Record<string, string> => rest;
}

describe("what may be ignored", () => {
  test("ignore_sct takes certificates without timestamps, and with those of unknown logs", async () => {
    const attesting = await verifier({ ignoreSct: true });
    for (const certificateLog of [null, newLog()])
      expect(await attesting.verify((await signed({ certificateLog })).name)).toContain("image-signature:verified");
    const { name } = await signed({ certificateLog: null, authority: await newAuthority("other") });
    await expect(attesting.verify(name)).rejects.toMatchObject({ message: /unknown authority/ });
  });

  test("ignore_tlog takes signatures without an entry, has no selectors of one, and believes the certificate only while it is valid", async () => {
    const attesting = await verifier({ ignoreTlog: true });
    const now = systemClock.now();
    const { name, made } = await signed({ at: now, lifetimeMs: 3_600_000, log: null });
    expect(await attesting.verify(name)).toEqual([
      ...["image-signature:verified", `image-signature-subject:${SUBJECT}`, `image-signature-issuer:${ISSUER}`],
      `image-signature-value:${made[0]?.signature}`,
    ]);
    const expired = await signed({ at: LONG_AGO, log: null });
    await expect(attesting.verify(expired.name)).rejects.toMatchObject({ message: /has expired/ });
  });

  test("skipped images need no signature, get no selectors, and nobody is asked", async () => {
    const { name } = newImage();
    const before = registry.requests.length;
    expect(await (await verifier({ skippedImages: new Set([name]) })).verify(name)).toEqual([]);
    expect(registry.requests.length).toBe(before);
  });
});

describe("a trusted root", () => {
  type Listed = { publicKey: object }[];
  const ended = { start: "2020-01-01T00:00:00Z", end: "2024-04-30T00:00:00Z" };
  const withEnded = (list: string) => (root: Body) => ({
    ...root,
    [list]: (root[list] as Listed).map((log) => ({ ...log, publicKey: { ...log.publicKey, validFor: ended } })),
  });
  test.each<[what: string, change: (root: Body) => Body, message: RegExp]>([
    ["transparency log", withEnded("tlogs"), /unknown transparency log/],
    ["certificate log", withEnded("ctlogs"), /SCT\) is of an unknown log/],
    [
      "authority",
      (root) => ({
        ...root,
        certificateAuthorities: (root["certificateAuthorities"] as object[]).map((one) => ({
          ...one,
          validFor: ended,
        })),
      }),
      /no certificate authority of the trusted root was valid then/,
    ],
  ])("whose %s had ended is no longer believed for later", async (_what, change, message) => {
    const path = join(scope.use(await temporaryDirectory()).path, "root.json");
    await writeFile(path, JSON.stringify(change(sigstore.trustedRoot())));
    const attesting = await verifier({ trust: { type: "file", path } });
    const before = await signed({ at: new Date("2024-04-29T12:00:00Z") });
    expect(await attesting.verify(before.name)).toContain("image-signature:verified");
    const later = await signed({ at: LONG_AGO });
    await expect(attesting.verify(later.name)).rejects.toMatchObject({ kind: "denied", message });
  });
});

describe("Rekor", () => {
  test("is asked for the entry where the signature carries none, and is not believed without its promise", async () => {
    const { digest, name } = newImage();
    const layer = await sigstore.signature(digest, { at: LONG_AGO });
    const bare = { ...layer, annotations: without("dev.sigstore.cosign/bundle")(layer.annotations) };
    publish(registry, { repository: REPOSITORY, digest, suffix: "sig" }, [bare]);
    const entry = layer.entry;
    if (entry === undefined) throw new Error("no entry");
    const later = { ...entry, integratedTime: entry.integratedTime + 1 };
    sigstore.entries.push(later, entry);
    try {
      expect(await (await verifier()).verify(name)).toEqual(["image-signature:verified", ...valuesOf(layer)]);
      expect(sigstore.asked.at(-1)).toMatchObject({
        entries: [{ kind: "hashedrekord", spec: { signature: { content: layer.signature } } }],
      });
      sigstore.entries.pop();
      await expect((await verifier()).verify(name)).rejects.toMatchObject({ message: /timestamp does not verify/ });
    } finally {
      sigstore.entries.length = 0;
    }
  });

  test("that is away leaves the image unverified", async () => {
    const { name } = await signed({ log: null });
    const refused = (await verifier({ rekorUrl: "http://127.0.0.1:1" })).verify(name);
    await expect(refused).rejects.toMatchObject({ message: /could not ask the transparency log/ });
  });
});

describe("image attestations", () => {
  async function attested(...options: readonly AttestationOptions[]): Promise<string> {
    const { digest, name } = await signed({});
    const made = await Promise.all(options.map((each) => sigstore.attestation(digest, each)));
    publish(registry, { repository: REPOSITORY, digest, suffix: "att" }, made);
    return name;
  }

  test.each(["dsse", "intoto"] as const)("that hold are a selector, logged as %s", async (kind) => {
    const selectors = await (await verifier({ ignoreAttestations: false })).verify(await attested({ kind }));
    expect(selectors.slice(0, 2)).toEqual(["image-signature:verified", "image-attestations:verified"]);
    expect(selectors).toHaveLength(9);
  });

  const about = (digest: object) => (statement: Body) => ({ ...statement, subject: [{ name: "app", digest }] });
  test.each<[string, AttestationOptions, RegExp]>([
    ["are about another image", { payload: about({ sha256: "b".repeat(64) }) }, /attestation of another image/],
    ["are about an image by another kind of digest", { payload: about({ sha512: "b".repeat(128) }) }, /another image/],
    ["are by another subject", { subject: "mallory@example.org" }, /not among allowed_identities/],
    [
      "were altered",
      { altered: (envelope) => Buffer.from(envelope.toString().replace('"payload":"', '"payload":"AAAA')) },
      /other content/,
    ],
    ["hold no in-toto statement", { payloadType: "text/plain" }, /holds no in-toto statement/],
    ["are logged with two signatures", { entry: withTwoSignatures }, /has several signatures/],
    [
      "are logged as a signature",
      { entry: (body) => ({ ...body, kind: "hashedrekord" }) },
      /says nothing of an image's attestation/,
    ],
  ])("none, and no identity, when they %s", async (_what, options, message) => {
    const refused = (await verifier({ ignoreAttestations: false })).verify(await attested(options));
    await expect(refused).rejects.toMatchObject({ kind: "denied", message });
  });

  test("none by another key, with an honest certificate and everything else made for it", async () => {
    const { publicKey } = (await sigstore.signer()).certificate;
    const refused = (await verifier({ ignoreAttestations: false })).verify(
      await attested({ certificate: { publicKey } }),
    );
    await expect(refused).rejects.toMatchObject({ kind: "denied", message: /envelope's signature does not verify/ });
  });

  test("T-N5 with more signatures than anybody makes are not looked at", async () => {
    const attesting = await verifier({ ignoreAttestations: false, ignoreTlog: true });
    const now = systemClock.now();
    const withCopies = async (copies: number): Promise<string> => {
      const { digest, name } = await signed({ at: now, lifetimeMs: 3_600_000, log: null });
      const altered = (envelope: Buffer): Buffer => {
        const { signatures, ...rest } = JSON.parse(envelope.toString()) as { readonly signatures: readonly unknown[] };
        return Buffer.from(JSON.stringify({ ...rest, signatures: Array(copies).fill(signatures[0]) }));
      };
      const made = await sigstore.attestation(digest, { at: now, lifetimeMs: 3_600_000, log: null, altered });
      publish(registry, { repository: REPOSITORY, digest, suffix: "att" }, [made]);
      return name;
    };
    expect(await attesting.verify(await withCopies(10))).toContain("image-attestations:verified");
    await expect(attesting.verify(await withCopies(11))).rejects.toMatchObject({ message: /more than 10 signatures/ });
  });

  test("are needed unless they are ignored, as in SPIRE", async () => {
    const { name } = await signed({});
    const refused = (await verifier({ ignoreAttestations: false })).verify(name);
    await expect(refused).rejects.toMatchObject({ message: /it has no attestation in its registry/ });
    expect(await (await verifier()).verify(name)).toContain("image-signature:verified");
  });
});
