import { Fault } from "../../src/runtime/fault.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import type { AttestedNode, Page, PageRequest } from "../store/store.ts";

/** What fits into one message beside its own overhead: gRPC peers refuse more than 4 MiB (T-F4). */
export const MAX_ANSWER_BYTES = 4 * 1024 * 1024 - 64 * 1024;
/** A larger `page_size` is answered with pages of this size. */
const MAX_PAGE_ITEMS = 1000;

export interface Listing<T> {
  readonly read: (page: PageRequest) => Promise<Page<T>>;
  /** At least the encoded size. */
  readonly sizeOf: (item: T) => number;
  /** Read at once. Default: 1000. */
  readonly maxItems?: number;
}

/**
 * One page, or everything when `pageSize` is not positive. A page that would not fit into one message is shortened, and
 * everything that would not is refused: a client that did not ask for pages must not take a part for the whole.
 */
export async function readPage<T>(pageSize: number, token: string, listing: Listing<T>): Promise<Page<T>> {
  const most = listing.maxItems ?? MAX_PAGE_ITEMS;
  return pageSize > 0 ? readOne(Math.min(pageSize, most), token, listing) : readAll(listing, most);
}

async function readOne<T>(size: number, token: string, listing: Listing<T>): Promise<Page<T>> {
  const page = await listing.read({ size, token });
  if (bytesOf(page.items, listing) <= MAX_ANSWER_BYTES) return page;
  if (page.items.length <= 1) throw tooLarge("mask some of its fields");
  return readOne(Math.max(1, Math.floor(page.items.length / 2)), token, listing);
}

async function readAll<T>(listing: Listing<T>, size: number): Promise<Page<T>> {
  const items: T[] = [];
  let bytes = 0;
  let token = "";
  do {
    const page = await listing.read({ size, token });
    items.push(...page.items);
    bytes += bytesOf(page.items, listing);
    if (bytes > MAX_ANSWER_BYTES) throw tooLarge("ask for pages with page_size");
    token = page.nextPageToken;
  } while (token !== "");
  return { items, nextPageToken: "" };
}

function bytesOf<T>(items: readonly T[], { sizeOf }: Listing<T>): number {
  return items.reduce((sum, item) => sum + sizeOf(item), 0);
}

function tooLarge(hint: string): Fault {
  return new Fault("exhausted", "the answer would be larger than a message may be", { code: "answer-too-large", hint });
}

/** Cuts items into pieces that each fit into one message and hold at most `maxItems`; always at least one piece. */
export function* pieces<T>(
  items: Iterable<T>,
  maxItems: number,
  sizeOf: (item: T) => number,
): Generator<{ readonly items: readonly T[]; readonly more: boolean }> {
  let piece: T[] = [];
  let bytes = 0;
  for (const item of items) {
    const size = sizeOf(item);
    if (piece.length > 0 && (piece.length === maxItems || bytes + size > MAX_ANSWER_BYTES)) {
      yield { items: piece, more: true };
      piece = [];
      bytes = 0;
    }
    piece.push(item);
    bytes += size;
  }
  yield { items: piece, more: false };
}

/** Fields and tags of a message, generously. */
const FRAME = 96;
/** A tag and a length. */
const FIELD = 7;
/** A tag and a number of any size. */
const NUMBER = 12;

/** An upper bound of an entry's encoded size. */
export function entryBytes(entry: Entry): number {
  const texts = [entry.id, entry.spiffeId, entry.parentId, entry.hint, ...entry.federatesWith, ...entry.dnsNames];
  return FRAME + textBytes(texts) + selectorBytes(entry.selectors);
}

/** An upper bound of an agent's encoded size. */
export function nodeBytes(node: AttestedNode): number {
  return (
    FRAME +
    textBytes([node.id, node.attestationType, node.serialNumber, node.agentVersion]) +
    selectorBytes(node.selectors)
  );
}

function textBytes(texts: readonly string[]): number {
  return texts.reduce((sum, text) => sum + Buffer.byteLength(text) + 8, 0);
}

function selectorBytes(selectors: readonly { readonly type: string; readonly value: string }[]): number {
  return selectors.reduce((sum, { type, value }) => sum + Buffer.byteLength(type) + Buffer.byteLength(value) + 16, 0);
}

/** An upper bound of the encoded size of any message with its tag and length; what is zero or empty is not sent. */
export function messageBytes(value: unknown): number {
  if (typeof value === "string") return value === "" ? 0 : Buffer.byteLength(value) + FIELD;
  if (value instanceof Uint8Array) return value.length === 0 ? 0 : value.length + FIELD;
  if (Array.isArray(value)) return value.reduce<number>((sum, item) => sum + messageBytes(item) + FIELD, 0);
  if (typeof value === "object" && value !== null)
    return Object.values(value).reduce<number>((sum, member) => sum + messageBytes(member), FIELD);
  return value ? NUMBER : 0;
}
