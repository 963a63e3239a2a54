import { isUtf8 } from "node:buffer";
import type { KeyObject } from "node:crypto";
import type { Certificate } from "../../../src/crypto/certificate.ts";
import { verifyChains } from "../../../src/crypto/chain.ts";
import { contextTag, DerReader, readOid, readOnly, TAG } from "../../../src/crypto/der.ts";
import { EXT_KEY_USAGE, EXTENSION } from "../../../src/crypto/extensions.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import { checkCertificateTimestamps } from "./certificate-log.ts";
import { extensionValue } from "./extensions.ts";
import { isValidAt, type TrustedRoot } from "./trusted-root.ts";

/** Who signed, as an authority of the trusted root vouches for. */
export interface Signer {
  readonly key: KeyObject;
  /** Of the OpenID token that the certificate was given for. */
  readonly issuer: string;
  /** Never empty. */
  readonly subjects: readonly string[];
}

export interface SignerQuestion {
  readonly certificate: Certificate;
  /** When it signed. */
  readonly at: Date;
  readonly trust: TrustedRoot;
  /** Whether the certificate need not be promised to a certificate log. */
  readonly ignoreSct: boolean;
}

/** Fulcio's extensions: the issuer as UTF8String, and as bare text before that. */
const ISSUER = "1.3.6.1.4.1.57264.1.8";
const OLD_ISSUER = "1.3.6.1.4.1.57264.1.1";
const USER_NAME = "1.3.6.1.4.1.57264.1.7";
const OTHER_NAME = contextTag(0, true);

/** Throws `denied` unless the certificate was good for signing at that time and by these roots. */
export function verifySigner({ certificate, at, trust, ignoreSct }: SignerQuestion): Signer {
  const path = pathOf(certificate, at, trust);
  if (!ignoreSct) checkCertificateTimestamps(certificate, path[1] ?? certificate, trust.certificateLogs);
  const issuer = issuerOf(certificate);
  const subjects = subjectsOf(certificate);
  if (issuer === "") throw denied("the signer's certificate names no OIDC issuer");
  if (subjects.length === 0) throw denied("the signer's certificate names no subject");
  return { key: certificate.key(), issuer, subjects };
}

/** From the signer's certificate to a root, every one of them for signing code. */
function pathOf(certificate: Certificate, at: Date, { authorities }: TrustedRoot): readonly Certificate[] {
  let failure = "no certificate authority of the trusted root was valid then";
  for (const { root, intermediates } of authorities.filter((authority) => isValidAt(authority, at))) {
    try {
      const paths = verifyChains({ chain: [certificate, ...intermediates], roots: [root], at });
      const path = paths.find((each) => each.every(maySignCode));
      if (path !== undefined && certificate.extKeyUsage !== undefined) return path;
      failure = "the certificate is not for signing code";
    } catch (error) {
      failure = messageOf(error);
    }
  }
  throw denied(`the signer's certificate cannot be believed for ${at.toISOString()}: ${failure}`);
}

function maySignCode({ extKeyUsage }: Certificate): boolean {
  return (
    extKeyUsage === undefined ||
    extKeyUsage.some((use) => use === EXT_KEY_USAGE.codeSigning || use === EXT_KEY_USAGE.any)
  );
}

function issuerOf(certificate: Certificate): string {
  const value = extensionValue(certificate, ISSUER);
  if (value === undefined) return textOf(extensionValue(certificate, OLD_ISSUER) ?? Buffer.alloc(0));
  const reader = new DerReader(value);
  const issuer = textOf(reader.read(TAG.utf8String).body);
  reader.end();
  return issuer;
}

/** In the order of SPIRE's; the first is the one that the selector shows. */
function subjectsOf(certificate: Certificate): readonly string[] {
  const { dnsNames, emailAddresses, ipAddresses, uris } = certificate;
  const ips = ipAddresses.map(ipText);
  return [...dnsNames, ...emailAddresses, ...ips, ...uris, ...userNames(certificate)].filter((name) => name !== "");
}

/** Names of kind `otherName`, by which Fulcio tells users without e-mail addresses. */
function userNames(certificate: Certificate): readonly string[] {
  const names = extensionValue(certificate, EXTENSION.subjectAltName);
  if (names === undefined) return [];
  return [...readOnly(names).rest()].flatMap(({ tag, body }) => (tag === OTHER_NAME ? userName(body) : []));
}

function userName(otherName: Uint8Array): readonly string[] {
  const reader = new DerReader(otherName);
  if (readOid(reader.read(TAG.oid)) !== USER_NAME) return [];
  const value = reader.enter(contextTag(0, true));
  return [textOf(value.read(TAG.utf8String).body)];
}

/** As Go prints addresses. */
function ipText(octets: Uint8Array): string {
  if (octets.length === 4) return octets.join(".");
  const hex = Buffer.from(octets).toString("hex");
  return new URL(`http://[${hex.match(/.{4}/g)?.join(":")}]`).hostname.slice(1, -1);
}

/** Throws `denied` for what is no UTF-8, so that no two names look the same. */
function textOf(bytes: Uint8Array): string {
  if (!isUtf8(bytes)) throw denied("a name in the signer's certificate is not UTF-8");
  return Buffer.from(bytes).toString("utf8");
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "image-signer" });
}
