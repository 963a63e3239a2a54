import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import {
  type ReceivedResponse,
  type SignedRequest,
  type SignRequestOptions,
  type SignResponseOptions,
  signResponse,
  type VerifiedRequest,
  type VerifyResponseOptions,
  verifyResponse,
} from "../../../src/client/message-signature.ts";
import { ReplayCache } from "../../../src/client/replay-cache.ts";
import { proofRefusal } from "../../../src/client/wit-proof.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { forge } from "../../support/tokens.ts";
import {
  API,
  authorities,
  BODY,
  COMPONENTS,
  callee,
  check,
  crafted,
  digestOf,
  FIELDS,
  HEADERS,
  held,
  NOW,
  now,
  PARAMETERS,
  refused,
  server,
  signed,
  svid,
  WEB,
} from "./message-signature-fixture.ts";

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
