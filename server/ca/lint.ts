import type { Certificate } from "../../src/crypto/certificate.ts";
import type { CertificateTemplate } from "../../src/crypto/certificate-template.ts";
import { EXT_KEY_USAGE, EXTENSION, type KeyUsage } from "../../src/crypto/extensions.ts";
import { hexOf, subjectKeyId } from "../../src/crypto/key.ts";
import { encodeName } from "../../src/crypto/name.ts";
import { checkPublicKey } from "../../src/crypto/public-key.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { checkDnsNames } from "../../src/spiffe/dns-name.ts";
import {
  isAgentId,
  isMember,
  isReserved,
  pathOf,
  type SpiffeId,
  serverId,
  type TrustDomain,
  trustDomainId,
} from "../../src/spiffe/id.ts";

export type Role = "workload" | "agent" | "server" | "authority";

/** What the certificate is meant to be, apart from what the template says. */
export interface Intent {
  readonly role: Role;
  readonly id: SpiffeId;
  readonly trustDomain: TrustDomain;
  readonly now: Date;
  /** Undefined for a self-signed root. */
  readonly issuer: Pick<Certificate, "subject" | "subjectKeyId" | "notAfter" | "uris"> | undefined;
}

/** One rule of the profile. `broken` says what is wrong; undefined when the rule holds. */
interface Rule {
  /** Starts with the requirement that it keeps. */
  readonly name: string;
  readonly on: "leaf" | "ca" | "both";
  /** Who must act: `invalid` the caller, `internal` we. */
  readonly fault: "invalid" | "internal";
  readonly broken: (template: CertificateTemplate, intent: Intent) => string | undefined;
}

const LARGEST_SERIAL = 2n ** 128n - 1n;
const LEAF_USAGES: readonly KeyUsage[] = ["digitalSignature", "keyEncipherment", "keyAgreement"];
const LEAF_PURPOSES: readonly string[] = [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth];
const CA_USAGES: readonly KeyUsage[] = ["keyCertSign", "cRLSign"];

