import { parseCertificate } from "../../src/crypto/certificate.ts";
import { decodePem, encodePem } from "../../src/crypto/pem.ts";
import { bundleFromProto, bundleToProto } from "../../src/rpc/convert.ts";
import type { Bundle, Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { encodeBundleDocument, parseBundleDocument } from "../../src/spiffe/bundle.ts";
import { parseTrustDomainOrId } from "../../src/spiffe/id.ts";

export const BUNDLE_FORMATS = ["pem", "spiffe"] as const;

export type BundleFormat = (typeof BUNDLE_FORMATS)[number];

/** In any case; nothing is `pem`. Throws `invalid`. */
export function bundleFormatFrom(word: string): BundleFormat {
  const format = BUNDLE_FORMATS.find((known) => known === (word.toLowerCase() || "pem"));
  if (format !== undefined) return format;
  throw new Fault("invalid", `invalid format: ${JSON.stringify(word)}`, {
    code: "bundle-format",
    hint: "choose pem or spiffe",
  });
}

/** SPIRE's commands leave out a sequence number of 0. */
const NO_SEQUENCE = /,\n {4}"spiffe_sequence": 0(?=[,\n])/;

const TEXTS: Readonly<Record<BundleFormat, (bundle: Bundle__Output) => string>> = {
  pem: ({ x509_authorities }) => x509_authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join(""),
  spiffe: (bundle) => `${encodeBundleDocument(bundleFromProto(bundle)).replace(NO_SEQUENCE, "")}\n`,
};

export function bundleText(bundle: Bundle__Output, format: BundleFormat): string {
  return TEXTS[format](bundle);
}

interface BundleData {
  readonly text: string;
  readonly format: BundleFormat;
  /** Name or SPIFFE ID of the trust domain that the bundle is for. */
  readonly id: string;
}

/** The bundle as it is sent. Throws `invalid`. */
export function bundleFromData({ text, format, id }: BundleData): Bundle {
  if (format === "pem") return { trust_domain: id, x509_authorities: certificatesFromPem(text) };
  const trustDomain = parseTrustDomainOrId(id);
  try {
    return bundleToProto(parseBundleDocument(trustDomain, text));
  } catch (error) {
    throw unreadable(error, "unable to parse to spiffe bundle", "was it meant to be read with the format pem?");
  }
}

function certificatesFromPem(text: string): { readonly asn1: Buffer }[] {
  try {
    const blocks = decodePem(text, "CERTIFICATE");
    if (blocks.length === 0) throw new Fault("invalid", "no PEM blocks");
    return blocks.map((der) => ({ asn1: Buffer.from(parseCertificate(der).raw) }));
  } catch (error) {
    throw unreadable(error, "unable to parse bundle data", "was it meant to be read with the format spiffe?");
  }
}

function unreadable(cause: unknown, what: string, hint: string): Fault {
  return new Fault("invalid", `${what}: ${messageOf(cause)}`, { code: "bundle-malformed", hint, cause });
}
