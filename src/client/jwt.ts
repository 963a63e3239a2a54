import { parseJws } from "../crypto/jws.ts";
import { WorkloadApi } from "../rpc/protos.ts";
import { jsonFromStruct } from "../rpc/struct.ts";
import { Fault } from "../runtime/fault.ts";
import { parseSpiffeId, type SpiffeId } from "../spiffe/id.ts";
import type { JwtSvid } from "../spiffe/jwt-svid.ts";
import { timeOf } from "../spiffe/token.ts";
import { isConfidential } from "./confidential.ts";
import { type FetchOptions, firstOf, overChannel } from "./endpoint.ts";
import { type JwtSvidTokens, readJwtBundles, readJwtSvids } from "./jwt-context.ts";
import { type TokenBundles, unusable } from "./token-context.ts";
import { type WatchOptions, watch } from "./watch.ts";

export interface FetchJwtSvidOptions extends FetchOptions {
  /** Further services that may take the token. One token for one service is the normal case: JWT-SVID, section 7.2. */
  readonly otherAudiences?: readonly string[];
  /** One identity; default: all of them. */
  readonly id?: SpiffeId;
}

/** A new token, or one that the agent keeps, for each identity of this process. Throws a `Fault` with what the endpoint answered. */
export async function fetchJwtSvids(audience: string, options: FetchJwtSvidOptions = {}): Promise<JwtSvidTokens> {
  const { otherAudiences = [], id: spiffe_id = "" } = options;
  const request = { audience: [audience, ...otherAudiences], spiffe_id };
  const open = overChannel(options, async function* (channel, call) {
    yield await channel.client(WorkloadApi).FetchJWTSVID(request, call);
  });
  return readJwtSvids(await firstOf(open, options));
}

/** The token of the default identity, or of the one asked for. As `fetchJwtSvids`. */
export async function fetchJwtSvid(audience: string, options: FetchJwtSvidOptions = {}): Promise<JwtSvidTokens[0]> {
  const [first] = await fetchJwtSvids(audience, options);
  return first;
}

export interface ValidateJwtSvidOptions extends FetchOptions {
  readonly token: string;
  /** The validator's own name; the token has to be for it. */
  readonly audience: string;
}

/**
 * Asks the agent whether a token is good for this service. Throws `invalid` with the reason when it is not. Where no
 * agent shall be asked for each token, `JwtSource.validate` does the same by the bundles it holds.
 */
export async function validateJwtSvid(options: ValidateJwtSvidOptions): Promise<JwtSvid> {
  const { token, audience } = options;
  const open = overChannel(options, async function* (channel, call) {
    yield await channel.client(WorkloadApi).ValidateJWTSVID({ svid: token, audience }, call);
  });
  const { spiffe_id, claims } = await firstOf(open, options);
  if (spiffe_id === "" || claims === null) throw unusable("no SPIFFE ID or claims in response");
  const shown = jsonFromStruct(claims);
  const expiresAt = timeOf(shown, "exp");
  if (expiresAt === undefined) throw unusable("no exp claim in response");
  const values = [shown["aud"]].flat().filter((value) => typeof value === "string");
  return { id: parseSpiffeId(spiffe_id), token, audience: values, expiresAt, claims: shown };
}

/** The keys that verify JWT-SVIDs, now and after each change. As `watchX509Bundles`. */
export function watchJwtBundles(options: FetchOptions & WatchOptions): AsyncGenerator<TokenBundles, void, undefined> {
  return watch(bundleStream(options), readJwtBundles, options);
}

/** One attempt at what `watchJwtBundles` yields first. */
export async function fetchJwtBundles(options: FetchOptions = {}): Promise<TokenBundles> {
  return readJwtBundles(await firstOf(bundleStream(options), options));
}

function bundleStream(options: FetchOptions) {
  return overChannel(options, (channel, call) => channel.client(WorkloadApi).FetchJWTBundles({}, call));
}

const BEARER = /^bearer ([A-Za-z0-9._~+/-]+=*)$/i;

/**
 * The header that carries a token to this address: `{ authorization: "Bearer …" }`, which is gRPC metadata as well.
 * Throws `invalid` for an address that anybody on the way could read the token from. JWT-SVID, sections 5 and 7.3.
 */
export function bearerHeader(
  { token }: { readonly token: string },
  url: string | URL,
  { allowPlaintext = false }: { readonly allowPlaintext?: boolean } = {},
): { readonly authorization: string } {
  if (isWitSvid(token))
    throw new Fault("invalid", "a WIT-SVID is no bearer token", {
      code: "bearer-wit",
      hint: "show it with a proof: steeple/incubating",
    });
  const address = new URL(url);
  if (isConfidential(address) || allowPlaintext) return { authorization: `Bearer ${token}` };
  throw new Fault("invalid", `a JWT-SVID does not go to ${address.protocol}//${address.hostname} without TLS`, {
    code: "bearer-plaintext",
    hint: "use https, or allowPlaintext where every hop is confidential otherwise",
  });
}

/** WIT-SVID, section 5. */
function isWitSvid(token: string): boolean {
  try {
    return parseJws(token).header["typ"] === "wit+jwt";
  } catch {
    return false;
  }
}

/**
 * The token in the values of an `authorization` header or metadata key. Throws `unauthenticated` for none, several, or
 * something else: HTTP 401, gRPC 16.
 */
export function bearerToken(values: string | readonly string[] | undefined): string {
  const all = values === undefined ? [] : [values].flat();
  const token = all.length === 1 ? BEARER.exec(all[0] ?? "")?.[1] : undefined;
  if (token !== undefined) return token;
  throw new Fault("unauthenticated", "exactly one bearer token is needed", { code: "bearer-missing" });
}
