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

/** The fault of what is read, with the words before it that SPIRE puts there. */
export function inContext<T>(context: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw withContext(context, error);
  }
}

export function withContext(context: string, error: unknown): Fault {
  const { kind, message, code, hint } = Fault.from(error);
  return new Fault(kind, `${context}: ${message}`, { code, cause: error, ...(hint === undefined ? {} : { hint }) });
}

/** A number that the wire holds in 32 bits and would cut. Throws `invalid`. */
export function int32From(value: number, what: string): number {
  if (Number.isInteger(value) && Math.abs(value) < 2 ** 31) return value;
  throw new Fault("invalid", `invalid value for ${what}: overflow converting int(${value}) to int32`, {
    code: "number-out-of-range",
    hint: "choose a smaller number of seconds",
  });
}

/** Throws `invalid`. */
export function idFrom(text: string): { trust_domain: string; path: string } {
  const id = parseSpiffeId(text);
  return { trust_domain: trustDomainOf(id), path: pathOf(id) };
}

const MATCHES = { exact: "MATCH_EXACT", subset: "MATCH_SUBSET", superset: "MATCH_SUPERSET", any: "MATCH_ANY" } as const;

/** Throws `invalid` with this text. */
export function matchFrom(
  word: string,
  refusal = `match behavior ${JSON.stringify(word)} unknown`,
): (typeof MATCHES)[keyof typeof MATCHES] {
  if (Object.hasOwn(MATCHES, word)) return MATCHES[word as keyof typeof MATCHES];
  throw new Fault("invalid", refusal, {
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
