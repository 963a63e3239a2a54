import { createPrivateKey } from "node:crypto";
import { readFile } from "node:fs/promises";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { verifyChain } from "../../../src/crypto/chain.ts";
import { parseCertificateRequest, verifyCertificateRequest } from "../../../src/crypto/csr.ts";
import { type LocalSigner, localSigner } from "../../../src/crypto/key.ts";
import { parseName } from "../../../src/crypto/name.ts";
import { decodePem } from "../../../src/crypto/pem.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { formatRoundDuration } from "../../../src/runtime/duration.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import type { TrustDomain } from "../../../src/spiffe/id.ts";
import { issueBelow } from "../issue.ts";
import type { UpstreamAuthority } from "../upstream.ts";

export interface DiskUpstreamOptions {
  readonly certPath: string;
  readonly keyPath: string;
  /** Needed unless the certificate is self-signed. */
  readonly bundlePath: string | undefined;
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly log: Log;
}

interface Loaded {
  readonly signer: LocalSigner;
  readonly certificate: Certificate;
  /** Sent along: the certificate and those above it, unless it is the root itself. */
  readonly chain: readonly Certificate[];
  readonly roots: readonly Certificate[];
}

/**
 * An authority in files, read anew for every request: what was replaced meanwhile is used, and when it is no good what
 * was read before is. Throws `invalid` when the files were never good.
 */
export async function openDiskUpstream(options: DiskUpstreamOptions): Promise<UpstreamAuthority> {
  let loaded = await load(options);
  const reload = async (): Promise<Loaded> => {
    try {
      loaded = await load(options);
    } catch (error) {
      options.log.error("Could not reload the upstream CA; the one from before is used", { error: Fault.from(error) });
    }
    return loaded;
  };
  return {
    name: "disk",
    async mintX509CA({ csr: der, ttlSeconds }) {
      const { signer, certificate, chain, roots } = await reload();
      const csr = parseCertificateRequest(der);
      await verifyCertificateRequest(csr);
      const { publicKey, subject } = csr;
      const { trustDomain, clock } = options;
      const wanted = { trustDomain, publicKey, ttlSeconds, subject: parseName(subject) };
      const ca = await issueBelow({ ...wanted, key: signer, issuer: certificate, now: clock.now() });
      return {
        chain: [ca.raw, ...chain.map(({ raw }) => raw)],
        roots: roots.map(({ raw }) => ({ asn1: raw, tainted: false })),
      };
    },
    publishToken: async () => undefined,
    bundles: () => undefined,
    async [Symbol.asyncDispose]() {},
  };
}

async function load({ certPath, keyPath, bundlePath, clock }: DiskUpstreamOptions): Promise<Loaded> {
  const signer = await within("key", async () => localSigner(createPrivateKey(await readFile(keyPath))));
  const certificates = await within("cert", async () => certificatesIn(await readFile(certPath, "utf8")));
  const [certificate] = certificates;
  if (certificate === undefined) throw unusable("cert: no certificate in the file");
  if (bundlePath === undefined && certificates.length > 1)
    throw unusable("with no bundle_file_path configured only self-signed CAs are supported");
  const roots =
    bundlePath === undefined
      ? certificates
      : await within("bundle", async () => certificatesIn(await readFile(bundlePath, "utf8")));
  if (Buffer.compare(certificate.publicKey, signer.publicKey) !== 0)
    throw unusable("certificate and private key do not match");
  checkTime(certificate, clock.now());
  const isRoot = roots.some(({ raw }) => Buffer.compare(raw, certificate.raw) === 0);
  if (isRoot && Buffer.compare(certificate.issuer, certificate.subject) === 0)
    return { signer, certificate, chain: [], roots };
  try {
    verifyChain({ chain: certificates, roots, at: clock.now() });
  } catch (error) {
    throw unusable(
      `certificate cannot be validated with the provided bundle or is not self-signed: ${Fault.from(error).message}`,
    );
  }
  return { signer, certificate, chain: isRoot ? [] : certificates, roots };
}

/** A clock that is wrong here, or was where the certificate was made, shows in it first. */
function checkTime({ notBefore, notAfter }: Certificate, now: Date): void {
  const ms = now.getTime();
  const [early, late] = [notBefore.getTime() - ms, ms - notAfter.getTime()];
  if (early > 0) throw unusable(`certificate starts ${at(notBefore)}, and it is ${at(now)}: ${span(early)} too early`);
  if (late > 0) throw unusable(`certificate ended ${at(notAfter)}, and it is ${at(now)}: ${span(late)} too late`);
}

function at(time: Date): string {
  return time.toISOString().replace(/\.\d+Z$/, "Z");
}

/** Of a second at least. */
function span(ms: number): string {
  return formatRoundDuration(Math.max(ms, 1000));
}

function certificatesIn(pem: string): readonly Certificate[] {
  return decodePem(pem, "CERTIFICATE").map(parseCertificate);
}

/** What a file holds never gets into a message. */
async function within<T>(what: "key" | "cert" | "bundle", read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    throw unusable(
      what === "key" ? "the key file can't be read or holds no key that we know" : `${what}: ${messageOf(error)}`,
    );
  }
}

function unusable(reason: string): Fault {
  return new Fault("invalid", `unable to load upstream CA: ${reason}`, {
    code: "upstream-files",
    hint: "see cert_file_path, key_file_path and bundle_file_path of UpstreamAuthority disk, and compare the clock",
  });
}
