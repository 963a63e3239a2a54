import { Fault } from "../../src/runtime/fault.ts";
import type { Page, PageRequest } from "./store.ts";

/** Larger pages are cut to this size, whatever the caller asks for (T-F4). */
export const MAX_PAGE_SIZE = 1000;

const MAX_BIGINT = 0x7fff_ffff_ffff_ffffn;

/** The position after which a page starts. Throws `invalid`. */
export function positionOf(token: string): string {
  if (token === "") return "0";
  if (!/^\d{1,20}$/.test(token)) throw badToken(token);
  const position = BigInt(token);
  return String(position < MAX_BIGINT ? position : MAX_BIGINT);
}

/** Rows to fetch for the page: one more than it holds, to see whether another follows. Throws `invalid`. */
export function sizeOf(page: PageRequest): number {
  if (!(page.size >= 1)) {
    throw new Fault("invalid", `cannot paginate with pagesize = ${page.size}`, { code: "page-size" });
  }
  return Math.min(Math.trunc(page.size), MAX_PAGE_SIZE);
}

/** Cuts the extra row off and makes the token from the last one that stays. */
export function pageOf<Row extends { readonly seq: string }, T>(
  rows: readonly Row[],
  convert: (row: Row) => T,
  page: PageRequest | undefined,
): Page<T> {
  const size = page === undefined ? rows.length : sizeOf(page);
  const kept = rows.slice(0, size);
  const last = rows.length > size ? kept.at(-1) : undefined;
  return { items: kept.map(convert), nextPageToken: last?.seq ?? "" };
}

function badToken(token: string): Fault {
  return new Fault("invalid", `could not parse token '${token.slice(0, 64)}'`, {
    code: "page-token",
    hint: "pass next_page_token of the page before, unchanged",
  });
}
