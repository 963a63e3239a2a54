import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { Issuer, issueSelfSigned } from "../../server/ca/issue.ts";
import { TokenIssuer } from "../../server/ca/tokens.ts";
import { generateKey, KEY_TYPES, type KeyType } from "../../src/crypto/key.ts";
import { openDiskKeys } from "../../src/keys/disk.ts";
import type { KeyManager } from "../../src/keys/keys.ts";
import { openMemoryKeys } from "../../src/keys/memory.ts";
import { openPkcs11Keys } from "../../src/keys/pkcs11.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { id, TD } from "../server/ca/support.ts";
import { scenario } from "./scenario.ts";
import { perCpuSecond } from "./stats.ts";

const run = promisify(execFile);
const SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so";
const TTL = 86_400;

/** Signatures per second of each kind, by the authority's key type and key manager, beside `openssl speed` of one core. */
export const keyTypes = scenario({
  summary: "signing by key type and key manager, per second of CPU of one process, 16 in flight",
  async run({ limits, of, note }) {
    const folder = await mkdtemp(join(tmpdir(), "steeple-bench-keys-"));
    await using scope = new AsyncDisposableStack();
    scope.defer(() => rm(folder, { recursive: true }));
    const managers = [
      { name: "memory", open: async () => openMemoryKeys() },
      { name: "disk", open: () => openDiskKeys(join(folder, "keys.json")) },
      ...(existsSync(SOFTHSM) ? [{ name: "pkcs11 (SoftHSM)", open: () => openSoftHsm(folder) }] : []),
    ];
    if (!existsSync(SOFTHSM)) note("pkcs11: there is no SoftHSM on this machine");
    for (const { name, open } of managers) {
      await using keys = await open();
      for (const type of KEY_TYPES) {
        const limit = { name: `openssl speed ${type}, sign, one core`, value: (await limits.openssl(type)).sign };
        const { x509, jwt } = await ratesOf(keys, type);
        of(name).figure({ name: `X.509-SVIDs, ${type}`, unit: "/s", values: x509, limit });
        of(name).figure({ name: `JWT-SVIDs, ${type}`, unit: "/s", values: jwt, limit });
      }
    }
  },
});

async function ratesOf(keys: KeyManager, type: KeyType): Promise<{ readonly x509: number; readonly jwt: number }> {
  const [key, now] = [await keys.generate("x509-CA-A", type), systemClock.now()];
  const certificate = await issueSelfSigned({ trustDomain: TD, key, ttlSeconds: TTL, subject: {}, now });
  const { subjectKeyId, notBefore, notAfter } = certificate;
  const common = { id: subjectKeyId, key, issuedAt: now, notBefore, notAfter };
  const authority = { kind: "x509", ...common, certificate, intermediates: [], upstreamAuthorityId: "" } as const;
  const lifetimes = { defaultTtlSeconds: 3600, agentTtlSeconds: 3600, caTtlSeconds: TTL };
  const issuer = new Issuer({
    trustDomain: TD,
    authorities: { signing: () => authority },
    ...lifetimes,
    clock: systemClock,
  });
  const signing = (): typeof token => token;
  const token = { kind: "jwt", ...common } as const;
  const jwt = { authorities: { signing }, issuer: "", defaultTtlSeconds: 300 };
  const tokens = new TokenIssuer({ trustDomain: TD, jwt, wit: undefined, clock: systemClock });
  const { publicKey } = await generateKey("ec-p256");
  const svid = { id: id("/web"), publicKey, ttlSeconds: 60, dnsNames: [], subject: {} };
  return {
    x509: await perCpuSecond(() => issuer.mint(svid), { inFlight: 16 }),
    jwt: await perCpuSecond(
      () => tokens.issueJwt({ id: id("/web"), audience: ["a"], ttlSeconds: 60, withJti: false }),
      { inFlight: 16 },
    ),
  };
}

async function openSoftHsm(folder: string): Promise<KeyManager> {
  await mkdir(join(folder, "tokens"));
  await writeFile(join(folder, "softhsm2.conf"), `directories.tokendir = ${join(folder, "tokens")}\n`);
  process.env["SOFTHSM2_CONF"] = join(folder, "softhsm2.conf");
  await run("softhsm2-util", ["--init-token", "--free", "--label", "bench", "--pin", "1234", "--so-pin", "5678"]);
  return openPkcs11Keys({ module: SOFTHSM, tokenLabel: "bench", pin: "1234", keyPrefix: "" });
}
