import { parseJws } from "../crypto/jws.ts";
import type { JWTBundlesResponse__Output } from "../rpc/gen/JWTBundlesResponse.ts";
import type { JWTSVID__Output } from "../rpc/gen/JWTSVID.ts";
import type { JWTSVIDResponse__Output } from "../rpc/gen/JWTSVIDResponse.ts";
import { parseSpiffeId, type SpiffeId } from "../spiffe/id.ts";
import type { Claims } from "../spiffe/token.ts";
import { timeOf } from "../spiffe/token.ts";
import { firstOfEachHint, readTokenBundles, type TokenBundles, unusable } from "./token-context.ts";

/** A token for one identity of this process, as the endpoint gave it. Immutable. */
export interface JwtSvidToken {
  readonly id: SpiffeId;
  /** What the operator calls this identity; empty when there is no name. */
  readonly hint: string;
  /** What goes into the `authorization` header, after `Bearer `. */
  readonly token: string;
  readonly audience: readonly string[];
  readonly expiresAt: Date;
  readonly claims: Claims;
}

/** Never empty. */
export type JwtSvidTokens = readonly [JwtSvidToken, ...JwtSvidToken[]];

/** Throws `invalid` when anything mandatory is unset or does not fit. */
export function readJwtSvids(message: JWTSVIDResponse__Output): JwtSvidTokens {
  const [first, ...others] = firstOfEachHint(message.svids).map(readSvid);
  if (first === undefined) throw unusable("no SVIDs in response");
  return [first, ...others];
}

/** Throws `invalid`. */
export function readJwtBundles(message: JWTBundlesResponse__Output): TokenBundles {
  return readTokenBundles(message.bundles, "jwt-svid");
}

/** The signature is the business of whoever the token is for. */
function readSvid({ spiffe_id, svid: token, hint }: JWTSVID__Output): JwtSvidToken {
  if (spiffe_id === "") throw unusable("JWT-SVID without SPIFFE ID");
  const id = parseSpiffeId(spiffe_id);
  if (token === "") throw unusable(`missing token for SVID with SPIFFE ID "${id}"`);
  const claims = parseJws(token).payload;
  const expiresAt = timeOf(claims, "exp");
  if (claims["sub"] !== id) throw unusable(`token of SVID "${id}" names another SPIFFE ID`);
  if (expiresAt === undefined) throw unusable(`token of SVID "${id}" does not expire`);
  const audience = [claims["aud"]].flat().filter((value) => typeof value === "string");
  return Object.freeze({ id, hint, token, audience, expiresAt, claims });
}
