import { execFile } from "node:child_process";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, test } from "vitest";
import { generateKey, privateKeyToPkcs8 } from "../../../src/crypto/key.ts";
import { openDiskKeys } from "../../../src/keys/disk.ts";
import { exportingKeyManagerContract } from "../../contract/key-manager.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { openssl } from "../../support/openssl.ts";

const base = await mkdtemp(join(tmpdir(), "disk-keys-"));
afterAll(() => rm(base, { recursive: true, force: true }));

/** A path in a directory of its own. */
async function freshFile(): Promise<string> {
  return join(await mkdtemp(join(base, "case-")), "keys.json");
}

async function modeOf(path: string): Promise<number> {
  return (await stat(path)).mode & 0o777;
}

async function fileOf(...ids: readonly string[]): Promise<string> {
  const file = await freshFile();
  await using keys = await openDiskKeys(file);
  for (const id of ids) await keys.generate(id, "ec-p256");
  return file;
}

describe("keys on disk", () => {
  exportingKeyManagerContract(async () => openDiskKeys(await freshFile()));

  test("are there again after the manager is opened anew", async () => {
    const file = await freshFile();
    const made = await (async () => {
      await using keys = await openDiskKeys(file);
      return [await keys.generate("x509-CA-A", "ec-p384"), await keys.generate("JWT-Signer-A", "rsa-2048")];
    })();
    await using again = await openDiskKeys(file);
    expect(again.notices).toEqual([]);
    for (const { id, keyType, publicKey } of made) {
      expect(await again.find(id)).toMatchObject({ id, keyType, publicKey });
    }
  });

  test("are durable once generate has resolved, without closing", async () => {
    const file = await freshFile();
    await using keys = await openDiskKeys(file);
    const { publicKey } = await keys.generate("a", "ec-p256");
    await using other = await openDiskKeys(file);
    expect((await other.find("a"))?.publicKey).toEqual(publicKey);
  });
});

describe("the file of SPIRE", () => {
  test("is written: an object of base64 PKCS#8 under keys, which openssl reads", async () => {
    const file = await fileOf("x509-CA-B", "x509-CA-A");
    const data = JSON.parse(await readFile(file, "utf8")) as { keys: Record<string, string> };
    expect(Object.keys(data)).toEqual(["keys"]);
    expect(Object.keys(data.keys)).toEqual(["x509-CA-A", "x509-CA-B"]);
    await using directory = await openssl();
    await directory.write("key.der", Buffer.from(data.keys["x509-CA-A"] ?? "", "base64"));
    expect((await directory.run("pkey", "-inform", "DER", "-in", "key.der", "-noout", "-text")).toString()).toContain(
      "P-256",
    );
  });

  test("is read, with the indentation and order that Go gives it", async () => {
    const file = await freshFile();
    const signer = await generateKey("rsa-2048");
    const base64 = Buffer.from(privateKeyToPkcs8(signer.privateKey)).toString("base64");
    await writeFile(file, `{\n\t"keys": {\n\t\t"JWT-Signer-A": "${base64}"\n\t}\n}`, { mode: 0o600 });
    await using keys = await openDiskKeys(file);
    expect((await keys.find("JWT-Signer-A"))?.publicKey).toEqual(signer.publicKey);
  });

  test("may hold no keys", async () => {
    const file = await freshFile();
    await writeFile(file, '{"keys":{}}', { mode: 0o600 });
    await using keys = await openDiskKeys(file);
    expect(await keys.list()).toEqual([]);
  });
});

