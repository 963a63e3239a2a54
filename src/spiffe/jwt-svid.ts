import { jwsSigner, signJws } from "../crypto/jws.ts";
import { Fault } from "../runtime/fault.ts";
import type { SpiffeId } from "./id.ts";
import {
  type Claims,
  checkSignature,
  expiryOf,
  notBeforeOf,
  numericDate,
  parseToken,
  subjectOf,
  type TokenAuthorities,
  type TokenKey,
  timeOf,
  tokenRefused,
} from "./token.ts";

/** What an issuer puts into a JWT-SVID. JWT-SVID, section 3. */
export interface JwtSvidTemplate {
  readonly subject: SpiffeId;
  /** At least one. Empty values are left out. */
  readonly audience: readonly string[];
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  readonly issuer?: string;
  readonly jti?: string;
}

/** A JWT-SVID that was validated. */
export interface JwtSvid {
  readonly id: SpiffeId;
  readonly token: string;
  readonly audience: readonly string[];
  readonly expiresAt: Date;
  /** All claims of the token. */
  readonly claims: Claims;
}

export interface JwtSvidOptions {
  readonly token: string;
  /** The validator's own names; the token has to be for one of them. */
  readonly audience: readonly string[];
  readonly authorities: TokenAuthorities;
  readonly at: Date;
  /** How far clocks may be apart. Default: one minute. */
  readonly leewayMs?: number;
}

/** As most validators of SPIFFE have it. */
const LEEWAY_MS = 60_000;

/** Throws `invalid` without an audience. */
export async function signJwtSvid(template: JwtSvidTemplate, { keyId, signer }: TokenKey): Promise<string> {
  const { subject, issuer, issuedAt, expiresAt, jti } = template;
  const audience = template.audience.filter((value) => value !== "");
  if (audience.length === 0)
    throw new Fault("invalid", "invalid JWT-SVID audience: cannot be empty", { code: "audience-missing" });
  const jws = jwsSigner(signer);
  const claims = {
    aud: audience,
    exp: numericDate(expiresAt),
    iat: numericDate(issuedAt),
    ...(issuer === undefined ? {} : { iss: issuer }),
    ...(jti === undefined ? {} : { jti }),
    sub: subject,
  };
  return signJws({ alg: jws.algorithm, kid: keyId, typ: "JWT" }, claims, jws);
}

/**
 * Every check of JWT-SVID, sections 2 to 4: form, algorithm, type, key of the subject's own trust domain, signature,
 * times, audience. Either all claims come back, or none. Throws `denied`, or `invalid` when the caller names no
 * audience of its own.
 */
export async function validateJwtSvid(options: JwtSvidOptions): Promise<JwtSvid> {
  const { token, authorities, at, leewayMs = LEEWAY_MS } = options;
  if (options.audience.every((value) => value === ""))
    throw new Fault("invalid", "audience must be specified", { code: "audience-missing" });
  const jws = parseToken(token);
  checkType(jws.header);
  const claims = jws.payload;
  const id = subjectOf(claims);
  await checkSignature(jws, { subject: id, keyId: keyIdOf(jws.header), authorities });
  const expiresAt = expiryOf(claims, at, leewayMs);
  notBeforeOf(claims, at, leewayMs);
  timeOf(claims, "iat");
  const audience = audienceOf(claims);
  if (!audience.some((value) => value !== "" && options.audience.includes(value)))
    throw tokenRefused(`expected audience in ${list(options.audience)} (audience=${list(audience)})`, "token-audience");
  return { id, token, audience, expiresAt, claims };
}

/** JWT-SVID, section 2.3: compared with case. */
function checkType({ typ }: Claims): void {
  if (typ === undefined || typ === "JWT" || typ === "JOSE") return;
  throw tokenRefused("token header has an unexpected type; expected JWT or JOSE", "token-typ");
}

/** JWT-SVID, section 2.2: optional. */
function keyIdOf({ kid }: Claims): string | undefined {
  if (kid === undefined || (typeof kid === "string" && kid !== "")) return kid;
  throw tokenRefused("token header has an invalid key id", "token-kid");
}

function audienceOf({ aud }: Claims): readonly string[] {
  if (aud === undefined) throw tokenRefused("token missing aud claim", "token-aud");
  const values: readonly unknown[] = Array.isArray(aud) ? aud : [aud];
  if (values.length > 0 && values.every((value) => typeof value === "string")) return values;
  throw tokenRefused("token has an invalid aud claim", "token-aud");
}

/** As Go prints a list of texts. */
function list(values: readonly string[]): string {
  return `[${values.map((value) => JSON.stringify(value)).join(" ")}]`;
}
