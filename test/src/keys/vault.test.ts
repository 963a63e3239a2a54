import { createPublicKey, verify } from "node:crypto";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { KEY_TYPES, SIGNING_HASH } from "../../../src/crypto/key.ts";
import type { KeyManager, ManagedKey } from "../../../src/keys/keys.ts";
import { openVaultKeys } from "../../../src/keys/vault.ts";
import type { VaultAuth } from "../../../src/keys/vault-client.ts";
import { FakeClock } from "../../support/clock.ts";
import { faultFrom } from "../../support/faults.ts";
import { APPROLE, startVault, VAULT_TOKEN, type VaultDouble } from "../../support/vault.ts";

let vault: VaultDouble;
let clock: FakeClock;
beforeEach(async () => {
  vault = await startVault();
  clock = new FakeClock();
});
afterEach(() => vault[Symbol.asyncDispose]());

const TOKEN: VaultAuth = { method: "token", token: VAULT_TOKEN };
const ROLE: VaultAuth = { method: "approle", mount: "approle", ...APPROLE };

function open(serverId = "server-1", auth: VaultAuth = TOKEN): KeyManager {
  const config = { address: vault.address, insecureSkipVerify: false, auth };
  return openVaultKeys({ vault: config, mount: "transit", serverId, clock });
}

async function signs(key: ManagedKey): Promise<boolean> {
  const publicKey = createPublicKey({ key: Buffer.from(key.publicKey), format: "der", type: "spki" });
  const message = Buffer.from("to be signed");
  return verify(SIGNING_HASH[key.keyType], message, publicKey, await key.sign(message));
}

describe("keys in the transit engine", () => {
  test.each(KEY_TYPES)("a generated %s key signs, and is found again by the next start", async (type) => {
    const made = await open().generate("x509-CA-A", type);
    expect(made).toMatchObject({ id: "x509-CA-A", keyType: type });
    const found = await open().find("x509-CA-A");
    expect([found?.keyType, found?.publicKey]).toEqual([type, made.publicKey]);
    expect([await signs(made), found !== undefined && (await signs(found))]).toEqual([true, true]);
    expect(vault.keyNames()).toEqual([expect.stringMatching(/^server-1-[0-9a-f-]{36}-x509-CA-A$/)]);
  });

  test("generating again replaces the key; the one before goes on signing, the ones before that are deleted", async () => {
    const keys = open();
    const made = [];
    for (let count = 0; count < 4; count += 1) made.push(await keys.generate("a", "ec-p256"));
    expect(vault.keyNames()).toHaveLength(2);
    expect((await keys.find("a"))?.publicKey).toEqual(made[3]?.publicKey);
    expect(await signs(made[2] as ManagedKey)).toBe(true);
    expect(await keys.list()).toHaveLength(1);
  });

  test("servers that share an engine never see each other's keys, however alike their names", async () => {
    await open("server-1").generate("a", "ec-p256");
    await open("server-1-a").generate("a", "ec-p256");
    expect(await open("server").list()).toEqual([]);
    expect(await open("server-1").list()).toHaveLength(1);
    expect(await open("server-2").find("a")).toBeUndefined();
    expect((await faultFrom(open().generate("../x", "ec-p256"))).kind).toBe("invalid");
  });
});

describe("being somebody at Vault", () => {
  test("an AppRole logs in once, again when the lease is half over, and when the server has forgotten it", async () => {
    const keys = open("server-1", ROLE);
    await keys.generate("a", "ec-p256");
    await keys.find("a");
    expect(vault.logins()).toBe(1);
    await clock.advance(1_900_000);
    await keys.find("a");
    expect(vault.logins()).toBe(2);
    vault.revokeTokens();
    expect(await keys.find("a")).toBeDefined();
    expect(vault.logins()).toBe(3);
  });

  test("T-J8 a refusal says what Vault says, and nothing that is secret", async () => {
    const wrong: VaultAuth = { method: "approle", mount: "approle", roleId: "role", secretId: "hunter2" };
    const fault = await faultFrom(open("s", wrong).list());
    expect([fault.kind, fault.message]).toEqual([
      "invalid",
      "Vault refuses POST auth/approle/login with 400: invalid role or secret ID",
    ]);
    vault.revokeTokens();
    const denied = await faultFrom(open().list());
    expect([denied.kind, denied.message]).toEqual([
      "denied",
      "Vault refuses GET transit/keys?list=true with 403: permission denied",
    ]);
  });
});

test("a sealed or absent server delays: calls fail with unavailable, no key is made, and the handle works afterwards", async () => {
  const keys = open();
  const key = await keys.generate("a", "ec-p256");
  vault.seal(true);
  expect(await faultFrom(key.sign(Buffer.from("x")))).toMatchObject({
    kind: "unavailable",
    message: expect.stringContaining("503: Vault is sealed"),
  });
  expect((await faultFrom(keys.find("a"))).kind).toBe("unavailable");
  expect((await faultFrom(keys.generate("a", "ec-p256"))).kind).toBe("unavailable");
  vault.seal(false);
  expect([await signs(key), vault.keyNames().length]).toEqual([true, 1]);
  await vault[Symbol.asyncDispose]();
  const gone = await faultFrom(key.sign(Buffer.from("x")));
  expect([gone.kind, gone.code]).toEqual(["unavailable", "vault-away"]);
  vault = await startVault();
});
