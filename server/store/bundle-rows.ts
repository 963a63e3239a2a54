import type { Selectable } from "kysely";
import type { Bundle, TokenAuthority, X509Authority } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { BundleTable } from "./schema.ts";

export type BundleRow = Omit<Selectable<BundleTable>, "seq">;
/** What `BundleStore.change` decides: everything but the name and the sequence number. */
export type BundleContent = Omit<Bundle, "trustDomain" | "sequenceNumber">;

/** Key material as base64, in JSON that a person can read. */
interface StoredContent {
  readonly refreshHint: number;
  readonly x509Authorities: readonly { readonly asn1: string; readonly tainted: boolean }[];
  readonly jwtAuthorities: readonly StoredTokenAuthority[];
  readonly witAuthorities: readonly StoredTokenAuthority[];
}
type StoredTokenAuthority = Omit<TokenAuthority, "publicKey"> & { readonly publicKey: string };

export function toBundle(row: BundleRow): Bundle {
  const content = row.content as StoredContent;
  return {
    trustDomain: row.trust_domain as TrustDomain,
    x509Authorities: content.x509Authorities.map(({ asn1, tainted }) => ({ asn1: fromBase64(asn1), tainted })),
    jwtAuthorities: content.jwtAuthorities.map(toTokenAuthority),
    witAuthorities: content.witAuthorities.map(toTokenAuthority),
    refreshHint: content.refreshHint,
    sequenceNumber: BigInt(row.sequence_number),
  };
}

/** Equal for equal contents. */
export function bundleText(bundle: BundleContent): string {
  const content: StoredContent = {
    refreshHint: bundle.refreshHint,
    x509Authorities: bundle.x509Authorities.map(fromX509Authority),
    jwtAuthorities: bundle.jwtAuthorities.map(fromTokenAuthority),
    witAuthorities: bundle.witAuthorities.map(fromTokenAuthority),
  };
  return JSON.stringify(content);
}

function fromX509Authority({ asn1, tainted }: X509Authority): StoredContent["x509Authorities"][number] {
  return { asn1: toBase64(asn1), tainted };
}

function fromTokenAuthority({ publicKey, keyId, expiresAt, tainted }: TokenAuthority): StoredTokenAuthority {
  return { publicKey: toBase64(publicKey), keyId, expiresAt, tainted };
}

function toTokenAuthority({ publicKey, keyId, expiresAt, tainted }: StoredTokenAuthority): TokenAuthority {
  return { publicKey: fromBase64(publicKey), keyId, expiresAt, tainted };
}

function toBase64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("base64");
}

function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, "base64"));
}