describe("T-F2 nobody else reads the keys", () => {
  test.each([0o000, 0o022, 0o077])(
    "the file has mode 0600 under the umask %o, and nothing else is left beside it",
    async (umask) => {
      const before = process.umask(umask);
      try {
        const file = await freshFile();
        await chmod(join(file, ".."), 0o700);
        await using keys = await openDiskKeys(file);
        await keys.generate("a", "ec-p256");
        expect(await modeOf(file)).toBe(0o600);
        await keys.generate("b", "ec-p256");
        expect(await modeOf(file)).toBe(0o600);
        expect(await readdir(join(file, ".."))).toEqual(["keys.json"]);
      } finally {
        process.umask(before);
      }
    },
  );

  test.each([0o644, 0o640, 0o660, 0o604])("a file of mode %o is tightened, and a notice says so", async (mode) => {
    const file = await fileOf("a");
    await chmod(file, mode);
    await using keys = await openDiskKeys(file);
    expect(keys.notices).toEqual([expect.stringContaining(file)]);
    expect(keys.notices[0]).toContain("0600");
    expect(await modeOf(file)).toBe(0o600);
    expect(await keys.list()).toHaveLength(1);
  });

  test("a directory that is missing is made, for the owner only", async () => {
    const file = join(await mkdtemp(join(base, "case-")), "new", "keys.json");
    await using keys = await openDiskKeys(file);
    await keys.generate("a", "ec-p256");
    expect(await modeOf(join(file, ".."))).toBe(0o700);
  });

  test("a directory that everyone can write to is refused", async () => {
    const file = await freshFile();
    await chmod(join(file, ".."), 0o777);
    expect(await faultFrom(openDiskKeys(file))).toMatchObject(refusal("precondition", "directory-unsafe"));
  });

  test("a link in the place of the file is replaced by a file, and what it points to stays as it is", async () => {
    const file = await freshFile();
    const target = join(file, "..", "target");
    await writeFile(target, '{"keys":{}}', { mode: 0o600 });
    await symlink(target, file);
    await using keys = await openDiskKeys(file);
    await keys.generate("a", "ec-p256");
    expect(await readFile(target, "utf8")).toBe('{"keys":{}}');
    expect(JSON.parse(await readFile(file, "utf8"))).toHaveProperty("keys.a");
  });
});

describe("a file that does not read is named, with the way out, and stays as it is", () => {
  const SECRET = "c2VjcmV0LXByaXZhdGUta2V5";
  const weak = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
  test.each([
    { what: "nothing", content: "" },
    { what: "half a file", content: `{"keys":{"a":"${SECRET}` },
    { what: "something else than JSON", content: `secret ${SECRET}` },
    { what: "an array", content: "[]" },
    { what: "null", content: "null" },
    { what: "no keys", content: "{}" },
    { what: "keys in a list", content: '{"keys":[]}' },
    { what: "a key that is no text", content: '{"keys":{"a":7}}' },
    { what: "a key that is not base64", content: `{"keys":{"a":"${SECRET}!"}}` },
    { what: "a key that is no PKCS#8", content: `{"keys":{"a":"${SECRET}"}}` },
    { what: "an Ed25519 key", content: `{"keys":{"a":"${weak}"}}` },
    { what: "more than 4 MiB", content: `{"keys":{}}${" ".repeat(4 * 1024 * 1024)}` },
  ])("$what", async ({ content }) => {
    const file = await freshFile();
    await writeFile(file, content, { mode: 0o600 });
    const fault = await faultFrom(openDiskKeys(file));
    expect(fault).toMatchObject({ ...refusal("invalid", "key-file"), hint: expect.stringContaining("move it away") });
    expect(fault.message).toContain(file);
    expect(await readFile(file, "utf8")).toBe(content);
    expect(`${fault.message} ${fault.hint} ${String(fault.cause)}`).not.toContain(SECRET);
  });

  test.each([
    { what: "a directory", make: (file: string) => mkdir(file) },
    { what: "a pipe", make: (file: string) => promisify(execFile)("mkfifo", [file]) },
  ])("$what in the place of the file", async ({ make }) => {
    const file = await freshFile();
    await make(file);
    const fault = await faultFrom(openDiskKeys(file));
    expect(fault.message).toContain(file);
    expect(fault.kind).toBe("unavailable");
  });
});

test("a key that could not be stored is not handed out, and the manager goes on", async () => {
  const file = await freshFile();
  const directory = join(file, "..");
  await using keys = await openDiskKeys(file);
  const { publicKey } = await keys.generate("a", "ec-p256");
  await rm(directory, { recursive: true });
  expect(await faultFrom(keys.generate("a", "ec-p256"))).toMatchObject({
    kind: "unavailable",
    message: expect.stringContaining(file),
  });
  expect((await keys.find("a"))?.publicKey).toEqual(publicKey);
  await mkdir(directory, { mode: 0o700 });
  await keys.generate("b", "ec-p256");
  await using again = await openDiskKeys(file);
  expect((await again.list()).map(({ id }) => id)).toEqual(["a", "b"]);
});