/** Every rule that a certificate keeps before it is signed. */
export const RULES: readonly Rule[] = [
  { name: "X509-01 one URI SAN, the registered ID", on: "leaf", fault: "internal", broken: wrongUri },
  {
    name: "X509-05 a leaf's ID has a path",
    on: "leaf",
    fault: "invalid",
    broken: (_, { id, trustDomain }) =>
      unless(pathOf(id) !== "", `"${id}" is not a workload in trust domain "${trustDomain}"; path is empty`),
  },
  { name: "T-S10 a reserved ID belongs to its role", on: "leaf", fault: "invalid", broken: wrongNamespace },
  {
    name: "X509-11 the ID is in the trust domain",
    on: "both",
    fault: "invalid",
    broken: (_, { id, trustDomain }) =>
      unless(isMember(id, trustDomain), `"${id}" is not a member of trust domain "${trustDomain}"`),
  },
  {
    name: "X509-10 X509-11 the signing certificate has no ID, or the trust domain's",
    on: "leaf",
    fault: "internal",
    broken: (_, { issuer, trustDomain }) =>
      unless(
        issuer === undefined || issuer.uris.every((uri) => uri === trustDomainId(trustDomain)),
        `signing certificate has the ID ${JSON.stringify(issuer?.uris)}`,
      ),
  },
  {
    name: "X509-15 a leaf has cA FALSE",
    on: "leaf",
    fault: "internal",
    broken: ({ kind, pathLength }) =>
      unless(kind === "leaf" && pathLength === undefined, "cA constraint must not be set"),
  },
  {
    name: "X509-17 key usage is present",
    on: "both",
    fault: "internal",
    broken: ({ keyUsage }) => unless(keyUsage.length > 0, "key usage is missing"),
  },
  {
    name: "X509-21 a leaf has digitalSignature",
    on: "leaf",
    fault: "internal",
    broken: ({ keyUsage }) => unless(keyUsage.includes("digitalSignature"), "digitalSignature key usage must be set"),
  },
  {
    name: "X509-23 a leaf never has keyCertSign or cRLSign",
    on: "leaf",
    fault: "internal",
    broken: ({ keyUsage }) =>
      unless(
        within(keyUsage, LEAF_USAGES),
        "only digitalSignature, keyEncipherment, and keyAgreement key usage can be set",
      ),
  },
  {
    name: "X509-27 a leaf has serverAuth and clientAuth",
    on: "leaf",
    fault: "internal",
    broken: ({ extKeyUsage }) =>
      unless(
        LEAF_PURPOSES.every((purpose) => extKeyUsage.includes(purpose)),
        "missing serverAuth or clientAuth extended key usage",
      ),
  },
  {
    name: "T-X7 a leaf has no other extended key usage, a signing certificate none",
    on: "both",
    fault: "internal",
    broken: ({ kind, extKeyUsage }) =>
      unless(
        within(extKeyUsage, kind === "leaf" ? LEAF_PURPOSES : []),
        `extended key usage ${JSON.stringify(extKeyUsage)} must not be set`,
      ),
  },
  {
    name: "X509-09 a signing certificate carries the trust domain's ID",
    on: "ca",
    fault: "internal",
    broken: wrongUri,
  },
  {
    name: "X509-10 a signing certificate's ID has no path",
    on: "ca",
    fault: "invalid",
    broken: (_, { id }) => unless(pathOf(id) === "", `"${id}" has a path`),
  },
  {
    name: "X509-14 a signing certificate has cA TRUE",
    on: "ca",
    fault: "internal",
    broken: ({ kind }) => unless(kind === "ca", "cA constraint is not set"),
  },
  {
    name: "X509-19 a signing certificate has keyCertSign",
    on: "ca",
    fault: "internal",
    broken: ({ keyUsage }) => unless(keyUsage.includes("keyCertSign"), "keyCertSign key usage must be set"),
  },
  {
    name: "X509-24 a signing certificate has only keyCertSign and cRLSign",
    on: "ca",
    fault: "internal",
    broken: ({ keyUsage }) => unless(within(keyUsage, CA_USAGES), "only keyCertSign and cRLSign key usage can be set"),
  },
  {
    name: "T-X6 the public key is not weak",
    on: "both",
    fault: "invalid",
    broken: ({ publicKey }) => refusalOf(() => checkPublicKey(publicKey)),
  },
  {
    name: "T-S5 DNS names are names",
    on: "both",
    fault: "invalid",
    broken: ({ dnsNames }) => refusalOf(() => checkDnsNames(dnsNames)),
  },
  {
    name: "RFC 5280 4.1.2.2 serial number",
    on: "both",
    fault: "internal",
    broken: ({ serialNumber }) =>
      unless(serialNumber >= 1n && serialNumber <= LARGEST_SERIAL, "serial number is not between 1 and 2^128-1"),
  },
  { name: "RFC 5280 4.1.2.4 issuer", on: "both", fault: "internal", broken: wrongIssuer },
  { name: "RFC 5280 4.1.2.5 validity", on: "both", fault: "internal", broken: wrongValidity },
  { name: "RFC 5280 4.2.1.1 key identifiers", on: "both", fault: "internal", broken: wrongKeyIds },
];

/** Throws, with the first rule that a template breaks, before anything is signed. */
export function lintTemplate(template: CertificateTemplate, intent: Intent): void {
  const kind = intent.role === "authority" ? "ca" : "leaf";
  for (const { name, on, fault, broken } of RULES) {
    const problem = on === "both" || on === kind ? broken(template, intent) : undefined;
    if (problem !== undefined)
      throw new Fault(fault, `refused to sign: ${problem} (${name})`, { code: "certificate-lint" });
  }
}

/** Throws when the bytes that came back are not what was asked for. */
export function lintCertificate(certificate: Certificate, template: CertificateTemplate): void {
  const wrong = Object.entries(differences(certificate, template)).find(([, differs]) => differs);
  if (wrong !== undefined)
    throw new Fault("internal", `signed certificate has a wrong ${wrong[0]}`, { code: "certificate-lint" });
}

