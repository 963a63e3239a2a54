import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadCryptoki } from "../../../src/keys/cryptoki.ts";
import { openPkcs11Keys, type Pkcs11Options } from "../../../src/keys/pkcs11.ts";
import { keyManagerContract } from "../../contract/key-manager.ts";
import { faultFrom } from "../../support/faults.ts";
import { startServer } from "../../support/server.ts";

const MODULE = "/usr/lib/softhsm/libsofthsm2.so";
const run = promisify(execFile);

/** SoftHSM 2 of Debian's package `softhsm2`; where it is not installed these tests are passed over. */
describe.skipIf(!existsSync(MODULE))("keys in a PKCS#11 token", () => {
  let folder: string;
  let pinPath: string;
  let opened = 0;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "steeple-softhsm-"));
    await mkdir(join(folder, "tokens"));
    await writeFile(join(folder, "softhsm2.conf"), `directories.tokendir = ${join(folder, "tokens")}\n`);
    process.env["SOFTHSM2_CONF"] = join(folder, "softhsm2.conf");
    const token = ["--init-token", "--free", "--label", "ca", "--pin", "1234", "--so-pin", "5678"];
    await run("softhsm2-util", token);
    pinPath = join(folder, "pin");
    await writeFile(pinPath, "1234\n");
  });
  afterAll(() => rm(folder, { recursive: true }));

  const options = (more: Partial<Pkcs11Options> = {}): Pkcs11Options => {
    opened += 1;
    return { module: MODULE, tokenLabel: "ca", pin: "1234", keyPrefix: `${opened}/`, ...more };
  };

  keyManagerContract(() => openPkcs11Keys(options()));

  test("another process, or the next start, finds the keys again; another prefix does not", async () => {
    const given = options();
    const made = await (async () => {
      await using keys = await openPkcs11Keys(given);
      return await keys.generate("x509-CA-A", "ec-p384");
    })();
    await using again = await openPkcs11Keys(given);
    expect((await again.find("x509-CA-A"))?.publicKey).toEqual(made.publicKey);
    await using other = await openPkcs11Keys(options());
    expect(await other.find("x509-CA-A")).toBeUndefined();
  });

  test("the private key is sensitive, not extractable, and was made in the token", async () => {
    const given = options();
    await using keys = await openPkcs11Keys(given);
    await keys.generate("x509-CA-A", "ec-p256");
    const cryptoki = loadCryptoki(MODULE);
    const slot = cryptoki.tokens().find(({ label }) => label === "ca")?.slot ?? 0n;
    const session = cryptoki.openSession(slot);
    const privateKey = Buffer.alloc(8);
    privateKey.writeBigUInt64LE(3n);
    const label = Buffer.from(`${given.keyPrefix}x509-CA-A`);
    const [object = 0n, ...others] = cryptoki.find(session, [
      [0, privateKey],
      [3, label],
    ]);
    const flag = (type: number): number | undefined => cryptoki.read(session, object, type)[0];
    // CKA_SENSITIVE, CKA_ALWAYS_SENSITIVE, CKA_EXTRACTABLE, CKA_NEVER_EXTRACTABLE, CKA_LOCAL.
    expect([others.length, ...[0x103, 0x165, 0x162, 0x164, 0x163].map(flag)]).toEqual([0, 1, 1, 0, 1, 1]);
    // CKA_VALUE.
    expect(() => cryptoki.read(session, object, 0x11)).toThrow("C_GetAttributeValue failed: 0x11");
    cryptoki.closeSession(session);
  });

  test("T-J8 a wrong PIN, token or module is told, and never the PIN", async () => {
    const wrong = await faultFrom(openPkcs11Keys(options({ pin: "hunter2" })));
    expect([wrong.kind, wrong.message]).toEqual(["invalid", "C_Login failed: CKR_PIN_INCORRECT"]);
    expect((await faultFrom(openPkcs11Keys(options({ tokenLabel: "none" })))).message).toContain(
      'no token has the label "none"',
    );
    expect((await faultFrom(openPkcs11Keys(options({ module: "/no/such.so" })))).code).toBe("pkcs11-module");
  });

  test("a server keeps its authorities there: a restart goes on with them, and its folder holds no key", async () => {
    const pkcs11 = { module_path: MODULE, token_label: "ca", pin_path: pinPath, key_prefix: "server/" };
    const plugins = { keyManagers: { pkcs11 }, folder: join(folder, "server") };
    await mkdir(plugins.folder);
    const first = await startServer(plugins);
    const state = async (server: typeof first) => [
      (await server.admin.localAuthority.GetX509AuthorityState({})).active?.authority_id,
      (await server.admin.localAuthority.GetJWTAuthorityState({})).active?.authority_id,
    ];
    const before = await state(first);
    await first.mint("spiffe://example.org/w");
    await first.stop();
    await first[Symbol.asyncDispose]();
    await using second = await startServer(plugins);
    expect(await state(second)).toEqual(before);
    expect(existsSync(join(plugins.folder, "data", "keys.json"))).toBe(false);
  });
});
