import { randomBytes } from "node:crypto";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { type CertificateTemplate, signCertificate } from "../../src/crypto/certificate-template.ts";
import type { Signer } from "../../src/crypto/key.ts";
import { type DistinguishedName, parseName } from "../../src/crypto/name.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import { type SpiffeId, serverId, type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import { type Intent, lintCertificate, lintTemplate, type Role } from "./lint.ts";
import type { X509SigningAuthority } from "./slots.ts";
import {
  downstreamTemplate,
  type LeafRequest,
  leafTemplate,
  type RootRequest,
  rootTemplate,
  signedTemplate,
} from "./template.ts";
import { type Turn, Turns } from "./turns.ts";

/** A certificate as issued. */
export interface X509Svid {
  readonly id: SpiffeId;
  /** DER, leaf first; a self-signed root is left out. */
  readonly chain: readonly Uint8Array[];
  /** Decimal. */
  readonly serialNumber: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** Hex subject key identifier of the signing certificate. */
  readonly authorityId: string;
  /** Why the life is shorter than asked for; absent when it is not. */
  readonly ttlReason?: string;
}

export interface IssuerOptions {
  readonly trustDomain: TrustDomain;
  /** The authority that may sign at this moment; throws when there is none. */
  readonly authorities: { signing(): X509SigningAuthority };
  readonly defaultTtlSeconds: number;
  readonly agentTtlSeconds: number;
  /** Of a downstream authority that names no lifetime. */
  readonly caTtlSeconds: number;
  /** The turns of everything that is signed, tokens too. Default: our own. */
  readonly turns?: Turns;
  /** Told of each signature. */
  readonly signed?: (what: "x509_svid" | "x509_ca_svid") => void;
  readonly clock: Clock;
}

export interface MintRequest {
  readonly id: SpiffeId;
  readonly publicKey: Uint8Array;
  /** 0 means the default. */
  readonly ttlSeconds: number;
  readonly dnsNames: readonly string[];
  /** A Name in DER is read for the parts that we know; none of them means the default subject. */
  readonly subject: DistinguishedName | Uint8Array;
}

/**
 * The one door to the X.509 authority's key: template, lint, sign, look again. Every method takes the public key and
 * what the server itself decided; nothing else of a CSR gets in (T-C1, T-C2).
 */
export class Issuer {
  readonly #options: IssuerOptions;
  readonly #turns: Turns;

  constructor(options: IssuerOptions) {
    this.#options = options;
    this.#turns = options.turns ?? new Turns(options.clock);
  }

  issueWorkload(request: { readonly entry: Entry; readonly publicKey: Uint8Array }, turn?: Turn): Promise<X509Svid> {
    const { entry, publicKey } = request;
    const ttlSeconds = this.#ttl(entry.x509SvidTtl);
    return this.#issue("workload", { id: entry.spiffeId, publicKey, ttlSeconds, dnsNames: entry.dnsNames }, turn);
  }

  issueAgent(request: { readonly id: SpiffeId; readonly publicKey: Uint8Array }, turn?: Turn): Promise<X509Svid> {
    return this.#issue("agent", { ...request, ttlSeconds: this.#options.agentTtlSeconds }, turn);
  }

