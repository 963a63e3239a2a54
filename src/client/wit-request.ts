import { Fault } from "../runtime/fault.ts";
import type { SpiffeId } from "../spiffe/id.ts";
import type { Claims, TokenAuthorities } from "../spiffe/token.ts";
import { type UnprovenWitSvid, validateWitSvid } from "../spiffe/wit-svid.ts";
import { isConfidential } from "./confidential.ts";
import type { ReplayCache } from "./replay-cache.ts";

// What both ways of showing a WIT-SVID have in common: the token's header, and what is said of the message that has it.

export const WIT_HEADER = "workload-identity-token";
export const TRANSACTION_HEADER = "txn-token";
export const DEFAULT_LIFETIME_MS = 60_000;
/** Of a proof that is accepted. WIT-SVID, section 7.2. */
const MAX_LIFETIME_MS = 300_000;
const LEEWAY_MS = 60_000;

/** As Node has them: by lower-case name. */
export type ReceivedHeaders = Readonly<Record<string, string | readonly string[] | undefined>>;

/** A request as the server got it. */
export interface ReceivedRequest {
  readonly headers: ReceivedHeaders;
  /** The address by which this server is known and the path that was asked for; never taken from `host` or forwarded headers. */
  readonly target: string | URL;
}

export interface VerifyOptions {
  /** Other addresses of this server that a proof may name. */
  readonly aliases?: readonly string[];
  /** Refuses a proof that was used before. */
  readonly replays?: ReplayCache;
  /** Longest time that a proof may still count. Default: five minutes. */
  readonly maxLifetimeMs?: number;
  /** The request came without TLS, over a way that is confidential otherwise. */
  readonly allowPlaintext?: boolean;
}

/** Whose tokens count, and when. */
export interface TrustContext {
  readonly authorities: TokenAuthorities;
  readonly at: Date;
}

/** A workload that has proved who it is. */
export interface ProvenWorkload {
  readonly id: SpiffeId;
  /** All claims of the WIT-SVID. */
  readonly claims: Claims;
}

/** Where a request goes, and how long its proof counts. Throws `invalid` for an address at which others could read it. */
export function checkSending(
  url: URL,
  { lifetimeMs, allowPlaintext }: { readonly lifetimeMs: number; readonly allowPlaintext: boolean },
): void {
  if (!isConfidential(url) && !allowPlaintext)
    throw refused(`a WIT-SVID does not go to ${url.protocol}//${url.hostname} without TLS`, "wit-plaintext");
  if (!(lifetimeMs > 0 && lifetimeMs <= MAX_LIFETIME_MS))
    throw refused("a proof lives for five minutes at most", "proof-lifetime");
}

/** Throws `invalid` for a request that others could read. */
export function checkReceiving({ target }: ReceivedRequest, { allowPlaintext }: VerifyOptions): void {
  if (!isConfidential(new URL(target)) && allowPlaintext !== true)
    throw refused("a WIT-SVID was sent without TLS", "wit-plaintext");
}

/** The WIT-SVID of a message, valid but for the proof. Throws `invalid`. */
export async function witOf(headers: ReceivedHeaders, { authorities, at }: TrustContext): Promise<UnprovenWitSvid> {
  const token = onlyHeader(headers, WIT_HEADER);
  checkNoBearer(headers, token);
  try {
    return await validateWitSvid({ token, authorities, at });
  } catch (error) {
    const { message, code } = Fault.from(error);
    throw refused(`the WIT-SVID is not valid: ${message}`, code);
  }
}

/**
 * Who sent the request, by a protocol of the caller's own: `prove` gets the token's claims and key, valid but for the
 * proof, and throws unless the request proves that its sender holds the key. WIT-SVID, section 5. Throws `invalid` before
 * `prove` is asked for a token that is not valid, or that others could read.
 */
export async function verifyPossession<R extends ReceivedRequest>(
  request: R,
  context: TrustContext & Pick<VerifyOptions, "allowPlaintext">,
  prove: (wit: UnprovenWitSvid, request: R) => Promise<void>,
): Promise<ProvenWorkload> {
  checkReceiving(request, context);
  const wit = await witOf(request.headers, context);
  await prove(wit, request);
  return Object.freeze({ id: wit.id, claims: wit.claims });
}

/** Throws `invalid` for a token that lies in the `authorization` header as well. WIT-SVID, section 5. */
export function checkNoBearer(headers: ReceivedHeaders, token: string): void {
  if (valuesOf(headers, "authorization").some((value) => value.includes(token)))
    throw refused("a WIT-SVID is no bearer token", "wit-bearer");
}

/** `expires` in seconds. Throws `invalid`. */
export function checkExpiry(
  expires: number,
  { at, maxLifetimeMs = MAX_LIFETIME_MS }: Pick<VerifyOptions, "maxLifetimeMs"> & Pick<TrustContext, "at">,
): void {
  const left = expires * 1000 - at.getTime();
  if (left <= -LEEWAY_MS) throw refused("the proof has expired", "proof-expired");
  if (left > maxLifetimeMs) throw refused("the proof lives longer than is allowed here", "proof-lifetime");
}

/** `created` in seconds. Throws `invalid`. */
export function checkCreation(created: number, expires: number, at: Date): void {
  if (created * 1000 > at.getTime() + LEEWAY_MS) throw refused("the proof was made in the future", "proof-created");
  if (expires <= created || (expires - created) * 1000 > MAX_LIFETIME_MS)
    throw refused("the proof lives for five minutes at most", "proof-lifetime");
}

/** Throws `invalid` unless the proof was made for this server and path. */
export function checkAudience(audience: unknown, { target }: ReceivedRequest, { aliases = [] }: VerifyOptions): void {
  if (typeof audience !== "string" || ![targetOf(new URL(target)), ...aliases].includes(audience))
    throw refused("the proof is for another address", "proof-aud");
}

/** Throws `invalid` for a proof that this sender used before; `expires` in seconds. */
export function checkUnused(
  name: string,
  expires: number,
  { replays, at }: VerifyOptions & { readonly at: Date },
): void {
  const until = new Date(expires * 1000 + LEEWAY_MS);
  if (replays?.isNew(name, { until, at }) === false) throw refused("the proof has been used before", "proof-replayed");
}

/** Node joins headers that occur twice with a comma, which no token has. Throws `invalid` for none and for several. */
export function onlyHeader(headers: ReceivedHeaders, name: string): string {
  const values = valuesOf(headers, name);
  const [value] = values;
  if (value === undefined || value === "") throw refused(`the message has no ${name} header`, "header-missing");
  if (values.length > 1) throw refused(`the message has several ${name} headers`, "header-repeated");
  return value;
}

export function valuesOf(headers: ReceivedHeaders, name: string): readonly string[] {
  return Object.hasOwn(headers, name) ? [headers[name] ?? []].flat() : [];
}

export function lowerCased(headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));
}

/** Without query and fragment, as both ends write it. */
export function targetOf(url: URL): string {
  return `${url.protocol}//${url.host}${url.pathname}`;
}

export function refused(reason: string, code: string): Fault {
  return new Fault("invalid", reason, { code });
}
