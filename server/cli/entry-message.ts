import type { Entry, Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { FlagSpecs, FlagValues } from "../../src/runtime/flags.ts";
import { usage } from "./input.ts";
import { idFrom, int32From, selectorFrom } from "./match.ts";

/** The flags of `entry create` and `entry update` that describe the entry. */
export const entryFlags = {
  entryID: {
    type: "string",
    doc: "ID of the entry; entry create makes one when it is not given",
    default: "",
    complete: "entry",
  },
  parentID: { type: "string", doc: "The SPIFFE ID of this record's parent", default: "", complete: "parent" },
  spiffeID: { type: "string", doc: "The SPIFFE ID that this record represents", default: "", complete: "spiffe-id" },
  selector: { type: "strings", doc: "A colon-delimited type:value selector. Can be used more than once" },
  x509SVIDTTL: { type: "int", doc: "The lifetime, in seconds, for x509-SVIDs issued based on this entry", default: 0 },
  jwtSVIDTTL: { type: "int", doc: "The lifetime, in seconds, for JWT-SVIDs issued based on this entry", default: 0 },
  federatesWith: {
    type: "strings",
    doc: "SPIFFE ID of a trust domain to federate with. Can be used more than once",
    complete: "trust-domain",
  },
  dns: { type: "strings", doc: "A DNS name for SVIDs issued based on this entry. Can be used more than once" },
  admin: { type: "bool", doc: "If set, the SPIFFE ID in this entry may use the server's management APIs" },
  downstream: { type: "bool", doc: "If set, the entry describes a downstream server" },
  storeSVID: { type: "bool", doc: "If set, the SVID is stored through an SVIDStore plugin" },
  entryExpiry: { type: "int", doc: "When the entry ends and is pruned, in seconds since the epoch", default: 0 },
  hint: { type: "string", doc: "The entry hint, used to disambiguate entries with the same SPIFFE ID", default: "" },
  disableX509SVIDPrefetch: { type: "bool", doc: "If set, agents sign X.509-SVIDs for this entry only on demand" },
  jwtSVIDIncludeJTI: { type: "bool", doc: "If set, JWT-SVIDs of this entry carry a unique jti claim" },
  data: {
    type: "string",
    doc: "Path to a file with entries as JSON; '-' reads standard input",
    default: "",
    complete: "file",
  },
} as const satisfies FlagSpecs;

export type EntryFlags = FlagValues<typeof entryFlags>;

/** Throws `invalid`. The parent is empty for a node entry, whose parent the caller sets. */
export function entryFromFlags(flags: EntryFlags): Entry {
  return {
    id: flags.entryID,
    spiffe_id: idFrom(flags.spiffeID),
    ...(flags.parentID === "" ? {} : { parent_id: idFrom(flags.parentID) }),
    selectors: flags.selector.map(selectorFrom),
    x509_svid_ttl: int32From(flags.x509SVIDTTL, "X509 SVID TTL"),
    jwt_svid_ttl: int32From(flags.jwtSVIDTTL, "JWT SVID TTL"),
    federates_with: [...flags.federatesWith],
    dns_names: [...flags.dns],
    admin: flags.admin,
    downstream: flags.downstream,
    store_svid: flags.storeSVID,
    expires_at: flags.entryExpiry,
    hint: flags.hint,
    ...(flags.disableX509SVIDPrefetch || flags.jwtSVIDIncludeJTI
      ? {
          additional_attributes: {
            disable_x509_svid_prefetch: flags.disableX509SVIDPrefetch,
            jwt_svid_include_jti: flags.jwtSVIDIncludeJTI,
          },
        }
      : {}),
  };
}

/** What both commands ask of their flags, in SPIRE's order and words. */
export function checkEntryFlags(flags: EntryFlags): void {
  if (flags.selector.length === 0) throw usage("at least one selector is required", "add -selector type:value");
  if (flags.spiffeID === "") throw usage("a SPIFFE ID is required", "add -spiffeID spiffe://…");
  if (flags.x509SVIDTTL < 0)
    throw usage("a positive x509-SVID TTL is required", "leave -x509SVIDTTL out for the server's default");
  if (flags.jwtSVIDTTL < 0)
    throw usage("a positive JWT-SVID TTL is required", "leave -jwtSVIDTTL out for the server's default");
}

const DATA_HINT =
  'write {"entries": [{"parent_id": "spiffe://…", "spiffe_id": "spiffe://…", "selectors": [{"type": "unix", "value": "uid:1000"}]}]}';

type Json = Readonly<Record<string, unknown>>;

/** Reads `{"entries": […]}` in the form that SPIRE's `-data` takes. Throws `invalid`. */
export function entriesFromJson(text: string): Entry[] {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (error) {
    throw new Fault("invalid", `the entries are not valid JSON: ${messageOf(error)}`, {
      code: "entry-data",
      hint: DATA_HINT,
    });
  }
  const list = typeof document === "object" && document !== null ? (document as Json)["entries"] : undefined;
  if (!Array.isArray(list)) {
    throw new Fault("invalid", 'the data has no list "entries"', {
      code: "entry-data",
      hint: DATA_HINT,
    });
  }
  return list.map((item: unknown, index) => entryFromJson(item, `entries[${index}]`));
}

function entryFromJson(item: unknown, where: string): Entry {
  if (typeof item !== "object" || item === null) throw malformed(where, "an object");
  const json = item as Json;
  const read = new Reader(json, where);
  const attributes = json["additional_attributes"];
  const more =
    typeof attributes === "object" && attributes !== null ? new Reader(attributes as Json, where) : undefined;
  return {
    id: read.text("entry_id"),
    spiffe_id: idFrom(read.text("spiffe_id")),
    parent_id: idFrom(read.text("parent_id")),
    selectors: read.list("selectors", (value, path) => {
      if (typeof value !== "object" || value === null) throw malformed(path, "an object with type and value");
      const selector = new Reader(value as Json, path);
      return { type: selector.text("type"), value: selector.text("value") };
    }),
    x509_svid_ttl: int32From(read.number("x509_svid_ttl"), "X509 SVID TTL"),
    jwt_svid_ttl: int32From(read.number("jwt_svid_ttl"), "JWT SVID TTL"),
    federates_with: read.list("federates_with", textOf),
    dns_names: read.list("dns_names", textOf),
    admin: read.flag("admin"),
    downstream: read.flag("downstream"),
    store_svid: read.flag("store_svid"),
    expires_at: read.number("entryExpiry"),
    hint: read.text("hint"),
    ...(more === undefined
      ? {}
      : {
          additional_attributes: {
            disable_x509_svid_prefetch: more.flag("disable_x509_svid_prefetch"),
            jwt_svid_include_jti: more.flag("jwt_svid_include_jti"),
          },
        }),
  };
}

/** Fields of one object by type; an absent one is the zero value. Throws `invalid` naming the path. */
class Reader {
  readonly #json: Json;
  readonly #where: string;

  constructor(json: Json, where: string) {
    this.#json = json;
    this.#where = where;
  }

  text(name: string): string {
    return this.#read(name, "", "a string", (value): value is string => typeof value === "string");
  }

  number(name: string): number {
    return this.#read(name, 0, "an integer", (value): value is number => Number.isSafeInteger(value));
  }

  flag(name: string): boolean {
    return this.#read(name, false, "true or false", (value): value is boolean => typeof value === "boolean");
  }

  list<T>(name: string, item: (value: unknown, where: string) => T): T[] {
    const values = this.#read(name, [], "a list", (value): value is unknown[] => Array.isArray(value));
    return values.map((value, index) => item(value, `${this.#where}.${name}[${index}]`));
  }

  #read<T>(name: string, absent: T, wanted: string, is: (value: unknown) => value is T): T {
    const value = this.#json[name];
    if (value === undefined || value === null) return absent;
    if (is(value)) return value;
    throw malformed(`${this.#where}.${name}`, wanted);
  }
}

