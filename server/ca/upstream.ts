import { randomBytes } from "node:crypto";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { verifyChain } from "../../src/crypto/chain.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { hexOf, subjectKeyId } from "../../src/crypto/key.ts";
import type { DistinguishedName } from "../../src/crypto/name.ts";
import type { ManagedKey } from "../../src/keys/keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle, TokenAuthority, X509Authority } from "../../src/spiffe/bundle.ts";
import { type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import { checkIntermediatePurpose } from "../../src/spiffe/x509-svid.ts";
import { type TokenKind, withRoots } from "./bundle-edits.ts";
import { type AuthorityType, type KindOptions, restoreX509, standingOf, WORDS, x509Authority } from "./kinds.ts";
import type { X509SigningAuthority } from "./slots.ts";
import { authoritySubject } from "./template.ts";

/** A signing certificate from above. */
export interface MintedCa {
  /** DER: ours, then those between it and a root. */
  readonly chain: readonly Uint8Array[];
  readonly roots: readonly X509Authority[];
}

export type UpstreamBundle = Pick<Bundle, "x509Authorities" | "jwtAuthorities" | "witAuthorities">;

/** Who signs this server's X.509 authority in place of itself. Calls fail with a `Fault` and may be tried again. */
export interface UpstreamAuthority extends AsyncDisposable {
  /** As the configuration spells it. */
  readonly name: string;
  mintX509CA(request: { readonly csr: Uint8Array; readonly ttlSeconds: number }): Promise<MintedCa>;
  /** The keys of the kind that are published above then, with this one. Undefined when keys of the kind stay here. */
  publishToken(kind: TokenKind, key: TokenAuthority): Promise<readonly TokenAuthority[] | undefined>;
  /** The bundle above, and every newer one. Undefined when none is offered. */
  bundles(signal: AbortSignal): AsyncIterable<UpstreamBundle> | undefined;
}

export type UpstreamKindOptions = KindOptions & {
  readonly subject: DistinguishedName;
  readonly upstream: Pick<UpstreamAuthority, "mintX509CA">;
};

/** X.509 authorities whose certificates an upstream authority signs: its roots are those of the trust domain. */
export function upstreamKind(options: UpstreamKindOptions): AuthorityType<X509SigningAuthority> {
  const { trustDomain, ttlSeconds, subject, bundles, upstream } = options;
  return {
    kind: "x509",
    words: WORDS.x509,
    async make(key, now) {
      const name = authoritySubject(subject, BigInt(`0x${randomBytes(16).toString("hex")}`));
      const csr = await createCertificateRequest({ signer: key, subject: name, uris: [trustDomainId(trustDomain)] });
      const { chain, root, roots } = checked(await upstream.mintX509CA({ csr, ttlSeconds }), { key, trustDomain, now });
      return {
        authority: x509Authority({ key, chain, issuedAt: now, upstreamAuthorityId: rootIdOf(root) }),
        publish: () => bundles.change(trustDomain, (current) => withRoots(current, roots)),
      };
    },
    standing({ upstreamAuthorityId }, bundle) {
      const found = bundle?.x509Authorities.filter((root) => rootIdOf(parsed(root)) === upstreamAuthorityId) ?? [];
      return standingOf(found.find(({ tainted }) => !tainted) ?? found[0]);
    },
    restore: restoreX509,
  };
}

interface Asked {
  readonly key: ManagedKey;
  readonly trustDomain: TrustDomain;
  readonly now: Date;
}

interface Checked {
  readonly chain: readonly [Certificate, ...Certificate[]];
  readonly root: Certificate;
  readonly roots: readonly X509Authority[];
}

/** What came from above is used only when SVIDs under it will verify. X509-09, X509-11, T-C8, T-X2, T-X7. */
function checked({ chain, roots }: MintedCa, { key, trustDomain, now }: Asked): Checked {
  const [ca, ...above] = chain.map(parseCertificate);
  if (ca === undefined) throw refused("it sent no certificate");
  if (Buffer.compare(ca.publicKey, key.publicKey) !== 0) throw refused("its certificate is for another key");
  if (!ca.isCa || ca.keyUsage?.has("keyCertSign") !== true) throw refused("its certificate may not sign others");
  if (ca.uris.some((uri) => uri !== trustDomainId(trustDomain)) || ca.uris.length > 1)
    throw refused(`its certificate has the ID ${JSON.stringify(ca.uris)}`);
  const path = verified([ca, ...above], roots.map(parsed), now);
  const short = path.findIndex(({ pathLength }, depth) => pathLength !== undefined && pathLength < depth);
  if (short >= 0) throw refused("its path length leaves no room for an authority that signs SVIDs");
  const root = path.at(-1) ?? ca;
  return { chain: [ca, ...path.slice(1, -1)], root, roots };
}

function verified(chain: readonly Certificate[], roots: readonly Certificate[], at: Date): readonly Certificate[] {
  try {
    const path = verifyChain({ chain, roots, at });
    path.slice(0, -1).forEach(checkIntermediatePurpose);
    return path;
  } catch (error) {
    throw refused(Fault.from(error).message);
  }
}

/** Hex subject key identifier, also of a root that names none. */
function rootIdOf(root: Certificate): string {
  return root.subjectKeyId === "" ? hexOf(subjectKeyId(root.publicKey)) : root.subjectKeyId;
}

const parsedRoots = new WeakMap<Uint8Array, Certificate>();

function parsed({ asn1 }: X509Authority): Certificate {
  const known = parsedRoots.get(asn1) ?? parseCertificate(asn1);
  parsedRoots.set(asn1, known);
  return known;
}

function refused(reason: string): Fault {
  return new Fault("precondition", `the upstream authority's answer can't be used: ${reason}`, {
    code: "upstream-answer",
    hint: "compare the upstream authority's certificate, its constraints and its bundle with the trust domain",
  });
}
