import { Fault } from "../runtime/fault.ts";

declare const brand: unique symbol;
/** Lower-case trust domain name, 1 to 255 bytes of `a-z 0-9 . - _`. SPIFFE-ID, section 2.1. */
export type TrustDomain = string & { readonly [brand]: "TrustDomain" };
/** `spiffe://<trust domain><path>`, at most 2048 bytes, never normalised. SPIFFE-ID, section 2. */
export type SpiffeId = string & { readonly [brand]: "SpiffeId" };

const SCHEME = "spiffe://";
/** SPIFFE-ID, section 2.3. */
export const MAX_ID_BYTES = 2048;
const MAX_TRUST_DOMAIN_BYTES = 255;

const TRUST_DOMAIN = /^[a-z0-9._-]+$/;
const SEGMENT = /^[A-Za-z0-9._-]+$/;
const TRAILING_SLASH = "path cannot have a trailing slash";
const EMPTY_SEGMENT = "path cannot contain empty segments";

/** Throws `invalid`. */
export function parseTrustDomain(text: string): TrustDomain {
  if (text === "") throw bad("trust domain is missing", "trust-domain-missing");
  if (text.length > MAX_TRUST_DOMAIN_BYTES)
    throw bad("trust domain is too long: at most 255 bytes are allowed", "trust-domain-too-long");
  if (!TRUST_DOMAIN.test(text)) {
    throw bad(
      "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
      "trust-domain-characters",
    );
  }
  return text as TrustDomain;
}

/** Accepts a bare name as well as an ID, and returns the trust domain. Throws `invalid`. */
export function parseTrustDomainOrId(text: string): TrustDomain {
  return text.includes(":/") ? trustDomainOf(parseSpiffeId(text)) : parseTrustDomain(text);
}

/** Byte for byte: what is accepted is kept as it is. Throws `invalid`. */
export function parseSpiffeId(text: string): SpiffeId {
  if (text === "") throw bad("cannot be empty", "spiffe-id-empty");
  if (!text.startsWith(SCHEME)) throw bad("scheme is missing or invalid", "spiffe-id-scheme");
  if (text.length > MAX_ID_BYTES)
    throw bad("SPIFFE ID is too long: at most 2048 bytes are allowed", "spiffe-id-too-long");
  const slash = text.indexOf("/", SCHEME.length);
  const name = slash < 0 ? text.slice(SCHEME.length) : text.slice(SCHEME.length, slash);
  parseTrustDomain(name);
  if (slash >= 0) checkPath(text.slice(slash));
  return text as SpiffeId;
}

export function isSpiffeId(text: string): boolean {
  try {
    parseSpiffeId(text);
    return true;
  } catch {
    return false;
  }
}

/** Joins a trust domain and a path that starts with a slash, or is empty. Throws `invalid`. */
export function spiffeId(trustDomain: TrustDomain, path: string): SpiffeId {
  if (path !== "") checkPath(path);
  const id = `${SCHEME}${trustDomain}${path}`;
  if (id.length > MAX_ID_BYTES)
    throw bad("SPIFFE ID is too long: at most 2048 bytes are allowed", "spiffe-id-too-long");
  return id as SpiffeId;
}

function checkPath(path: string): void {
  if (!path.startsWith("/")) throw bad("path must have a leading slash", "spiffe-id-path");
  const segments = path.slice(1).split("/");
  for (const [index, segment] of segments.entries()) {
    if (segment === "") throw bad(index === segments.length - 1 ? TRAILING_SLASH : EMPTY_SEGMENT, "spiffe-id-path");
    if (segment === "." || segment === "..") throw bad("path cannot contain dot segments", "spiffe-id-path");
    if (!SEGMENT.test(segment)) {
      throw bad(
        "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
        "spiffe-id-path",
      );
    }
  }
}

function bad(message: string, code: string): Fault {
  return new Fault("invalid", message, {
    code,
    hint: "write it as spiffe://trust-domain/path, with lower-case letters in the trust domain",
  });
}

export function trustDomainOf(id: SpiffeId): TrustDomain {
  const slash = id.indexOf("/", SCHEME.length);
  return (slash < 0 ? id.slice(SCHEME.length) : id.slice(SCHEME.length, slash)) as TrustDomain;
}

/** With its leading slash; empty for a trust domain's own ID. */
export function pathOf(id: SpiffeId): string {
  const slash = id.indexOf("/", SCHEME.length);
  return slash < 0 ? "" : id.slice(slash);
}

export function trustDomainId(trustDomain: TrustDomain): SpiffeId {
  return `${SCHEME}${trustDomain}` as SpiffeId;
}

export function isMember(id: SpiffeId, trustDomain: TrustDomain): boolean {
  return trustDomainOf(id) === trustDomain;
}

/** `spiffe://<td>/spire/server`, the server's own ID and the parent of node aliases. */
export function serverId(trustDomain: TrustDomain): SpiffeId {
  return `${SCHEME}${trustDomain}/spire/server` as SpiffeId;
}

/** `spiffe://<td>/spire/agent/<suffix>`; the suffix has no leading slash. Throws `invalid`. */
export function agentId(trustDomain: TrustDomain, suffix: string): SpiffeId {
  return spiffeId(trustDomain, `/spire/agent/${suffix}`);
}

/** `/spire` and everything below it belongs to the system and never names a workload. */
export function isReserved(id: SpiffeId): boolean {
  const path = pathOf(id);
  return path === "/spire" || path.startsWith("/spire/");
}

export function isAgentId(id: SpiffeId): boolean {
  return pathOf(id).startsWith("/spire/agent/");
}

/** Throws `invalid` unless the ID has a path and lies in the trust domain. */
export function checkMemberId(id: SpiffeId, trustDomain: TrustDomain): void {
  const member = `a member of trust domain "${trustDomain}"`;
  if (!isMember(id, trustDomain)) throw misplaced(id, member);
  if (pathOf(id) === "") throw misplaced(id, `${member}; path is empty`);
}

/** Throws `invalid` unless the ID can name a workload of the trust domain: with a path, and not a reserved one. */
export function checkWorkloadId(id: SpiffeId, trustDomain: TrustDomain): void {
  const workload = `a workload in trust domain "${trustDomain}"`;
  if (!isMember(id, trustDomain)) throw misplaced(id, `a member of trust domain "${trustDomain}"`);
  if (pathOf(id) === "") throw misplaced(id, `${workload}; path is empty`);
  if (isReserved(id)) throw misplaced(id, `${workload}; path is in the reserved namespace`);
}

function misplaced(id: SpiffeId, wanted: string): Fault {
  return new Fault("invalid", `"${id}" is not ${wanted}`, { code: "spiffe-id-role" });
}