function differences(certificate: Certificate, template: CertificateTemplate): Readonly<Record<string, boolean>> {
  const { criticalExtensionIds: critical, keyUsage = new Set(), extKeyUsage = [] } = certificate;
  const subject = template.subject instanceof Uint8Array ? template.subject : encodeName(template.subject);
  const anonymous = subject.length <= 2;
  return {
    "public key": Buffer.compare(certificate.publicKey, template.publicKey) !== 0,
    "serial number": certificate.serialNumber !== template.serialNumber.toString(),
    subject: Buffer.compare(certificate.subject, subject) !== 0,
    "URI SAN": !same(certificate.uris, template.uris),
    "DNS SAN": !same(certificate.dnsNames, template.dnsNames),
    "kind of SAN": certificate.emailAddresses.length + certificate.ipAddresses.length + certificate.otherNames > 0,
    "SAN criticality (X509-06)": anonymous && !critical.has(EXTENSION.subjectAltName),
    "key usage": !same([...keyUsage].sort(), [...template.keyUsage].sort()),
    "key usage criticality (X509-18)": !critical.has(EXTENSION.keyUsage),
    "extended key usage": !same(extKeyUsage, template.extKeyUsage),
    "basic constraint": certificate.isCa !== (template.kind === "ca") || certificate.pathLength !== template.pathLength,
    validity: +certificate.notBefore !== +template.notBefore || +certificate.notAfter !== +template.notAfter,
  };
}

function wrongUri({ uris }: CertificateTemplate, { id }: Intent): string | undefined {
  return unless(uris.length === 1 && uris[0] === id, `expected URI SAN "${id}" but got ${JSON.stringify(uris)}`);
}

function wrongNamespace(_: CertificateTemplate, { role, id, trustDomain }: Intent): string | undefined {
  switch (role) {
    case "workload":
      return unless(
        !isReserved(id),
        `"${id}" is not a workload in trust domain "${trustDomain}"; path is in the reserved namespace`,
      );
    case "agent":
      return unless(
        isAgentId(id),
        `"${id}" is not an agent in trust domain "${trustDomain}"; path is not in the agent namespace`,
      );
    case "server":
      return unless(id === serverId(trustDomain), `"${id}" is not the server of trust domain "${trustDomain}"`);
    case "authority":
      return undefined;
  }
}

function refusalOf(check: () => unknown): string | undefined {
  try {
    check();
    return undefined;
  } catch (error) {
    if (isFault(error, "invalid")) return error.message;
    throw error;
  }
}

function wrongIssuer({ issuer, subject }: CertificateTemplate, intent: Intent): string | undefined {
  const wanted = intent.issuer?.subject ?? nameOf(subject);
  return unless(Buffer.compare(nameOf(issuer), wanted) === 0, "issuer is not the signing certificate's subject");
}

function wrongValidity({ notBefore, notAfter }: CertificateTemplate, { issuer, now }: Intent): string | undefined {
  if (now < notBefore) return "not yet valid";
  if (notAfter <= now) return "lifetime is over before it begins";
  return unless(issuer === undefined || notAfter <= issuer.notAfter, "outlives its signing certificate");
}

function wrongKeyIds(
  { publicKey, subjectKeyId: own, authorityKeyId }: CertificateTemplate,
  { issuer }: Intent,
): string | undefined {
  if (hexOf(own) !== hexOf(subjectKeyId(publicKey))) return "subject key identifier is not that of the public key";
  const above = authorityKeyId === undefined ? undefined : hexOf(authorityKeyId);
  return unless(above === issuer?.subjectKeyId, "authority key identifier is not that of the signing certificate");
}

function nameOf(name: CertificateTemplate["subject"]): Uint8Array {
  return name instanceof Uint8Array ? name : encodeName(name);
}

function unless(holds: boolean, problem: string): string | undefined {
  return holds ? undefined : problem;
}

function within(usages: readonly string[], allowed: readonly string[]): boolean {
  return usages.every((usage) => allowed.includes(usage));
}

function same(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}
