import { createHash, sign } from "node:crypto";
import { expect } from "vitest";
import {
  type SignRequestOptions,
  signRequest,
  type VerifyRequestOptions,
  verifyRequest,
} from "../../../src/client/message-signature.ts";
import { proofRefusal } from "../../../src/client/wit-proof.ts";
import { parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { forge, type Members, type TestKey, testKey } from "../../support/tokens.ts";

export const NOW = new Date("2026-05-01T12:00:00Z");
export const now = NOW.getTime() / 1000;
const A = parseTrustDomain("example.org");
export const WEB = "spiffe://example.org/web";
export const API = "spiffe://example.org/api";
const TARGET = "https://api.test/a?x=1";
export const BODY = Buffer.from('{"order":1}');
const wa1 = testKey("wa1");
export const held = testKey("held");
export const callee = testKey("callee");
export const authorities = (trustDomain: TrustDomain) => (trustDomain === A ? [wa1.authority] : undefined);
export const digestOf = (body: Uint8Array): string => `sha-256=:${createHash("sha256").update(body).digest("base64")}:`;

function wit(sub: string, key: TestKey, claims: Members = {}): string {
  const jwk = { ...key.publicKey.export({ format: "jwk" }), alg: "ES256" };
  return forge(
    { alg: "ES256", kid: "wa1", typ: "wit+jwt" },
    { sub, exp: now + 3600, cnf: { jwk }, ...claims },
    wa1.privateKey,
  );
}

export const svid = { token: wit(WEB, held), privateKey: held.privateKey, algorithm: "ES256" } as const;
export const server = { token: wit(API, callee), privateKey: callee.privateKey, algorithm: "ES256" } as const;
export const HEADERS = { "content-type": "application/json", authorization: "Bearer abc", "txn-token": "t" };

export const signed = (options: Partial<SignRequestOptions> = {}) =>
  signRequest({ svid, at: NOW, method: "POST", target: TARGET, headers: HEADERS, body: BODY, ...options });

export type Received = Parameters<typeof verifyRequest>[0];

export const check = (received: Partial<Received>, options: VerifyRequestOptions & { readonly at?: Date } = {}) =>
  verifyRequest(
    { method: "POST", requestTarget: "/a?x=1", target: TARGET, headers: {}, body: BODY, ...received },
    { authorities, at: NOW, ...options },
  );

/** What a signature is made of, written out by hand: no code is shared with what is tested. */
export interface Craft {
  /** By name; undefined leaves a header out. */
  readonly headers?: Readonly<Record<string, string | undefined>>;
  readonly components?: readonly string[];
  readonly parameters?: Readonly<Record<string, string | undefined>>;
  readonly values?: Readonly<Record<string, string>>;
  readonly label?: string;
  readonly key?: TestKey;
}

export const PARAMETERS = {
  created: String(now),
  expires: String(now + 60),
  nonce: '"n1"',
  tag: '"wimse-workload-to-workload"',
  "wimse-aud": '"https://api.test/a"',
};
export const FIELDS: Readonly<Record<string, string>> = {
  ...HEADERS,
  "content-digest": digestOf(BODY),
  "workload-identity-token": svid.token,
};
export const COMPONENTS = ["@method", "@request-target", ...Object.keys(FIELDS)];

export function crafted({
  headers = {},
  components = COMPONENTS,
  parameters = {},
  values = {},
  label = "wimse",
  key = held,
}: Craft) {
  const given: Record<string, string | undefined> = { ...FIELDS, ...headers };
  const all = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as Record<
    string,
    string
  >;
  const known: Readonly<Record<string, string>> = { "@method": "POST", "@request-target": "/a?x=1", ...all, ...values };
  const quoted = components.map((name) => (name.startsWith("(") ? name.slice(1) : `"${name}"`));
  const set = Object.entries({ ...PARAMETERS, ...parameters }).filter(([, value]) => value !== undefined);
  const input = `(${quoted.join(" ")})${set.map(([name, value]) => (value === "" ? `;${name}` : `;${name}=${value}`)).join("")}`;
  const lines = components.map((name, index) => `${quoted[index]}: ${known[name] ?? ""}`);
  const base = [...lines, `"@signature-params": ${input}`].join("\n");
  const bytes = sign("sha256", Buffer.from(base), { key: key.privateKey, dsaEncoding: "ieee-p1363" });
  return { ...all, "signature-input": `${label}=${input}`, signature: `${label}=:${bytes.toString("base64")}:` };
}

export async function refused(
  received: Partial<Received>,
  code: string,
  options: VerifyRequestOptions & { at?: Date } = {},
) {
  expect((await check({ headers: crafted({}) })).id).toBe(WEB);
  const found = await faultFrom(check(received, options));
  expect(found).toMatchObject(refusal("invalid", code));
  expect(proofRefusal(found).status).toBe(400);
}
