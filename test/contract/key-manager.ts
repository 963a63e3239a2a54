import { createPublicKey, verify } from "node:crypto";
import { expect, test } from "vitest";
import { KEY_TYPES, privateKeyFromPkcs8, SIGNING_HASH } from "../../src/crypto/key.ts";
import type { ExportingKeyManager, KeyManager, ManagedKey } from "../../src/keys/keys.ts";

const MESSAGE = Buffer.from("to be signed");

async function signs(key: ManagedKey): Promise<boolean> {
  const publicKey = createPublicKey({ key: Buffer.from(key.publicKey), format: "der", type: "spki" });
  return verify(SIGNING_HASH[key.keyType], MESSAGE, publicKey, await key.sign(MESSAGE));
}

/** What every key manager keeps to. `open` gives an empty one. */
export function keyManagerContract(open: () => Promise<KeyManager>): void {
  test.each(KEY_TYPES)("a generated %s key signs, and is found again under its id", async (type) => {
    await using keys = await open();
    const made = await keys.generate("x509-CA-A", type);
    expect(made).toMatchObject({ id: "x509-CA-A", keyType: type });
    expect(await signs(made)).toBe(true);
    const found = await keys.find("x509-CA-A");
    expect(found?.publicKey).toEqual(made.publicKey);
    expect(found?.keyType).toBe(type);
    expect(found !== undefined && (await signs(found))).toBe(true);
  });

  test("an empty manager finds and lists nothing", async () => {
    await using keys = await open();
    expect(await keys.find("x509-CA-A")).toBeUndefined();
    expect(await keys.list()).toEqual([]);
  });

  test("generating again replaces the key, and the one handed out before goes on signing", async () => {
    await using keys = await open();
    const first = await keys.generate("a", "ec-p256");
    const second = await keys.generate("a", "ec-p384");
    expect(second.publicKey).not.toEqual(first.publicKey);
    expect((await keys.find("a"))?.publicKey).toEqual(second.publicKey);
    expect(await signs(first)).toBe(true);
    expect(await keys.list()).toHaveLength(1);
  });

  test("the list holds every key, sorted by id", async () => {
    await using keys = await open();
    for (const id of ["b", "c", "a"]) await keys.generate(id, "ec-p256");
    expect((await keys.list()).map(({ id }) => id)).toEqual(["a", "b", "c"]);
  });

  test("keys generated at the same time are all kept", async () => {
    await using keys = await open();
    const ids = Array.from({ length: 20 }, (_, i) => `key-${i}`);
    const made = await Promise.all(ids.map((id) => keys.generate(id, "ec-p256")));
    for (const { id, publicKey } of made) expect((await keys.find(id))?.publicKey).toEqual(publicKey);
    expect(await keys.list()).toHaveLength(20);
  });

  test("ids are taken as they are, however odd", async () => {
    await using keys = await open();
    const ids = ["__proto__", "constructor", "", "../../etc/passwd", "ü", "a\nb", "JWT-Signer-A"];
    for (const id of ids) {
      const made = await keys.generate(id, "ec-p256");
      expect((await keys.find(id))?.publicKey).toEqual(made.publicKey);
    }
    expect(await keys.list()).toHaveLength(ids.length);
    expect(await keys.find("toString")).toBeUndefined();
  });

  test("the private key is no part of what is handed out", async () => {
    await using keys = await open();
    const made = await keys.generate("a", "ec-p256");
    for (const key of [made, await keys.find("a"), ...(await keys.list())]) {
      expect(Object.keys(key ?? {}).sort()).toEqual(["id", "keyType", "publicKey", "sign"]);
    }
  });
}

/** What a key manager keeps to whose private keys can leave it. */
export function exportingKeyManagerContract(open: () => Promise<ExportingKeyManager>): void {
  keyManagerContract(open);

  test.each(KEY_TYPES)("the private key of a %s key can be taken out", async (type) => {
    await using keys = await open();
    const made = await keys.generate("agent-svid-A", type);
    const exported = privateKeyFromPkcs8((await keys.exportPrivateKey("agent-svid-A")) ?? new Uint8Array());
    expect(createPublicKey(exported).export({ format: "der", type: "spki" })).toEqual(Buffer.from(made.publicKey));
    expect(await keys.exportPrivateKey("another")).toBeUndefined();
  });
}