function textOf(value: unknown, where: string): string {
  if (typeof value === "string") return value;
  throw malformed(where, "a string");
}

function malformed(where: string, wanted: string): Fault {
  return new Fault("invalid", `${where} must be ${wanted}`, { code: "entry-data", hint: DATA_HINT });
}

/**
 * In the order in which SPIRE shows entries: by SPIFFE ID, parent, lifetimes, selectors, and the selectors of each by
 * type and value, in whatever order a server holds them.
 */
export function sortEntries(entries: readonly Entry__Output[]): Entry__Output[] {
  const keys = (entry: Entry__Output): readonly (string | number)[] => [
    entry.spiffe_id?.trust_domain ?? "",
    entry.spiffe_id?.path ?? "",
    entry.parent_id?.trust_domain ?? "",
    entry.parent_id?.path ?? "",
    entry.x509_svid_ttl,
    entry.jwt_svid_ttl,
    entry.selectors.length,
    ...entry.selectors.flatMap(({ type, value }) => [type, value]),
  ];
  return entries
    .map((entry) => ({ ...entry, selectors: entry.selectors.toSorted(bySelector) }))
    .map((entry) => ({ entry, keys: keys(entry) }))
    .sort((a, b) => compare(a.keys, b.keys))
    .map(({ entry }) => entry);
}

function bySelector(a: Entry__Output["selectors"][number], b: Entry__Output["selectors"][number]): number {
  return compare([a.type, a.value], [b.type, b.value]);
}

function compare(a: readonly (string | number)[], b: readonly (string | number)[]): number {
  const at = a.findIndex((key, index) => key !== b[index]);
  return at < 0 ? 0 : (a[at] ?? "") < (b[at] ?? "") ? -1 : 1;
}
