import { createHash } from "node:crypto";
import { type Certificate, parseCertificate } from "../crypto/certificate.ts";
import { jwsHolds, jwsSigner, parseJws, signJws } from "../crypto/jws.ts";
import type { Signer } from "../crypto/key.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import { Fault } from "../runtime/fault.ts";
import type { Bundle } from "./bundle.ts";
import { type TrustDomain, trustDomainId } from "./id.ts";

/**
 * What an X.509 authority says of the bundle that comes after it: the way back for whoever knows that authority and none
 * of the later ones. A chain of them is followed from an authority that is trusted to the present ones.
 *
 * Why it may be believed: only the holder of the authority's key can make it, and that holder could have signed for
 * anybody in the trust domain as long as the authority was trusted. The signature is over a text that begins with a
 * brace in base64url, so it is no certificate and no request for one, and over a `typ` that no token has. It names its
 * trust domain, so that a key that serves two cannot carry one's word to the other. Sequence numbers only grow, so that
 * an old bundle, and an authority that has been removed since, cannot be brought back.
 *
 * What it cannot do: tell whoever has heard nothing since that the key was stolen. A taint or a revocation deletes what
 * the authority said, so no honest server vouches by it, and whoever has heard of the taint no longer believes it; but a
 * thief who also sits in the network can mislead a peer that was away all the time. That peer would have believed the
 * thief anyway until the authority ended. `LINK_GRACE_MS` bounds how much longer.
 */
export interface BundleLink {
  /** JWS in compact form, over the SHA-256 of each authority. */
  readonly statement: string;
  /** DER, in the order of the statement. */
  readonly x509Authorities: readonly Uint8Array[];
}

/** After the end of an authority, its word counts for so long: whoever was away for longer needs another way. */
export const LINK_GRACE_MS = 30 * 24 * 3_600_000;

const TYPE = "steeple-bundle-link";
const SKEW_MS = 5 * 60_000;
const MAX_AUTHORITIES = 64;

/** Says, by the key of one authority, that these are the authorities of the trust domain. Tainted ones are left out. */
export async function signBundleLink(
  bundle: Bundle,
  signer: { readonly id: string; readonly key: Signer },
  now: Date,
): Promise<BundleLink> {
  const x509Authorities = bundle.x509Authorities.filter(({ tainted }) => !tainted).map(({ asn1 }) => asn1);
  const jws = jwsSigner(signer.key);
  const payload = {
    trust_domain: bundle.trustDomain,
    sequence_number: String(bundle.sequenceNumber),
    issued_at: Math.floor(now.getTime() / 1000),
    x509_sha256: x509Authorities.map(digest),
  };
  const statement = await signJws({ alg: jws.algorithm, typ: TYPE, kid: signer.id }, payload, jws);
  return { statement, x509Authorities };
}

export interface TrustedAuthorities {
  readonly trustDomain: TrustDomain;
  /** Who may vouch: none that is tainted. */
  readonly x509Authorities: readonly Uint8Array[];
  readonly sequenceNumber: bigint;
}

/**
 * The authorities that the link names, if one of those that are trusted says so. Throws `invalid` or `denied` for any
 * other link.
 */
export async function followBundleLink(
  link: BundleLink,
  trusted: TrustedAuthorities,
  now: Date,
): Promise<TrustedAuthorities> {
  const jws = parseJws(link.statement);
  const { typ, kid } = jws.header;
  if (typ !== TYPE) throw refused("it is of another type");
  const signer = trusted.x509Authorities.map(parseCertificate).find(({ subjectKeyId }) => subjectKeyId === kid);
  if (signer === undefined || kid === "") throw refused("its signer is not trusted");
  if (!(await jwsHolds(jws, checkPublicKey(signer.publicKey)))) throw refused("its signature is wrong");
  if (now.getTime() > signer.notAfter.getTime() + LINK_GRACE_MS) throw refused("its signer has ended too long ago");
  const { trustDomain, sequenceNumber, issuedAt, digests } = readPayload(jws.payload);
  if (trustDomain !== trusted.trustDomain) throw refused("it is of another trust domain");
  if (sequenceNumber <= trusted.sequenceNumber) throw refused("it is not newer than what is known");
  if (issuedAt > now.getTime() + SKEW_MS) throw refused("it is from the future");
  if (issuedAt < signer.notBefore.getTime() - SKEW_MS) throw refused("it is older than its signer");
  checkAuthorities(link.x509Authorities, digests, trusted.trustDomain);
  return { trustDomain: trusted.trustDomain, x509Authorities: link.x509Authorities, sequenceNumber };
}

function readPayload(payload: Readonly<Record<string, unknown>>) {
  const { trust_domain, sequence_number, issued_at, x509_sha256 } = payload;
  if (typeof sequence_number !== "string" || !/^\d{1,20}$/.test(sequence_number)) throw refused("it has no sequence");
  if (typeof issued_at !== "number" || !Number.isSafeInteger(issued_at)) throw refused("it has no time");
  if (!Array.isArray(x509_sha256)) throw refused("it names no authorities");
  return {
    trustDomain: trust_domain,
    sequenceNumber: BigInt(sequence_number),
    issuedAt: issued_at * 1000,
    digests: x509_sha256 as readonly unknown[],
  };
}

function checkAuthorities(ders: readonly Uint8Array[], digests: readonly unknown[], trustDomain: TrustDomain): void {
  if (ders.length === 0 || ders.length > MAX_AUTHORITIES) throw refused(`it names ${ders.length} authorities`);
  if (ders.length !== digests.length || ders.some((der, at) => digest(der) !== digests[at]))
    throw refused("its authorities are not those of the statement");
  for (const certificate of ders.map(parseCertificate)) checkAuthority(certificate, trustDomain);
}

function checkAuthority({ isCa, uris }: Certificate, trustDomain: TrustDomain): void {
  if (!isCa) throw refused("it names a certificate that is no authority");
  if (uris.some((uri) => uri !== trustDomainId(trustDomain))) throw refused("it names an authority of somebody else");
}

function digest(der: Uint8Array): string {
  return createHash("sha256").update(der).digest("base64url");
}

function refused(reason: string): Fault {
  return new Fault("denied", `a statement about the next bundle is refused: ${reason}`, { code: "bundle-link" });
}
