import type { Entry } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { formatSelector, type Selector, storedSelector } from "../../src/spiffe/selector.ts";

/** No field of an entry has it: neither the rules for entries nor PostgreSQL let it in. */
const END = "\0";
/** Where fields stand. Federated trust domains, DNS names and selectors follow, of the first two so many. */
const [SPIFFE_ID, PARENT_ID, REVISION, CREATED, EXPIRES, X509_TTL, JWT_TTL, HINT, FEDERATED, NAMES, LISTS] = [
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
];
/** Bits of the first character. */
const FLAGS = { admin: 1, downstream: 2, storeSvid: 4, disableX509SvidPrefetch: 8, jwtSvidIncludeJti: 16 } as const;
const FEDERATES = 32;
const NONE: readonly never[] = Object.freeze([]);

/**
 * An entry as one text: the garbage collector has one thing to visit, with nothing in it, where the fields of an object
 * would be a dozen. Equal entries have equal texts.
 */
export function packed(entry: Entry): string {
  let flags = entry.federatesWith.length > 0 ? FEDERATES : 0;
  for (const flag of FLAG_NAMES) if (entry[flag]) flags |= FLAGS[flag];
  const fields: (string | number)[] = [
    String.fromCharCode(64 + flags) + entry.id,
    entry.spiffeId,
    entry.parentId,
    entry.revisionNumber,
    entry.createdAt,
    entry.expiresAt,
    entry.x509SvidTtl,
    entry.jwtSvidTtl,
    entry.hint,
    entry.federatesWith.length,
    entry.dnsNames.length,
  ];
  for (const name of entry.federatesWith) fields.push(name);
  for (const name of entry.dnsNames) fields.push(name);
  for (const selector of entry.selectors) fields.push(formatSelector(selector));
  return fields.join(END);
}

const FLAG_NAMES = Object.keys(FLAGS) as readonly (keyof typeof FLAGS)[];

/** Whether a packed entry has this id. */
export function hasId(text: string, id: string): boolean {
  return text.charCodeAt(1 + id.length) === 0 && text.startsWith(id, 1);
}

/** Whether a packed entry has this SPIFFE ID, or this one as its parent's. */
export function hasField(text: string, field: "spiffeId" | "parentId", id: string): boolean {
  const from = startOf(text, field === "spiffeId" ? SPIFFE_ID : PARENT_ID);
  return text.charCodeAt(from + id.length) === 0 && text.startsWith(id, from);
}

/** What `packed` made, to be read as an entry. Fields are read out of the text each time, but for the id. */
export class PackedEntry implements Entry {
  readonly id: string;
  readonly text: string;

  constructor(text: string) {
    this.id = text.slice(1, text.indexOf(END));
    this.text = text;
  }

  get spiffeId(): SpiffeId {
    return fieldOf(this.text, SPIFFE_ID) as SpiffeId;
  }

  get parentId(): SpiffeId {
    return fieldOf(this.text, PARENT_ID) as SpiffeId;
  }

  get revisionNumber(): number {
    return Number(fieldOf(this.text, REVISION));
  }

  get createdAt(): number {
    return Number(fieldOf(this.text, CREATED));
  }

  get expiresAt(): number {
    return Number(fieldOf(this.text, EXPIRES));
  }

  get x509SvidTtl(): number {
    return Number(fieldOf(this.text, X509_TTL));
  }

  get jwtSvidTtl(): number {
    return Number(fieldOf(this.text, JWT_TTL));
  }

  get hint(): string {
    return fieldOf(this.text, HINT);
  }

  get federatesWith(): readonly TrustDomain[] {
    return this.#has(FEDERATES) ? (this.#lists().federatesWith as readonly TrustDomain[]) : NONE;
  }

  get dnsNames(): readonly string[] {
    return this.#lists().dnsNames;
  }

  get selectors(): readonly Selector[] {
    return this.#lists().selectors.map(storedSelector);
  }

  get admin(): boolean {
    return this.#has(FLAGS.admin);
  }

  get downstream(): boolean {
    return this.#has(FLAGS.downstream);
  }

  get storeSvid(): boolean {
    return this.#has(FLAGS.storeSvid);
  }

  get disableX509SvidPrefetch(): boolean {
    return this.#has(FLAGS.disableX509SvidPrefetch);
  }

  get jwtSvidIncludeJti(): boolean {
    return this.#has(FLAGS.jwtSvidIncludeJti);
  }

  #has(flag: number): boolean {
    return (this.text.charCodeAt(0) & flag) !== 0;
  }

  #lists(): Readonly<Record<"federatesWith" | "dnsNames" | "selectors", readonly string[]>> {
    const fields = this.text.split(END);
    const dnsNames = LISTS + Number(fields[FEDERATED]);
    const selectors = dnsNames + Number(fields[NAMES]);
    return {
      federatesWith: fields.slice(LISTS, dnsNames),
      dnsNames: selectors > dnsNames ? fields.slice(dnsNames, selectors) : NONE,
      selectors: fields.slice(selectors),
    };
  }
}

function fieldOf(text: string, field: number): string {
  const from = startOf(text, field);
  return text.slice(from, text.indexOf(END, from));
}

/** Of a field that is not the last. */
function startOf(text: string, field: number): number {
  let from = 0;
  for (let at = 0; at < field; at += 1) from = text.indexOf(END, from) + 1;
  return from;
}
