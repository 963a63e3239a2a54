import { createHash, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { TAG } from "../../src/crypto/der.ts";
import { encode } from "../../src/crypto/der-writer.ts";
import { EXT_KEY_USAGE } from "../../src/crypto/extensions.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "./pki.ts";
import type { RegistryDouble } from "./registry.ts";

export const ISSUER = "https://token.issuer.test";
export const SUBJECT = "ci@example.org";
const FOUNDED = new Date("2021-01-01T00:00:00Z");
const SCT_LIST = "1.3.6.1.4.1.11129.2.4.2";
const IN_TOTO = "application/vnd.in-toto+json";

/** A log that signs: Rekor, or one of certificates. */
export interface LogKey {
  readonly key: KeyObject;
  readonly spki: Buffer;
  /** Hexadecimal SHA-256 of the key. */
  readonly id: string;
}

export interface SignerOptions {
  readonly issuer?: string;
  /** E-mail address, or URI. */
  readonly subject?: string;
  /** When the certificate is made; it is good for ten minutes. */
  readonly at?: Date;
  readonly lifetimeMs?: number;
  readonly authority?: TestCa;
  /** Log that promises to publish the certificate; null for none. */
  readonly certificateLog?: LogKey | null;
  readonly certificate?: CertificateOptions;
}

export interface SignatureOptions extends SignerOptions {
  /** Changes what is signed. */
  readonly payload?: (payload: Json) => Json;
  /** Changes the bytes after they were signed. */
  readonly altered?: (payload: Buffer) => Buffer;
  /** Log that takes the entry; null for none. */
  readonly log?: LogKey | null;
  /** When the entry is made. Default: a minute after the certificate. */
  readonly loggedAt?: Date;
  /** Changes the entry before the log promises to keep it. */
  readonly entry?: (body: Json) => Json;
  /** Changes annotations of the finished layer. */
  readonly annotations?: (made: Record<string, string>) => Record<string, string>;
}

type Json = Record<string, unknown>;

export interface AttestationOptions extends SignatureOptions {
  /** Of the transparency log's entry. */
  readonly kind?: "dsse" | "intoto";
  readonly payloadType?: string;
}

export interface MadeLayer {
  readonly payload: Buffer;
  readonly annotations: Record<string, string>;
  readonly entry: RekorEntry | undefined;
  readonly signature: string;
}

export interface RekorEntry {
  readonly body: string;
  readonly integratedTime: number;
  readonly logIndex: number;
  readonly logID: string;
  readonly promise: string;
}

/** A Sigstore deployment of its own: an authority with an intermediate as Fulcio's, a certificate log and Rekor. */
export class SigstoreDouble implements AsyncDisposable {
  readonly root: TestCa;
  readonly fulcio: TestCa;
  readonly certificateLog = newLog();
  readonly rekor = newLog();
  /** What Rekor answers to look-ups; what was asked. */
  readonly entries: RekorEntry[] = [];
  readonly asked: unknown[] = [];
  readonly #server: Server;
  #index = 100;

  private constructor(root: TestCa, fulcio: TestCa) {
    this.root = root;
    this.fulcio = fulcio;
    this.#server = createServer((request, response) => {
      void (async () => {
        const chunks: Buffer[] = [];
        for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
        const isLookUp = request.method === "POST" && request.url === "/api/v1/log/entries/retrieve";
        if (!isLookUp) return response.writeHead(404).end('{"code":404,"message":"path not found"}');
        this.asked.push(JSON.parse(Buffer.concat(chunks).toString()));
        const found = this.entries.map(({ promise, ...entry }) => ({
          [createHash("sha256").update(entry.body).digest("hex")]: {
            ...entry,
            verification: { signedEntryTimestamp: promise },
          },
        }));
        return response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(found));
      })();
    });
  }

  static async open(): Promise<SigstoreDouble> {
    const root = await newAuthority("root");
    const fulcio = await root.intermediate({
      ...{ uris: [], pathLength: 0, extKeyUsage: [EXT_KEY_USAGE.codeSigning], notBefore: FOUNDED },
      subject: { organization: ["sigstore.test"], commonName: "intermediate" },
    });
    const sigstore = new SigstoreDouble(root, fulcio);
    sigstore.#server.listen(0, "127.0.0.1");
    await once(sigstore.#server, "listening");
    return sigstore;
  }

  get rekorUrl(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** `trusted_root.json`. */
  trustedRoot(): Json {
    const validFor = { start: "2020-01-01T00:00:00.000Z" };
    const log = ({ spki, id }: LogKey): object => ({
      ...{
        baseUrl: "https://log.test",
        hashAlgorithm: "SHA2_256",
        logId: { keyId: Buffer.from(id, "hex").toString("base64") },
      },
      publicKey: { rawBytes: spki.toString("base64"), keyDetails: "PKIX_ECDSA_P256_SHA_256", validFor },
    });
    const certificates = [this.fulcio, this.root].map(({ der }) => ({ rawBytes: Buffer.from(der).toString("base64") }));
    return {
      mediaType: "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
      tlogs: [log(this.rekor)],
      certificateAuthorities: [{ subject: {}, uri: "https://fulcio.test", certChain: { certificates }, validFor }],
      ctlogs: [log(this.certificateLog)],
    };
  }

  /** A certificate as Fulcio gives for an OpenID token. */
  async signer(options: SignerOptions = {}): Promise<Issued> {
    const {
      issuer = ISSUER,
      subject = SUBJECT,
      authority = this.fulcio,
      certificateLog = this.certificateLog,
    } = options;
    const at = options.at ?? new Date(systemClock.now().getTime() - 3_600_000);
    const names = subject.includes("://") ? { uris: [subject] } : { uris: [], emailAddresses: [subject] };
    const own: CertificateOptions = {
      ...{ ...names, subject: {}, sanCritical: true, basicConstraints: null, extKeyUsage: [EXT_KEY_USAGE.codeSigning] },
      ...{
        notBefore: at,
        notAfter: new Date(at.getTime() + (options.lifetimeMs ?? 600_000)),
        serialNumber: BigInt(Date.now()),
      },
      extensions: [
        { oid: "1.3.6.1.4.1.57264.1.1", value: Buffer.from(issuer) },
        { oid: "1.3.6.1.4.1.57264.1.8", value: encode(TAG.utf8String, Buffer.from(issuer)) },
      ],
      ...options.certificate,
    };
    const promised = await authority.issue(own);
    if (certificateLog === null) return promised;
    const value = timestampList(promised, authority, { log: certificateLog, at });
    const extensions = [...(own.extensions ?? []), { oid: SCT_LIST, value }];
    return await authority.issue({ ...own, signer: promised.signer, extensions });
  }

  /** The layer that `cosign sign` makes for an image. */
  async signature(digest: string, options: SignatureOptions = {}): Promise<MadeLayer> {
    const claim = {
      critical: {
        identity: { "docker-reference": "registry.test/app" },
        image: { "docker-manifest-digest": digest },
        type: "cosign container image signature",
      },
      optional: null,
    };
    const payload = Buffer.from(JSON.stringify(options.payload?.(structuredClone(claim)) ?? claim));
    const signer = await this.signer(options);
    const signature = sign("sha256", payload, signer.signer.privateKey).toString("base64");
    const body = {
      ...{ apiVersion: "0.0.1", kind: "hashedrekord" },
      spec: {
        data: { hash: { algorithm: "sha256", value: sha256(payload) } },
        signature: { content: signature, publicKey: { content: pemOf(signer) } },
      },
    };
    return this.#layer(options, { payload, signature, signer, body });
  }

  /** The layer that `cosign attest` makes for an image. */
  async attestation(digest: string, options: AttestationOptions = {}): Promise<MadeLayer> {
    const statement = {
      ...{ _type: "https://in-toto.io/Statement/v0.1", predicateType: "https://slsa.dev/provenance/v0.2" },
      ...{ subject: [{ name: "registry.test/app", digest: { sha256: digest.replace("sha256:", "") } }], predicate: {} },
    };
    const content = Buffer.from(JSON.stringify(options.payload?.(structuredClone(statement)) ?? statement));
    const signer = await this.signer(options);
    const { payloadType = IN_TOTO } = options;
    const signed = Buffer.concat([
      Buffer.from(`DSSEv1 ${payloadType.length} ${payloadType} ${content.length} `),
      content,
    ]);
    const sig = sign("sha256", signed, signer.signer.privateKey).toString("base64");
    const envelope = { payloadType, payload: content.toString("base64"), signatures: [{ keyid: "", sig }] };
    const payload = Buffer.from(JSON.stringify(envelope));
    const hash = { algorithm: "sha256", value: sha256(payload) };
    const spec =
      options.kind === "intoto"
        ? { content: { hash }, publicKey: pemOf(signer) }
        : {
            envelopeHash: hash,
            payloadHash: { algorithm: "sha256", value: sha256(content) },
            signatures: [{ signature: sig, verifier: pemOf(signer) }],
          };
    const body = { apiVersion: "0.0.1", kind: options.kind ?? "dsse", spec };
    return this.#layer(options, { payload, signature: "", signer, body });
  }

  #layer(
    options: SignatureOptions,
    made: { payload: Buffer; signature: string; signer: Issued; body: Json },
  ): MadeLayer {
    const { log = this.rekor, loggedAt } = options;
    const at = loggedAt ?? new Date(made.signer.certificate.notBefore.getTime() + 60_000);
    const body = options.entry?.(structuredClone(made.body)) ?? made.body;
    const entry = log === null ? undefined : this.#entry(log, body, at);
    const bundle = entry && {
      SignedEntryTimestamp: entry.promise,
      Payload: { body: entry.body, integratedTime: entry.integratedTime, logIndex: entry.logIndex, logID: entry.logID },
    };
    const annotations = {
      "dev.cosignproject.cosign/signature": made.signature,
      "dev.sigstore.cosign/certificate": encodePem("CERTIFICATE", made.signer.der),
      "dev.sigstore.cosign/chain": [this.fulcio, this.root].map(({ der }) => encodePem("CERTIFICATE", der)).join(""),
      ...(bundle && { "dev.sigstore.cosign/bundle": JSON.stringify(bundle) }),
    };
    return {
      payload: options.altered?.(made.payload) ?? made.payload,
      annotations: options.annotations?.(annotations) ?? annotations,
      ...{ entry, signature: made.signature },
    };
  }

  #entry(log: LogKey, content: Json, at: Date): RekorEntry {
    this.#index += 1;
    const body = Buffer.from(JSON.stringify(content)).toString("base64");
    const fields = { body, integratedTime: Math.floor(at.getTime() / 1000), logID: log.id, logIndex: this.#index };
    const promise = sign("sha256", Buffer.from(JSON.stringify(fields)), log.key).toString("base64");
    return { ...fields, promise };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}

export async function newAuthority(name: string): Promise<TestCa> {
  const subject = { organization: ["sigstore.test"], commonName: name };
  return await createCa({ uris: [], subject, notBefore: FOUNDED });
}

export function newLog(): LogKey {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const spki = publicKey.export({ format: "der", type: "spki" });
  return { key: privateKey, spki, id: sha256(spki) };
}

/** Puts layers beside an image as cosign does. */
export function publish(
  registry: RegistryDouble,
  {
    repository,
    digest,
    suffix,
  }: { readonly repository: string; readonly digest: string; readonly suffix: "sig" | "att" },
  made: readonly MadeLayer[],
): void {
  const mediaType =
    suffix === "sig" ? "application/vnd.dev.cosign.simplesigning.v1+json" : "application/vnd.dsse.envelope.v1+json";
  const layers = made.map(({ payload, annotations }) => registry.blob(payload, { mediaType, annotations }));
  registry.manifest(repository, `${digest.replace(":", "-")}.${suffix}`, { layers });
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function pemOf({ der }: Issued): string {
  return Buffer.from(encodePem("CERTIFICATE", der)).toString("base64");
}

/** A log's promise for the certificate as it was before it held the promise. RFC 6962, sections 3.2 and 3.3. */
function timestampList(
  promised: Issued,
  authority: TestCa,
  { log, at }: { readonly log: LogKey; readonly at: Date },
): Buffer {
  const time = Buffer.alloc(8);
  time.writeBigUInt64BE(BigInt(at.getTime()));
  const tbs = Buffer.from(promised.certificate.signed);
  const issuerKeyHash = createHash("sha256").update(authority.certificate.publicKey).digest();
  const length = Buffer.alloc(3);
  length.writeUIntBE(tbs.length, 0, 3);
  const none = Buffer.from([0, 0]);
  const signed = Buffer.concat([Buffer.from([0, 0]), time, Buffer.from([0, 1]), issuerKeyHash, length, tbs, none]);
  const signature = sign("sha256", signed, log.key);
  const timestamp = Buffer.concat([
    ...[Buffer.from([0]), Buffer.from(log.id, "hex"), time, none, Buffer.from([4, 3])],
    ...[short(signature.length), signature],
  ]);
  const list = Buffer.concat([short(timestamp.length), timestamp]);
  return encode(TAG.octetString, short(list.length), list);
}

function short(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}