  issueServer(request: { readonly publicKey: Uint8Array }): Promise<X509Svid> {
    const { trustDomain, defaultTtlSeconds } = this.#options;
    return this.#issue("server", {
      id: serverId(trustDomain),
      publicKey: request.publicKey,
      ttlSeconds: defaultTtlSeconds,
    });
  }

  /** For an administrator, who chooses ID, names and subject. Throws `invalid` for an ID that no workload can have. */
  mint(request: MintRequest, turn?: Turn): Promise<X509Svid> {
    const { id, publicKey, dnsNames } = request;
    const subject = request.subject instanceof Uint8Array ? parseName(request.subject) : request.subject;
    return this.#issue(
      "workload",
      { id, publicKey, dnsNames, subject, ttlSeconds: this.#ttl(request.ttlSeconds) },
      turn,
    );
  }

  /** A signing certificate for a server below this one. 0 means the lifetime of our own. */
  issueDownstream(
    request: { readonly publicKey: Uint8Array; readonly ttlSeconds: number },
    turn?: Turn,
  ): Promise<X509Svid> {
    const { trustDomain, caTtlSeconds } = this.#options;
    const ttlSeconds = request.ttlSeconds > 0 ? request.ttlSeconds : caTtlSeconds;
    const wanted = { id: trustDomainId(trustDomain), publicKey: request.publicKey, ttlSeconds };
    return this.#sign("authority", wanted, { templateOf: downstreamTemplate, turn });
  }

  #ttl(seconds: number): number {
    return seconds > 0 ? seconds : this.#options.defaultTtlSeconds;
  }

  #issue(role: Role, request: LeafRequest, turn?: Turn): Promise<X509Svid> {
    return this.#sign(role, request, { templateOf: leafTemplate, turn });
  }

  #sign(
    role: Role,
    request: LeafRequest,
    { templateOf, turn }: { readonly templateOf: typeof leafTemplate; readonly turn: Turn | undefined },
  ): Promise<X509Svid> {
    return this.#turns.take(async () => {
      const authority = this.#options.authorities.signing();
      const now = this.#options.clock.now();
      const template = templateOf(request, authority, { now, serialNumber: randomSerial() });
      const intent = {
        role,
        id: request.id,
        trustDomain: this.#options.trustDomain,
        now,
        issuer: authority.certificate,
      };
      const { raw, serialNumber, notBefore, notAfter } = await sign(template, authority.key, intent);
      this.#options.signed?.(role === "authority" ? "x509_ca_svid" : "x509_svid");
      const chain = [raw, ...above(authority)];
      const made = { id: request.id, chain, serialNumber, notBefore, notAfter, authorityId: authority.id };
      const asked = Math.floor((now.getTime() + request.ttlSeconds * 1000) / 1000) * 1000;
      return asked > notAfter.getTime() ? { ...made, ttlReason: CUT_SHORT } : made;
    }, turn);
  }
}

const CUT_SHORT = "the signing authority ends then";

/** The certificate of a new authority, signed by its own key. */
export function issueSelfSigned(
  request: Omit<RootRequest, "publicKey"> & { readonly key: Signer; readonly now: Date },
): Promise<Certificate> {
  const { key, now, trustDomain } = request;
  const template = rootTemplate({ ...request, publicKey: key.publicKey }, { now, serialNumber: randomSerial() });
  return sign(template, key, {
    role: "authority",
    id: trustDomainId(trustDomain),
    trustDomain,
    now,
    issuer: undefined,
  });
}

/** A signing certificate below one whose key is at hand, for an authority in files. */
export function issueBelow(request: BelowRequest): Promise<Certificate> {
  const { trustDomain, key, issuer, now } = request;
  const id = trustDomainId(trustDomain);
  const template = signedTemplate({ ...request, id }, issuer, { now, serialNumber: randomSerial() });
  return sign(template, key, { role: "authority", id, trustDomain, now, issuer });
}

export interface BelowRequest extends RootRequest {
  readonly key: Signer;
  readonly issuer: Certificate;
  readonly now: Date;
}

async function sign(template: CertificateTemplate, key: Signer, intent: Intent): Promise<Certificate> {
  lintTemplate(template, intent);
  const certificate = parseCertificate(await signCertificate(template, key));
  lintCertificate(certificate, template);
  return certificate;
}

/** What a leaf is sent with: the signing certificates below the root. */
function above({ certificate, intermediates, upstreamAuthorityId }: X509SigningAuthority): readonly Uint8Array[] {
  return upstreamAuthorityId === "" ? [] : [certificate.raw, ...intermediates];
}

/** Uniform in 1 to 2^128-1. */
function randomSerial(): bigint {
  for (;;) {
    const serial = BigInt(`0x${randomBytes(16).toString("hex")}`);
    if (serial > 0n) return serial;
  }
}
