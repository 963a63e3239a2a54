import type { Call } from "../../src/rpc/caller.ts";
import type { JWTBundlesResponse } from "../../src/rpc/gen/JWTBundlesResponse.ts";
import type { JWTSVID } from "../../src/rpc/gen/JWTSVID.ts";
import type { JWTSVIDRequest__Output } from "../../src/rpc/gen/JWTSVIDRequest.ts";
import type { JWTSVIDResponse } from "../../src/rpc/gen/JWTSVIDResponse.ts";
import type { ValidateJWTSVIDRequest__Output } from "../../src/rpc/gen/ValidateJWTSVIDRequest.ts";
import type { ValidateJWTSVIDResponse } from "../../src/rpc/gen/ValidateJWTSVIDResponse.ts";
import { structFromJson } from "../../src/rpc/struct.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Feed } from "../../src/runtime/feed.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { isMember, parseSpiffeId, type SpiffeId } from "../../src/spiffe/id.ts";
import { type JwtSvid, validateJwtSvid } from "../../src/spiffe/jwt-svid.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import type { Entitlement } from "../cache/entries.ts";
import type { HeldJwt } from "../cache/jwt.ts";
import { AttestedCall, type AttestedCallOptions, notReady } from "./attested-call.ts";
import type { LocalCaller } from "./caller.ts";
import { jwtBundleMap, sharedByBundles } from "./jwt-answers.ts";
import { audienceOf, fetchToken, type JwtTokens, missing, type TokenWish } from "./jwt-tokens.ts";
import { changedAnswers } from "./shared-answers.ts";

/** Who is entitled to what, without regard to X.509-SVIDs. */
export interface EntitlementFeed {
  /** False while nobody's entitlement is known. */
  readonly ready: { readonly value: boolean };
  /** Ticks when entitlements may have changed. */
  readonly changes: Feed<number>;
  entitlement(selectors: readonly Selector[]): Entitlement;
}

export interface JwtApiOptions extends AttestedCallOptions {
  readonly identities: EntitlementFeed;
  readonly jwtTokens: JwtTokens;
  /** Gives the own trust domain's bundles to callers without an identity. */
  readonly allowUnauthenticatedVerifiers: boolean;
  /** Claims of foreign tokens that are returned, besides those of the standard. */
  readonly allowedForeignJwtClaims: readonly string[];
  readonly clock: Clock;
}

type LocalCall = Call<LocalCaller>;

const SPIFFE_CLAIMS: ReadonlySet<string> = new Set(["sub", "aud", "exp"]);

/** Tokens for all identities of the caller, or for the one it asks for. SPIFFE Workload API, section 6.2.1. */
export async function fetchJwtSvid(
  options: JwtApiOptions,
  request: JWTSVIDRequest__Output,
  call: LocalCall,
): Promise<JWTSVIDResponse> {
  const audience = audienceOf(request.audience, call.auth.log);
  const wanted = request.spiffe_id === "" ? undefined : requestedId(request.spiffe_id, call);
  const caller = await openCall(options, call);
  const { entries } = options.identities.entitlement(caller.selectors);
  const chosen = entries.filter(({ spiffeId }) => wanted === undefined || spiffeId === wanted);
  if (chosen.length === 0) throw caller.noIdentity();
  const svids = await Promise.all(chosen.map((entry) => fetchOne(options, { entry, audience }, call)));
  await caller.verifyAgain();
  return { svids };
}

async function fetchOne(
  { jwtTokens, clock }: JwtApiOptions,
  { entry, audience }: TokenWish,
  call: LocalCall,
): Promise<JWTSVID> {
  const ttl = ({ expiresAt }: HeldJwt) => (expiresAt.getTime() - clock.now().getTime()) / 1000;
  const { token } = await fetchToken(jwtTokens, { entry, audience }, call, {
    failure: { registered: true },
    success: (held) => ({ registered: true, ttl: ttl(held) }),
  });
  return { spiffe_id: entry.spiffeId, svid: token, hint: entry.hint };
}

