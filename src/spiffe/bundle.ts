import type { TrustDomain } from "./id.ts";

/** A certificate that anchors X.509-SVIDs of the trust domain. */
export interface X509Authority {
  /** DER of one certificate. */
  readonly asn1: Uint8Array;
  readonly tainted: boolean;
}

/** A public key that verifies JWT-SVIDs, or WIT-SVIDs, of the trust domain. */
export interface TokenAuthority {
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  readonly keyId: string;
  /** Unix seconds; 0 means none. */
  readonly expiresAt: number;
  readonly tainted: boolean;
}

/** The authorities of one trust domain. Immutable. SPIFFE Trust Domain and Bundle, section 4. */
export interface Bundle {
  readonly trustDomain: TrustDomain;
  readonly x509Authorities: readonly X509Authority[];
  readonly jwtAuthorities: readonly TokenAuthority[];
  readonly witAuthorities: readonly TokenAuthority[];
  /** Seconds; 0 means none. */
  readonly refreshHint: number;
  /** Grows with every change of content. */
  readonly sequenceNumber: bigint;
}
