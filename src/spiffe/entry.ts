import { Fault } from "../runtime/fault.ts";
import { checkDnsNames } from "./dns-name.ts";
import { checkMemberId, checkWorkloadId, type SpiffeId, type TrustDomain } from "./id.ts";
import { checkSelector, type Selector, selectorSet } from "./selector.ts";

/** A registration entry: who gets which identity. Immutable; an update yields a new value with a higher revision. */
export interface Entry {
  /** UUID v4, or chosen by the caller: at most 255 of `A-Z a-z 0-9 . _ -`. */
  readonly id: string;
  readonly spiffeId: SpiffeId;
  readonly parentId: SpiffeId;
  /** Sorted, each once, never empty. */
  readonly selectors: readonly Selector[];
  /** Seconds; 0 means the server's default. */
  readonly x509SvidTtl: number;
  /** Seconds; 0 means the server's default. */
  readonly jwtSvidTtl: number;
  readonly federatesWith: readonly TrustDomain[];
  readonly admin: boolean;
  readonly downstream: boolean;
  readonly storeSvid: boolean;
  /** Unix seconds; 0 means never. */
  readonly expiresAt: number;
  readonly dnsNames: readonly string[];
  /** At most 1024 bytes. */
  readonly hint: string;
  readonly disableX509SvidPrefetch: boolean;
  readonly jwtSvidIncludeJti: boolean;
  /** Grows by one with each update, from 0. */
  readonly revisionNumber: number;
  /** Unix seconds. */
  readonly createdAt: number;
}

/** What a caller supplies; the store adds revision and time of creation, and the id when it is empty. */
export type EntryDraft = Omit<Entry, "revisionNumber" | "createdAt">;

/** WAPI-63; bytes of UTF-8. */
export const MAX_HINT_BYTES = 1024;
const MAX_ENTRY_ID = 255;
const ENTRY_ID = /^[A-Za-z0-9._-]*$/;
const MAX_TTL = 2 ** 31 - 1;
/** What one entry may hold, so that neither it nor its certificates grow without bound. */
const MAX_SELECTORS = 256;
const MAX_FEDERATES_WITH = 256;
const MAX_DNS_NAMES = 256;
/** A certificate holds them all, and no reader takes one of more than 16 KiB. */
const MAX_DNS_NAME_BYTES = 8 * 1024;

/**
 * The rules for what becomes an entry, in SPIRE's words: IDs, selectors, names, TTLs, counts. Returns the draft with
 * selectors sorted, and nothing listed twice. Throws `invalid`.
 */
export function checkEntryDraft(draft: EntryDraft, trustDomain: TrustDomain): EntryDraft {
  within("invalid parent ID", () => checkMemberId(draft.parentId, trustDomain));
  within("invalid spiffe ID", () => checkWorkloadId(draft.spiffeId, trustDomain));
  const dnsNames = within("invalid DNS name", () => distinctDnsNames(draft.dnsNames));
  const federatesWith = [...new Set(draft.federatesWith)];
  if (federatesWith.length > MAX_FEDERATES_WITH) throw tooMany("federated trust domains", MAX_FEDERATES_WITH);
  const selectors = distinctSelectors(draft.selectors);
  checkHint(draft.hint);
  checkStoreSvid(draft);
  checkEntryId(draft.id);
  checkTtl("X509SvidTtl", draft.x509SvidTtl);
  checkTtl("JwtSvidTtl", draft.jwtSvidTtl);
  if (!Number.isSafeInteger(draft.expiresAt) || draft.expiresAt < 0) throw bad("expiry is not a time", "entry-expiry");
  return { ...draft, dnsNames, federatesWith, selectors };
}

/** The first name becomes the common name, so the order stays. */
function distinctDnsNames(names: readonly string[]): readonly string[] {
  const distinct = [...new Set(checkDnsNames(names))];
  const bytes = distinct.reduce((sum, name) => sum + name.length, 0);
  if (distinct.length > MAX_DNS_NAMES) throw tooMany("DNS names", MAX_DNS_NAMES);
  if (bytes > MAX_DNS_NAME_BYTES)
    throw bad(`DNS names are longer than ${MAX_DNS_NAME_BYTES} bytes in all`, "entry-size");
  return distinct;
}

function distinctSelectors(selectors: readonly Selector[]): readonly Selector[] {
  if (selectors.length === 0)
    throw new Fault("invalid", "selector list is empty", {
      code: "selectors-missing",
      hint: "add at least one selector",
    });
  const distinct = selectorSet(selectors.map(checkSelector));
  if (distinct.length > MAX_SELECTORS) throw tooMany("selectors", MAX_SELECTORS);
  return distinct;
}

/** Returns its argument when it can be a hint. Throws `invalid`. */
export function checkHint(hint: string): string {
  if (Buffer.byteLength(hint) > MAX_HINT_BYTES) {
    throw new Fault("invalid", `hint is too long, max length is ${MAX_HINT_BYTES} characters`, { code: "entry-hint" });
  }
  if (hint.includes("\0")) throw bad("hint contains a NUL byte", "entry-hint");
  return hint;
}

/** A stored SVID goes to one store, which the selectors' type names. */
function checkStoreSvid({ storeSvid, disableX509SvidPrefetch, selectors }: EntryDraft): void {
  if (!storeSvid) return;
  if (disableX509SvidPrefetch) {
    throw new Fault("invalid", "specifying cache behaviour is incompatible with storable SVIDs", {
      code: "entry-store-svid",
    });
  }
  if (selectors.some(({ type }) => type !== selectors[0]?.type)) {
    throw bad("selector types must be the same when store SVID is enabled", "entry-store-svid");
  }
}

function checkEntryId(id: string): void {
  if (id.length > MAX_ENTRY_ID) throw bad("entry ID too long", "entry-id");
  if (!ENTRY_ID.test(id)) throw bad("entry ID contains invalid characters", "entry-id");
}

function checkTtl(name: string, seconds: number): void {
  if (!Number.isInteger(seconds) || seconds < 0 || seconds > MAX_TTL) throw bad(`${name} is not set`, "entry-ttl");
}

function within<T>(what: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    const { kind, message, code, hint } = Fault.from(error);
    throw new Fault(kind, `${what}: ${message}`, { code, ...(hint === undefined ? {} : { hint }) });
  }
}

function tooMany(what: string, most: number): Fault {
  return bad(`more than ${most} ${what}`, "entry-size");
}

function bad(reason: string, code: string): Fault {
  return new Fault("invalid", `invalid registration entry: ${reason}`, { code });
}
