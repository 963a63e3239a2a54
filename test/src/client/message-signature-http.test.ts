import { createPublicKey, verify } from "node:crypto";
import { once } from "node:events";
import { createServer, request as httpRequest, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { checkContentDigest } from "../../../src/client/content-digest.ts";
import {
  type SignRequestOptions,
  signRequest,
  signResponse,
  verifyRequest,
  verifyResponse,
} from "../../../src/client/message-signature.ts";
import { type SignedMessage, signatureBase } from "../../../src/client/signature-base.ts";
import { type InnerList, type Item, parseDictionary } from "../../../src/client/structured-fields.ts";
import { proofRefusal, WIMSE_DRAFTS } from "../../../src/client/wit-proof.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { API, authorities, NOW, server, svid, WEB } from "./message-signature-fixture.ts";

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
