import { Fault } from "../runtime/fault.ts";
import { contextTag, DerReader, derFault, readAscii, readOnly, TAG } from "./der.ts";

/** The names of a certificate that constraints are held against. */
export interface ConstrainedNames {
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
  readonly ipAddresses: readonly Uint8Array[];
  readonly otherNames: number;
  /** Name, DER. */
  readonly subject: Uint8Array;
}

interface Subtrees {
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
  /** Address and mask, each 4 or 16 octets, in one. */
  readonly ipRanges: readonly Uint8Array[];
  /** Contents of the constraining Name: a prefix of the subject's. */
  readonly directories: readonly Uint8Array[];
}

/** RFC 5280, section 4.2.1.10. */
export interface NameConstraints {
  readonly permitted: Subtrees;
  readonly excluded: Subtrees;
  /** True when a form is constrained that is not understood here: such a certificate anchors nothing. */
  readonly unsupported: boolean;
}

/** Bounds the work that one certificate can ask for. T-X4. */
const MAX_SUBTREES = 256;

/** Throws `invalid`. */
export function readNameConstraints(value: Uint8Array): NameConstraints {
  const reader = readOnly(value);
  const permitted = readSubtrees(reader.optional(contextTag(0, true))?.body);
  const excluded = readSubtrees(reader.optional(contextTag(1, true))?.body);
  reader.end();
  return { permitted, excluded, unsupported: permitted.unsupported || excluded.unsupported };
}

function readSubtrees(body: Uint8Array | undefined): Subtrees & { readonly unsupported: boolean } {
  const found = {
    uris: [] as string[],
    dnsNames: [] as string[],
    ipRanges: [] as Uint8Array[],
    directories: [] as Uint8Array[],
  };
  let unsupported = false;
  let count = 0;
  for (const subtree of new DerReader(body ?? new Uint8Array()).rest(TAG.sequence)) {
    count += 1;
    if (count > MAX_SUBTREES) throw derFault("too many name constraints");
    const reader = new DerReader(subtree.body);
    const base = reader.read();
    if (base.tag === contextTag(6)) found.uris.push(readAscii(base.body).toLowerCase());
    else if (base.tag === contextTag(2)) found.dnsNames.push(readAscii(base.body).toLowerCase());
    else if (base.tag === contextTag(7)) found.ipRanges.push(readRange(base.body));
    else if (base.tag === contextTag(4, true)) found.directories.push(new DerReader(base.body).read(TAG.sequence).body);
    else unsupported = true;
    // `minimum` and `maximum` have no use in this profile.
    reader.end();
  }
  return { ...found, unsupported };
}

function readRange(body: Uint8Array): Uint8Array {
  if (body.length !== 8 && body.length !== 32) throw derFault("IP range has a wrong length");
  return body;
}

/** Throws `denied` when a name lies outside the constraints, or cannot be held against them. */
export function checkNameConstraints(
  { permitted, excluded, unsupported }: NameConstraints,
  names: ConstrainedNames,
): void {
  if (unsupported) throw refused("unsupported kind of name constraint");
  const subject = new DerReader(names.subject).read(TAG.sequence).body;
  check({
    what: "URI",
    names: names.uris.map(uriHost),
    permitted: permitted.uris,
    excluded: excluded.uris,
    within: hostWithin,
    touches: hostWithin,
  });
  const dnsNames = names.dnsNames.map((name) => name.toLowerCase());
  check({
    what: "DNS name",
    names: dnsNames,
    permitted: permitted.dnsNames,
    excluded: excluded.dnsNames,
    within: dnsWithin,
    touches: dnsTouches,
  });
  const ips = { permitted: permitted.ipRanges, excluded: excluded.ipRanges };
  check({ what: "IP address", names: names.ipAddresses, ...ips, within: ipWithin, touches: ipWithin });
  const directories = { permitted: permitted.directories, excluded: excluded.directories };
  check({
    what: "subject",
    names: subject.length === 0 ? [] : [subject],
    ...directories,
    within: startsWith,
    touches: startsWith,
  });
  const constrainsDirectories = permitted.directories.length + excluded.directories.length > 0;
  if (constrainsDirectories && names.otherNames > 0)
    throw refused("name of a kind that cannot be held against the constraints");
}

/** What `checkNameConstraints` costs at most. */
export function countComparisons({ permitted, excluded }: NameConstraints, names: ConstrainedNames): number {
  const trees = [permitted, excluded].flatMap((subtrees) => Object.values(subtrees)).flat().length;
  return trees * (names.uris.length + names.dnsNames.length + names.ipAddresses.length + 1);
}

interface Comparison<Name, Tree> {
  readonly what: string;
  /** Undefined stands for a name that has no comparable form. */
  readonly names: readonly (Name | undefined)[];
  readonly permitted: readonly Tree[];
  readonly excluded: readonly Tree[];
  /** Every host that the name stands for lies in the tree. */
  readonly within: (name: Name, tree: Tree) => boolean;
  /** Some host that the name stands for lies in the tree. */
  readonly touches: (name: Name, tree: Tree) => boolean;
}

function check<Name, Tree>({ what, names, permitted, excluded, within, touches }: Comparison<Name, Tree>): void {
  if (permitted.length + excluded.length === 0) return;
  for (const name of names) {
    if (name === undefined) throw refused(`${what} cannot be held against the constraints`);
    if (excluded.some((tree) => touches(name, tree))) throw refused(`${what} is excluded`);
    if (permitted.length > 0 && !permitted.some((tree) => within(name, tree)))
      throw refused(`${what} is not permitted`);
  }
}

const URI_HOST = /^[A-Za-z][A-Za-z0-9+.-]*:\/\/([A-Za-z0-9._-]+)(?::[0-9]*)?(?:[/?#]|$)/;

function uriHost(uri: string): string | undefined {
  return URI_HOST.exec(uri)?.[1]?.toLowerCase();
}

/** A tree with a leading dot holds the hosts below it; without one it is a single host. */
function hostWithin(host: string, tree: string): boolean {
  return tree.startsWith(".") ? host.length > tree.length && host.endsWith(tree) : host === tree;
}

function dnsWithin(name: string, tree: string): boolean {
  if (tree === "") return true;
  const base = name.startsWith("*.") ? name.slice(1) : name;
  if (tree.startsWith(".")) return base.length >= tree.length && base.endsWith(tree) && name !== tree;
  return name === tree || base.endsWith(`.${tree}`);
}

/** A wildcard also touches a tree that lies one label below its base. */
function dnsTouches(name: string, tree: string): boolean {
  if (dnsWithin(name, tree)) return true;
  if (!name.startsWith("*.")) return false;
  const base = name.slice(2);
  const bare = tree.startsWith(".") ? tree.slice(1) : tree;
  return bare.slice(bare.indexOf(".") + 1) === base;
}

function ipWithin(ip: Uint8Array, range: Uint8Array): boolean {
  const size = ip.length;
  return (
    range.length === 2 * size && ip.every((octet, i) => ((octet ^ (range[i] ?? 0)) & (range[size + i] ?? 0)) === 0)
  );
}

function startsWith(name: Uint8Array, tree: Uint8Array): boolean {
  return tree.every((octet, i) => name[i] === octet);
}

function refused(reason: string): Fault {
  return new Fault("denied", `x509: a certificate violates a name constraint of its issuer: ${reason}`, {
    code: "name-constraint",
  });
}
