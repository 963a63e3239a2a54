import { createHash, createPublicKey, sign, verify } from "node:crypto";
import { once } from "node:events";
import { createServer, request as httpRequest, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { checkContentDigest } from "../../../src/client/content-digest.ts";
import {
  type ReceivedResponse,
  type SignedRequest,
  type SignRequestOptions,
  type SignResponseOptions,
  signRequest,
  signResponse,
  type VerifiedRequest,
  type VerifyRequestOptions,
  type VerifyResponseOptions,
  verifyRequest,
  verifyResponse,
} from "../../../src/client/message-signature.ts";
import { ReplayCache } from "../../../src/client/replay-cache.ts";
import { type SignedMessage, signatureBase } from "../../../src/client/signature-base.ts";
import { type InnerList, type Item, parseDictionary } from "../../../src/client/structured-fields.ts";
import { proofRefusal, WIMSE_DRAFTS } from "../../../src/client/wit-proof.ts";
import { parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { forge, type Members, type TestKey, testKey } from "../../support/tokens.ts";

const NOW = new Date("2026-05-01T12:00:00Z");
const now = NOW.getTime() / 1000;
const A = parseTrustDomain("example.org");
const WEB = "spiffe://example.org/web";
const API = "spiffe://example.org/api";
const TARGET = "https://api.test/a?x=1";
const BODY = Buffer.from('{"order":1}');
const wa1 = testKey("wa1");
const held = testKey("held");
const callee = testKey("callee");
const authorities = (trustDomain: TrustDomain) => (trustDomain === A ? [wa1.authority] : undefined);
const digestOf = (body: Uint8Array): string => `sha-256=:${createHash("sha256").update(body).digest("base64")}:`;

function wit(sub: string, key: TestKey, claims: Members = {}): string {
  const jwk = { ...key.publicKey.export({ format: "jwk" }), alg: "ES256" };
  return forge(
    { alg: "ES256", kid: "wa1", typ: "wit+jwt" },
    { sub, exp: now + 3600, cnf: { jwk }, ...claims },
    wa1.privateKey,
  );
}

const svid = { token: wit(WEB, held), privateKey: held.privateKey, algorithm: "ES256" } as const;
const server = { token: wit(API, callee), privateKey: callee.privateKey, algorithm: "ES256" } as const;
const HEADERS = { "content-type": "application/json", authorization: "Bearer abc", "txn-token": "t" };

const signed = (options: Partial<SignRequestOptions> = {}) =>
  signRequest({ svid, at: NOW, method: "POST", target: TARGET, headers: HEADERS, body: BODY, ...options });

type Received = Parameters<typeof verifyRequest>[0];

const check = (received: Partial<Received>, options: VerifyRequestOptions & { readonly at?: Date } = {}) =>
  verifyRequest(
    { method: "POST", requestTarget: "/a?x=1", target: TARGET, headers: {}, body: BODY, ...received },
    { authorities, at: NOW, ...options },
  );

/** What a signature is made of, written out by hand: no code is shared with what is tested. */
interface Craft {
  /** By name; undefined leaves a header out. */
  readonly headers?: Readonly<Record<string, string | undefined>>;
  readonly components?: readonly string[];
  readonly parameters?: Readonly<Record<string, string | undefined>>;
  readonly values?: Readonly<Record<string, string>>;
  readonly label?: string;
  readonly key?: TestKey;
}

const PARAMETERS = {
  created: String(now),
  expires: String(now + 60),
  nonce: '"n1"',
  tag: '"wimse-workload-to-workload"',
  "wimse-aud": '"https://api.test/a"',
};
const FIELDS: Readonly<Record<string, string>> = {
  ...HEADERS,
  "content-digest": digestOf(BODY),
  "workload-identity-token": svid.token,
};
const COMPONENTS = ["@method", "@request-target", ...Object.keys(FIELDS)];

function crafted({
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

async function refused(received: Partial<Received>, code: string, options: VerifyRequestOptions & { at?: Date } = {}) {
  expect((await check({ headers: crafted({}) })).id).toBe(WEB);
  const found = await faultFrom(check(received, options));
  expect(found).toMatchObject(refusal("invalid", code));
  expect(proofRefusal(found).status).toBe(400);
}

describe("published examples", () => {
  const pem = (body: string) => createPublicKey(`-----BEGIN PUBLIC KEY-----\n${body}\n-----END PUBLIC KEY-----\n`);
  const inputOf = (text: string): InnerList => [...parseDictionary(text).values()][0] as InnerList;
  const bytesOf = (text: string): Uint8Array => ([...parseDictionary(text).values()][0] as Item).value as Uint8Array;
  const digest = "sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:";

  test("RFC 9421, B.2.4: a response, ecdsa-p256-sha256", () => {
    const key = pem(
      "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf\nw0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==",
    );
    const input =
      'sig-b24=("@status" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-ecc-p256"';
    const message: SignedMessage = {
      status: 200,
      headers: { "content-type": "application/json", "content-digest": digest, "content-length": "23" },
      request: { method: "POST", requestTarget: "/foo" },
    };
    const base = signatureBase(inputOf(input), message);
    const signature = bytesOf(
      "sig-b24=:wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==:",
    );
    expect(verify("sha256", base, { key, dsaEncoding: "ieee-p1363" }, signature)).toBe(true);
    expect(() => checkContentDigest(digest, Buffer.from('{"message": "good dog"}'))).not.toThrow();
  });

  test("RFC 9421, B.2.6: a request, ed25519", () => {
    const key = pem("MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=");
    const input =
      'sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"';
    const headers = {
      date: "Tue, 20 Apr 2021 02:07:55 GMT",
      host: "example.com",
      "content-type": "application/json",
      "content-length": "18",
    };
    const base = signatureBase(inputOf(input), {
      headers,
      request: { method: "POST", requestTarget: "/foo?param=Value&Pet=dog" },
    });
    const signature = bytesOf(
      "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
    );
    expect(verify(null, base, key, signature)).toBe(true);
  });

  const jwk = (x: string) => createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
  const request = { method: "GET", requestTarget: "/gimme-ice-cream?flavor=vanilla" };

  test("WITX-14 WITX-15 the signed request of the draft", () => {
    const token =
      "eyJhbGciOiJFZERTQSIsImtpZCI6Imlzc3Vlci1rZXkiLCJ0eXAiOiJ3aXQrand0In0.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVkRFNBIiwiY3J2IjoiRWQyNTUxOSIsImtpZCI6InN2Yy1hLWtleSIsImt0eSI6Ik9LUCIsIngiOiJaamxWVDRDT3NDa1FPOUhJbzZ0RFdBWGF5UTBNeW1vRlVLSlJJUTdTOFI4In19LCJleHAiOjE3ODUxNTYwOTcsImlhdCI6MTc4NTE1NTc5NywiaXNzIjoiaHR0cHM6Ly9leGFtcGxlLmNvbS9pc3N1ZXIiLCJqdGkiOiJ3aXQtMTc4NTE1NTc5NzIxNjU0NTcxOSIsInN1YiI6IndpbXNlOi8vZXhhbXBsZS5jb20vc3ZjQSJ9.BqJfcsbrYlS9GSQ7NpFBBVz4CeszShqleIyr2sSnd0Ic6l2HXX27giZcdAOGnXjtv_7h-9vV16GZbVcrQt6hCg";
    const input =
      'wimse=("@method" "@request-target" "workload-identity-token");created=1785155797;expires=1785156097;nonce="abcd1111";tag="wimse-workload-to-workload";wimse-aud="https://svcb.example.com/gimme-ice-cream";wimse-sign-response';
    const base = signatureBase(inputOf(input), { headers: { "workload-identity-token": token }, request });
    const signature = bytesOf(
      "wimse=:zSK+kx5EnoZct9FZ6LMYzfx0mk32oI/hHpB7y4rgHxkRDcAA72yBW5xgzA03nKviXLjL7nphq840Uwznp6IKAw==:",
    );
    expect(verify(null, base, jwk("ZjlVT4COsCkQO9HIo6tDWAXayQ0MymoFUKJRIQ7S8R8"), signature)).toBe(true);
  });

  test("WITX-16 the signed response of the draft", () => {
    const token =
      "eyJhbGciOiJFZERTQSIsImtpZCI6Imlzc3Vlci1rZXkiLCJ0eXAiOiJ3aXQrand0In0.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVkRFNBIiwiY3J2IjoiRWQyNTUxOSIsImtpZCI6InN2Yy1iLWtleSIsImt0eSI6Ik9LUCIsIngiOiJsQnRMUzhjTnRfN3BXc2RpMnhneDc2MGxXcHpFdnFZZTJEcFNrOUVMSDJ3In19LCJleHAiOjE3ODUxNTYwOTksImlhdCI6MTc4NTE1NTc5OSwiaXNzIjoiaHR0cHM6Ly9leGFtcGxlLmNvbS9pc3N1ZXIiLCJqdGkiOiJ3aXQtMTc4NTE1NTc5NzIxNjY3MDUxOCIsInN1YiI6IndpbXNlOi8vZXhhbXBsZS5jb20vc3ZjQiJ9.HIAU2288ryXoym1M9fnKZqd0p2Vl7spOh-FY2jCFY-05H74-WPUFWrg5lH5f2rHl47TfxEGri3fmMP4zhYzeAw";
    const input =
      'wimse=("@status" "workload-identity-token" "content-type" "content-digest" "@method";req "@request-target";req);created=1785155797;expires=1785156099;nonce="abcd2222";tag="wimse-workload-to-workload";wimse-req-nonce="abcd1111"';
    const headers = {
      "content-digest": "sha-256=:UHKweBl9cpjdVqgTB65El8SexXlJYGG+XIslAYqC1mY=:",
      "content-type": "text/plain",
      "workload-identity-token": token,
    };
    const base = signatureBase(inputOf(input), { headers, request, status: 404 });
    const signature = bytesOf(
      "wimse=:57ZChndLoz5toS+/0RGeQJG53gLrZD/bBterOWnHF1vb0cdceeUOKH/t4A+/bvquC/0VCb5DYFRdFNz4CW8yBQ==:",
    );
    expect(verify(null, base, jwk("lBtLS8cNt_7pWsdi2xgx760lWpzEvqYe2DpSk9ELH2w"), signature)).toBe(true);
  });

  test("the draft's number is pinned", () => {
    expect(WIMSE_DRAFTS.signature).toBe("draft-ietf-wimse-http-signature-07");
  });
});

describe("a signed request", () => {
  test("WITX-14 WITX-15 WIT-36 covers what the draft names, with the parameters that it names", async () => {
    const { headers, nonce, requestTarget } = await signed({
      cover: ["X-Mine"],
      headers: { ...HEADERS, "X-Mine": " kept " },
    });
    expect(Object.keys(headers).sort()).toEqual([
      "content-digest",
      "signature",
      "signature-input",
      "workload-identity-token",
    ]);
    expect(headers["content-digest"]).toBe(digestOf(BODY));
    expect(headers["signature-input"]).toBe(
      `wimse=("@method" "@request-target" "content-type" "content-digest" "authorization" "txn-token" "workload-identity-token" "x-mine");created=${now};expires=${now + 60};nonce="${nonce}";tag="wimse-workload-to-workload";wimse-aud="https://api.test/a"`,
    );
    expect(Buffer.from(nonce, "base64url")).toHaveLength(16);
    expect((await signed()).nonce).not.toBe(nonce);
    const found = await check({ headers: { ...HEADERS, "x-mine": "kept", ...headers }, requestTarget });
    expect(found).toMatchObject({ id: WEB, nonce, signedResponse: false, method: "POST", requestTarget: "/a?x=1" });
    expect(found.claims["sub"]).toBe(WEB);
  });

  test("WITX-14 without a body has no Content-Digest, and is let in", async () => {
    const { headers } = await signed({ method: "GET", headers: {}, body: "" });
    expect(headers["content-digest"]).toBeUndefined();
    expect((await check({ method: "GET", headers, body: new Uint8Array() })).id).toBe(WEB);
  });

  test.each(COMPONENTS)("WITX-14 that does not cover %s is refused", async (name) => {
    await refused({ headers: crafted({ components: COMPONENTS.filter((one) => one !== name) }) }, "signature-coverage");
  });

  test("WITX-14 with a body and no Content-Digest is refused", async () => {
    const components = COMPONENTS.filter((name) => name !== "content-digest");
    await refused({ headers: crafted({ components, headers: { "content-digest": undefined } }) }, "content-digest");
  });

  test.each([
    { what: "another body", received: { body: Buffer.from('{"order":2}') }, code: "content-digest" },
    { what: "no body", received: { body: new Uint8Array() }, code: "content-digest" },
    { what: "another method", received: { method: "PUT" }, code: "proof-signature" },
    { what: "another query", received: { requestTarget: "/a?x=2" }, code: "proof-signature" },
    {
      what: "another path",
      received: { requestTarget: "/b?x=1", target: "https://api.test/b?x=1" },
      code: "proof-signature",
    },
  ])("WITX-14 WIT-46 with $what than was signed is refused", async ({ received, code }) => {
    await refused({ headers: crafted({}), ...received }, code);
  });

  test.each(Object.keys(FIELDS).filter((name) => name !== "workload-identity-token"))(
    "WITX-14 with another %s than was signed is refused",
    async (name) => {
      await refused({ headers: { ...crafted({}), [name]: "changed" } }, "proof-signature");
      await refused({ headers: { ...crafted({}), [name]: undefined } }, "signature-components");
    },
  );

  test.each([
    { what: "a weak digest alone", digest: `md5=:${createHash("md5").update(BODY).digest("base64")}:` },
    { what: "a digest of another body", digest: digestOf(Buffer.from("x")) },
    { what: "one of two digests wrong", digest: `${digestOf(BODY)}, sha-512=:AAAA:` },
    { what: "a digest that is no byte sequence", digest: 'sha-256="x"' },
  ])("WITX-14 $what is refused", async ({ digest }) => {
    await refused({ headers: crafted({ headers: { "content-digest": digest } }) }, "content-digest");
  });

  test.each(Object.keys(PARAMETERS))("WITX-15 without %s is refused", async (name) => {
    await refused({ headers: crafted({ parameters: { [name]: undefined } }) }, "signature-parameters");
  });

  test.each([
    { name: "keyid", value: '"k"' },
    { name: "alg", value: '"ecdsa-p256-sha256"' },
    { name: "wimse-req-nonce", value: '"n"' },
    { name: "scope", value: '"read"' },
    { name: "tag", value: '"another"' },
    { name: "tag", value: "wimse-workload-to-workload" },
    { name: "nonce", value: '""' },
    { name: "nonce", value: "7" },
    { name: "nonce", value: `"${"n".repeat(257)}"` },
    { name: "created", value: '"1"' },
    { name: "wimse-aud", value: "1" },
    { name: "wimse-sign-response", value: "1" },
  ])("WITX-15 WIT-46 with $name=$value is refused", async ({ name, value }) => {
    await refused({ headers: crafted({ parameters: { [name]: value } }) }, "signature-parameters");
  });

  test.each([
    { what: "expired", times: { created: now - 121, expires: now - 61 }, code: "proof-expired" },
    { what: "made in the future", times: { created: now + 61, expires: now + 120 }, code: "proof-created" },
    {
      what: "lasting more than five minutes",
      times: { created: now - 60, expires: now + 241 },
      code: "proof-lifetime",
    },
    { what: "expiring too far ahead", times: { created: now + 30, expires: now + 301 }, code: "proof-lifetime" },
    { what: "ending before it began", times: { created: now + 10, expires: now + 10 }, code: "proof-lifetime" },
  ])("WITX-15 WIT-42 WIT-43 $what is refused", async ({ times, code }) => {
    const parameters = { created: String(times.created), expires: String(times.expires) };
    await refused({ headers: crafted({ parameters }) }, code);
  });

  test("WITX-15 with a nonce that was used before is refused when a cache is on", async () => {
    const headers = crafted({});
    await check({ headers });
    await check({ headers });
    const replays = new ReplayCache();
    await check({ headers }, { replays });
    await refused({ headers }, "proof-replayed", { replays });
    await check({ headers: crafted({ parameters: { nonce: '"n2"' } }) }, { replays });
  });

  test("WITX-15 of those that ask at once with one nonce, one is let in", async () => {
    const replays = new ReplayCache();
    const headers = crafted({});
    const asked = await Promise.allSettled(Array.from({ length: 20 }, () => check({ headers }, { replays })));
    expect(asked.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("WITX-15 for another server is refused, but for an alias of this one", async () => {
    const headers = crafted({ parameters: { "wimse-aud": '"https://other.test/a"' } });
    await refused({ headers }, "proof-aud");
    expect((await check({ headers }, { aliases: ["https://other.test/a"] })).id).toBe(WEB);
    const { headers: named } = await signed({ audience: "urn:api" });
    expect((await check({ headers: { ...HEADERS, ...named } }, { aliases: ["urn:api"] })).id).toBe(WEB);
  });

  test("WIT-32 WIT-33 WITX-14 signed with another key, or of nobody's token, is refused", async () => {
    await refused({ headers: crafted({ key: callee }) }, "proof-signature");
    const stranger = {
      "workload-identity-token": forge({ alg: "ES256", kid: "wa1", typ: "wit+jwt" }, { sub: WEB }, held.privateKey),
    };
    await refused({ headers: crafted({ headers: stranger }) }, "token-signature");
    const bare = { "workload-identity-token": svid.token };
    await refused({ headers: bare }, "header-missing");
    await refused({ headers: { ...crafted({}), signature: undefined } }, "header-missing");
    await refused({ headers: { ...crafted({}), signature: "other=:AAAA:" } }, "signature-missing");
  });

  test("WIT-34 WIT-35 WITX-14 with the token as a bearer token is refused, and not made", async () => {
    const authorization = `Bearer ${svid.token}`;
    await refused({ headers: crafted({ headers: { authorization } }) }, "wit-bearer");
    expect(await faultFrom(signed({ headers: { Authorization: authorization } }))).toMatchObject(
      refusal("invalid", "wit-bearer"),
    );
  });

  test("WIT-45 without TLS is refused, and not sent", async () => {
    await refused({ headers: crafted({}), target: "http://api.test/a" }, "wit-plaintext");
    expect(await faultFrom(signed({ target: "http://api.test/a" }))).toMatchObject(refusal("invalid", "wit-plaintext"));
  });

  test("of several signatures the one labelled wimse counts, of one whatever its label", async () => {
    expect((await check({ headers: crafted({ label: "sig1" }) })).id).toBe(WEB);
    const sound = crafted({});
    const other = { "signature-input": 'a=("@method")', signature: "a=:AAAA:" };
    const both = {
      ...sound,
      "signature-input": `${other["signature-input"]}, ${sound["signature-input"]}`,
      signature: `${other.signature}, ${sound.signature}`,
    };
    expect((await check({ headers: both })).id).toBe(WEB);
    const named = crafted({ label: "b" });
    const none = {
      ...named,
      "signature-input": `${other["signature-input"]}, ${named["signature-input"]}`,
      signature: `${other.signature}, ${named.signature}`,
    };
    await refused({ headers: none }, "signature-missing");
  });

  test.each([
    { what: "one component twice", components: [...COMPONENTS, "@method"] },
    { what: "a derived component that is not known", components: [...COMPONENTS, "@target-uri"] },
    { what: "a field that is not there", components: [...COMPONENTS, "x-none"] },
    { what: "a field in upper case", components: [...COMPONENTS, "X-Mine"] },
    { what: "a component in a way that is not known", components: [...COMPONENTS, '("content-type";sf'] },
    { what: "a component of the request's request", components: [...COMPONENTS, '("@method";req'] },
  ])("that covers $what is refused", async ({ components }) => {
    await refused({ headers: crafted({ components }) }, "signature-components");
  });

  test("with a line break in what it covers is refused", async () => {
    const headers = { ...crafted({}), "content-type": 'a\n"@method": GET' };
    await refused({ headers }, "signature-components");
  });

  test("of more than is read is refused before it is looked at", async () => {
    await refused(
      { headers: { ...crafted({}), "signature-input": `wimse=(${'"a" '.repeat(5000)})` } },
      "structured-field",
    );
    const headers = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, i) => [`x-${i}`, "v"]));
    const wide = (count: number) =>
      crafted({ headers: headers(count), components: [...COMPONENTS, ...Object.keys(headers(count))] });
    expect((await check({ headers: wide(64 - COMPONENTS.length) })).id).toBe(WEB);
    await refused({ headers: wide(65 - COMPONENTS.length) }, "signature-components");
  });
});

describe("WITX-16 a signed response", () => {
  const body = Buffer.from("done");
  const answer = (request: VerifiedRequest, options: Partial<SignResponseOptions> = {}) =>
    signResponse({
      svid: server,
      at: NOW,
      status: 200,
      headers: { "content-type": "text/plain" },
      body,
      request,
      ...options,
    });
  const take = (
    request: SignedRequest,
    response: Partial<ReceivedResponse>,
    options: Partial<VerifyResponseOptions> = {},
  ) => verifyResponse({ status: 200, headers: {}, body, ...response }, { authorities, at: NOW, request, ...options });

  async function exchange(options: Partial<SignRequestOptions> = { signedResponse: true }) {
    const request = await signed(options);
    const received = await check({ headers: { ...HEADERS, ...request.headers } }, { signsResponses: true });
    const headers: Readonly<Record<string, string>> = { "content-type": "text/plain", ...(await answer(received)) };
    return { request, received, headers };
  }

  test("says who answered, and covers what the draft names", async () => {
    const { request, received, headers } = await exchange();
    expect(received.signedResponse).toBe(true);
    expect(headers["signature-input"]).toMatch(
      /^wimse=\("@status" "@method";req "@request-target";req "content-type" "content-digest" "workload-identity-token"\);created=\d+;expires=\d+;nonce="[^"]+";tag="wimse-workload-to-workload";wimse-req-nonce="[^"]+"$/,
    );
    expect((await take(request, { headers }))?.id).toBe(API);
  });

  test("that was demanded and is not there is refused; that was not demanded may be missing", async () => {
    const { request } = await exchange();
    expect(await faultFrom(take(request, {}))).toMatchObject(refusal("invalid", "response-unsigned"));
    expect(await take((await exchange({})).request, {})).toBeUndefined();
  });

  test("that was not demanded is refused all the same when it is wrong", async () => {
    const { request, headers } = await exchange({});
    expect((await take(request, { headers }))?.id).toBe(API);
    const found = await faultFrom(take(request, { headers, body: Buffer.from("other") }));
    expect(found).toMatchObject(refusal("invalid", "content-digest"));
    expect(await faultFrom(take(request, { headers: { ...headers, signature: undefined } }))).toMatchObject(
      refusal("invalid", "header-missing"),
    );
  });

  test("to another request is refused: the nonce has to be that of this one", async () => {
    const { request, received, headers } = await exchange();
    const { request: other } = await exchange();
    expect(await faultFrom(take(other, { headers }))).toMatchObject(refusal("invalid", "response-nonce"));
    const forged = await answer({ ...received, nonce: "n" });
    expect(await faultFrom(take(request, { headers: { "content-type": "text/plain", ...forged } }))).toMatchObject(
      refusal("invalid", "response-nonce"),
    );
  });

  test.each([
    { what: "another status", change: { status: 201 }, code: "proof-signature" },
    { what: "another body", change: { body: Buffer.from("other") }, code: "content-digest" },
  ])("with $what than was signed is refused", async ({ change, code }) => {
    const { request, headers } = await exchange();
    expect(await faultFrom(take(request, { headers, ...change }))).toMatchObject(refusal("invalid", code));
  });

  test("is refused where the server does not sign: 501, before the request counts as used", async () => {
    const request = await signed({ signedResponse: true });
    const headers = { ...HEADERS, ...request.headers };
    const replays = new ReplayCache();
    const found = await faultFrom(check({ headers }, { replays }));
    expect(found).toMatchObject(refusal("unimplemented", "response-signing"));
    expect(proofRefusal(found)).toEqual({ status: 501, message: "this server does not sign its answers" });
    expect((await check({ headers }, { replays, signsResponses: true })).signedResponse).toBe(true);
  });

  test("is refused when it came before", async () => {
    const { request, headers } = await exchange();
    const replays = new ReplayCache();
    await take(request, { headers }, { replays });
    expect(await faultFrom(take(request, { headers }, { replays }))).toMatchObject(
      refusal("invalid", "proof-replayed"),
    );
  });
});

describe("over HTTP", () => {
  /** A server that lets in whom it can prove, and signs when asked to; `tamper` stands between both. */
  async function serving(tamper: (headers: Record<string, string>) => void = () => {}) {
    const made = createServer(async (received, response) => {
      try {
        const { method = "", url: requestTarget = "", headers } = received;
        const target = new URL(requestTarget, "http://127.0.0.1:1/");
        target.port = String((made.address() as AddressInfo).port);
        const request = { method, requestTarget, target, headers, body: await buffer(received) };
        const found = await verifyRequest(request, { authorities, at: NOW, signsResponses: true });
        const text = `hello ${found.id}`;
        const added = { ...(await signResponse({ svid: server, at: NOW, status: 200, body: text, request: found })) };
        tamper(added);
        response.writeHead(200, found.signedResponse ? added : {}).end(text);
      } catch (error) {
        const { status, message } = proofRefusal(error);
        response.writeHead(status).end(message);
      }
    });
    made.listen(0, "127.0.0.1");
    await once(made, "listening");
    const url = `http://127.0.0.1:${(made.address() as AddressInfo).port}/a?x=1`;
    return { url, [Symbol.dispose]: () => made.close() };
  }

  async function send(
    url: string,
    options: Partial<SignRequestOptions>,
    change: Record<string, string | string[]> = {},
  ) {
    const body = Buffer.from("{}");
    const headers = { "content-type": "application/json" };
    const request = await signRequest({ svid, at: NOW, method: "POST", target: url, headers, body, ...options });
    const sent = httpRequest(url, { method: "POST", headers: { ...headers, ...request.headers, ...change } }).end(body);
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    return { request, response, status: response.statusCode ?? 0, body: await buffer(response) };
  }

  test("WITX-14 WITX-15 WITX-16 WITX-13 both ends prove who they are, and 400 without a challenge otherwise", async () => {
    using at = await serving();
    const sound = await send(at.url, { signedResponse: true });
    expect([sound.status, sound.body.toString()]).toEqual([200, `hello ${WEB}`]);
    const { request, response, status, body } = sound;
    const proved = await verifyResponse({ status, headers: response.headers, body }, { request, authorities, at: NOW });
    expect(proved?.id).toBe(API);
    for (const change of [{ "content-type": "text/plain" }, { "workload-identity-token": [svid.token, svid.token] }]) {
      const wrong = await send(at.url, {}, change);
      expect(wrong.status).toBe(400);
      expect(wrong.response.headers["www-authenticate"]).toBeUndefined();
    }
  });

  test("WITX-16 a proxy that strips the signature of the answer is found out", async () => {
    using at = await serving((headers) => {
      delete headers["signature"];
      delete headers["signature-input"];
    });
    const { request, response, status, body } = await send(at.url, { signedResponse: true });
    const found = faultFrom(
      verifyResponse({ status, headers: response.headers, body }, { request, authorities, at: NOW }),
    );
    expect(await found).toMatchObject(refusal("invalid", "response-unsigned"));
  });
});
