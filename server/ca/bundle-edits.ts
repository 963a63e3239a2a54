import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle, TokenAuthority, X509Authority } from "../../src/spiffe/bundle.ts";
import type { BundleStore } from "../store/store.ts";

/** What a change of a bundle decides. */
export type BundleContent = Omit<Bundle, "trustDomain" | "sequenceNumber">;
export type TokenKind = "jwt" | "wit";
/** The bundle of one trust domain, as the authorities of this server change it. */
export type BundleAccess = Pick<BundleStore, "find" | "change">;

/** Where each kind of token authority stands in a bundle. */
export const TOKEN_FIELD = { jwt: "jwtAuthorities", wit: "witAuthorities" } as const satisfies Record<
  TokenKind,
  keyof Bundle
>;

const EMPTY: BundleContent = { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 0 };

/** Adds what is not there yet. An authority that is there and tainted stays so. */
export function withRoots(current: Bundle | undefined, roots: readonly X509Authority[]): BundleContent {
  const held = contentOf(current);
  const known = new Set(held.x509Authorities.map(({ asn1 }) => textOf(asn1)));
  const added = roots.filter(({ asn1 }) => !known.has(textOf(asn1)));
  return { ...held, x509Authorities: [...held.x509Authorities, ...added] };
}

/** Adds what is not there yet. Throws `invalid` when the key id stands for another key, of either kind. WIT-39. */
export function withTokenAuthorities(
  current: Bundle | undefined,
  kind: TokenKind,
  authorities: readonly TokenAuthority[],
): BundleContent {
  const held = contentOf(current);
  const known = new Map<string, { readonly kind: TokenKind; readonly publicKey: Uint8Array }>();
  for (const other of ["jwt", "wit"] as const)
    for (const { keyId, publicKey } of held[TOKEN_FIELD[other]]) known.set(keyId, { kind: other, publicKey });
  const added = authorities.filter(({ keyId, publicKey }) => {
    const clash = known.get(keyId);
    if (clash === undefined) return true;
    if (clash.kind === kind && textOf(clash.publicKey) === textOf(publicKey)) return false;
    throw new Fault("invalid", `key ID ${JSON.stringify(keyId)} belongs to another key of the bundle`, {
      code: "key-id-taken",
      hint: "publish the key under a key ID of its own",
    });
  });
  return { ...held, [TOKEN_FIELD[kind]]: [...held[TOKEN_FIELD[kind]], ...added] };
}

function contentOf(current: Bundle | undefined): BundleContent {
  const { x509Authorities, jwtAuthorities, witAuthorities, refreshHint } = current ?? EMPTY;
  return { x509Authorities, jwtAuthorities, witAuthorities, refreshHint };
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}