/** The keys that verify tokens, again at each change. SPIFFE Workload API, section 6.2.2. */
export async function* fetchJwtBundles(
  options: JwtApiOptions,
  call: LocalCall,
): AsyncGenerator<JWTBundlesResponse, void, undefined> {
  yield* entitledAnswers(options, call, jwtBundles);
}

const jwtBundles = sharedByBundles((bundles): JWTBundlesResponse => ({ bundles: jwtBundleMap(bundles) }));

/** Ends with `denied` when the caller has, or keeps, no identity. */
export async function* entitledAnswers<T extends object>(
  options: JwtApiOptions,
  call: LocalCall,
  compose: (entitlement: Entitlement) => T,
): AsyncGenerator<T, void, undefined> {
  const { identities, allowUnauthenticatedVerifiers } = options;
  const caller = await openCall(options, call);
  yield* changedAnswers({
    updates: identities.changes.watch(call.signal),
    compose: () => {
      const entitlement = identities.entitlement(caller.selectors);
      if (entitlement.entries.length === 0 && !allowUnauthenticatedVerifiers) throw caller.noIdentity();
      return compose(entitlement);
    },
    check: () => caller.verifyAgain(),
  });
}

/**
 * Checks a token by the bundles that the caller may trust, the own trust domain's among them for everybody. SPIFFE
 * Workload API, section 6.2.3.
 */
export async function validateJwt(
  options: JwtApiOptions,
  { audience, svid: token }: ValidateJWTSVIDRequest__Output,
  call: LocalCall,
): Promise<ValidateJWTSVIDResponse> {
  if (audience === "") throw missing(call.auth.log, "audience");
  if (token === "") throw missing(call.auth.log, "svid");
  const caller = await openCall(options, call);
  const { bundle, federatedBundles } = options.identities.entitlement(caller.selectors);
  const bundles = new Map([[bundle.trustDomain, bundle], ...federatedBundles]);
  const svid = await checked(options, { token, audience, bundles }, call);
  call.auth.log.debug("Successfully validated JWT", { audience, spiffe_id: svid.id });
  const allowed = isMember(svid.id, bundle.trustDomain) ? undefined : options.allowedForeignJwtClaims;
  return { spiffe_id: svid.id, claims: structFromJson(shownClaims(svid, allowed)) };
}

async function checked(
  { clock }: JwtApiOptions,
  question: { readonly token: string; readonly audience: string; readonly bundles: ReadonlyMap<string, Bundle> },
  call: LocalCall,
): Promise<JwtSvid> {
  const { token, audience, bundles } = question;
  try {
    const authorities = (trustDomain: string) => bundles.get(trustDomain)?.jwtAuthorities;
    return await validateJwtSvid({ token, audience: [audience], authorities, at: clock.now() });
  } catch (error) {
    const { message, code } = Fault.from(error);
    call.auth.log.warn("Failed to validate JWT", { audience, error: message });
    throw new Fault("invalid", message, { code, cause: error });
  }
}

/** `aud` as a list even when it is one text, as SPIRE returns it. */
function shownClaims({ claims, audience }: JwtSvid, allowed: readonly string[] | undefined): Record<string, unknown> {
  const shown = Object.entries({ ...claims, aud: audience });
  return Object.fromEntries(
    shown.filter(([name]) => allowed === undefined || SPIFFE_CLAIMS.has(name) || allowed.includes(name)),
  );
}

export async function openCall(options: JwtApiOptions, call: LocalCall): Promise<AttestedCall> {
  if (!options.identities.ready.value) throw notReady();
  return AttestedCall.open(options, call);
}

export function requestedId(text: string, call: LocalCall): SpiffeId {
  try {
    return parseSpiffeId(text);
  } catch (error) {
    const { message } = Fault.from(error);
    call.auth.log.error("Invalid requested SPIFFE ID", { error: message });
    throw new Fault("invalid", `invalid requested SPIFFE ID: ${message}`, { code: "spiffe-id-invalid", cause: error });
  }
}
