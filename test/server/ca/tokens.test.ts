import { createPublicKey, verify } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TokenIssuer, type TokenSource } from "../../../server/ca/tokens.ts";
import { KEY_TYPES, type KeyType } from "../../../src/crypto/key.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { faultFrom } from "../../support/faults.ts";
import { id, ManualClock, START, TD } from "./support.ts";

const ALGORITHM: Readonly<Record<KeyType, string>> = {
  "ec-p256": "ES256",
  "ec-p384": "ES384",
  "rsa-2048": "RS256",
  "rsa-4096": "RS256",
};

async function source(type: KeyType, ttlSeconds = 86_400): Promise<TokenSource> {
  const key = await openMemoryKeys().generate("JWT-Signer-A", type);
  const notAfter = new Date(START.getTime() + ttlSeconds * 1000);
  const authority = { kind: "jwt", id: "kid-1", key, issuedAt: START, notBefore: START, notAfter } as const;
  return { authorities: { signing: () => authority }, issuer: "", defaultTtlSeconds: 300 };
}

function issuerOf(jwt: TokenSource, clock: Clock = new ManualClock()): TokenIssuer {
  return new TokenIssuer({ trustDomain: TD, jwt, wit: jwt, clock });
}

const request = { id: id("/web"), audience: ["a"], ttlSeconds: 0, withJti: false };

test.each(KEY_TYPES)("JWT-05 WIT-05 JWT-22 a key of type %s signs with its own algorithm", async (type) => {
  const jwt = await source(type);
  const issuer = issuerOf(jwt);
  const { key } = jwt.authorities.signing();
  const bound = { id: id("/web"), publicKey: key.publicKey, algorithm: "ES256", ttlSeconds: 0 } as const;
  const tokens = [(await issuer.issueJwt(request)).token];
  if (type === "ec-p256") tokens.push((await issuer.issueWit(bound)).token);
  for (const token of tokens) {
    const [header = "", payload = "", signature = ""] = token.split(".");
    expect(JSON.parse(Buffer.from(header, "base64url").toString())).toMatchObject({
      alg: ALGORITHM[type],
      kid: "kid-1",
    });
    const spki = createPublicKey({ key: Buffer.from(key.publicKey), format: "der", type: "spki" });
    const hash = ALGORITHM[type]?.endsWith("384") ? "sha384" : "sha256";
    const signed = Buffer.from(`${header}.${payload}`);
    const options = { key: spki, dsaEncoding: "ieee-p1363" } as const;
    expect(verify(hash, signed, options, Buffer.from(signature, "base64url"))).toBe(true);
    signed[signed.length - 1] = (signed.at(-1) ?? 0) ^ 1;
    expect(verify(hash, signed, options, Buffer.from(signature, "base64url"))).toBe(false);
  }
});

describe("lifetimes", () => {
  test("are whole seconds, at most the key's, and never over before they begin", async () => {
    const clock = new ManualClock();
    const issuer = issuerOf(await source("ec-p256", 1000), clock);
    const { issuedAt, expiresAt } = await issuer.issueJwt({ ...request, ttlSeconds: 10 });
    expect([issuedAt.getMilliseconds(), expiresAt.getTime() - issuedAt.getTime()]).toEqual([0, 10_000]);
    clock.move(900);
    const capped = await issuer.issueJwt(request);
    expect(capped.expiresAt.getTime() - capped.issuedAt.getTime()).toBe(100_000);
    expect(capped.ttlReason).toBe("the signing key ends then");
    expect((await issuer.issueJwt({ ...request, ttlSeconds: 99 })).ttlReason).toBeUndefined();
    clock.move(99.9);
    expect((await faultFrom(issuer.issueJwt(request))).code).toBe("token-key-ending");
  });
});

test("T-J5 nothing is signed while no key may sign", async () => {
  const jwt = await source("ec-p256");
  const signing = (): never => {
    throw new Fault("unavailable", "JWT key is expired", { code: "jwt-key-expired" });
  };
  const fault = await faultFrom(issuerOf({ ...jwt, authorities: { signing } }).issueJwt(request));
  expect([fault.kind, fault.code]).toEqual(["unavailable", "jwt-key-expired"]);
});

test("JWT-13 T-S10 an ID that no workload can have is refused, whoever asks", async () => {
  const issuer = issuerOf(await source("ec-p256"));
  for (const path of ["", "/spire/server", "/spire/agent/join_token/t"]) {
    const fault = await faultFrom(issuer.issueJwt({ ...request, id: id(path) }));
    expect(fault.kind).toBe("invalid");
  }
});

test("WIT-14 a thousand token ids are distinct", async () => {
  const issuer = issuerOf(await source("ec-p256"));
  const ids = await Promise.all(
    Array.from({ length: 1000 }, async () => {
      const { token } = await issuer.issueJwt({ ...request, withJti: true });
      return JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString()).jti as string;
    }),
  );
  expect(new Set(ids).size).toBe(1000);
  expect(Buffer.from(ids[0] ?? "", "base64url")).toHaveLength(16);
});
