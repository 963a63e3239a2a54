import { Fault } from "../../src/runtime/fault.ts";
import { parseSpiffeId, pathOf, trustDomainOf } from "../../src/spiffe/id.ts";

/** Reads `type:value` as it is; the server judges what is in it. Throws `invalid`. */
export function selectorFrom(text: string): { type: string; value: string } {
  const colon = text.indexOf(":");
  if (colon < 0) {
    throw new Fault("invalid", `selector "${text}" must be formatted as type:value`, {
      code: "selector-format",
      hint: "for example -selector unix:uid:1000",
    });
  }
  return { type: text.slice(0, colon), value: text.slice(colon + 1) };
}

/** Throws `invalid`. */
export function idFrom(text: string): { trust_domain: string; path: string } {
  const id = parseSpiffeId(text);
  return { trust_domain: trustDomainOf(id), path: pathOf(id) };
}

const MATCHES = { exact: "MATCH_EXACT", subset: "MATCH_SUBSET", superset: "MATCH_SUPERSET", any: "MATCH_ANY" } as const;

/** Throws `invalid`. */
export function matchFrom(word: string): (typeof MATCHES)[keyof typeof MATCHES] {
  if (Object.hasOwn(MATCHES, word)) return MATCHES[word as keyof typeof MATCHES];
  throw new Fault("invalid", `match behavior "${word}" unknown`, {
    code: "match-behavior",
    hint: `choose one of ${Object.keys(MATCHES).join(", ")}`,
  });
}

export const matchSelectorsFlag = {
  type: "string",
  doc: "The match mode used when filtering by selectors. Options: exact, any, superset and subset",
  default: "superset",
  complete: Object.keys(MATCHES),
} as const;
