import { execFileSync } from "node:child_process";
import { appendFile, copyFile, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readPrivateKey } from "../../../src/evidence/ssh-key.ts";
import { answerChallenge, parseSshCertificate, sshFingerprint, writeEvidence } from "../../../src/evidence/sshpop.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused } from "../../support/attest.ts";
import { faultOf } from "../../support/faults.ts";
import { withoutKeygen } from "../../support/node-evidence.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PREFIX = "nodeattestor(sshpop): ";

let folder: Awaited<ReturnType<typeof temporaryDirectory>>;
let server: TestServer;
let anonymous: Apis;
let authorities: string;

const at = (name: string): string => join(folder.path, name);
const keygen = (...args: readonly string[]): void => void execFileSync("ssh-keygen", ["-q", ...args]);

interface HostOptions {
  readonly type?: readonly string[];
  readonly authority?: string;
  /** Further arguments of `ssh-keygen -s`. */
  readonly sign?: readonly string[];
  readonly principals?: string;
}

let hosts = 0;

/** A host's key and certificate, made by OpenSSH. */
async function host({
  type = ["ed25519"],
  authority = "ca",
  sign = ["-h"],
  principals = "web-1.prod.test",
}: HostOptions = {}) {
  hosts += 1;
  const path = at(`host-${hosts}`);
  keygen("-t", ...type, "-N", "", "-f", path);
  const names = principals === "" ? [] : ["-n", principals];
  keygen("-s", at(authority), "-I", "host", ...names, ...sign, `${path}.pub`);
  const raw = Buffer.from((await readFile(`${path}-cert.pub`, "utf8")).split(" ")[1] ?? "", "base64");
  return { path, raw, key: readPrivateKey(await readFile(path, "utf8")) };
}

function evidence({ raw, key }: Pick<Awaited<ReturnType<typeof host>>, "raw" | "key">): Evidence {
  return { type: "sshpop", payload: writeEvidence(raw), respond: (challenge) => answerChallenge(key, challenge) };
}

describe.skipIf(withoutKeygen)("sshpop, with keys of OpenSSH", () => {
  beforeAll(async () => {
    folder = await temporaryDirectory();
    for (const [name, ...type] of [
      ["ca", "ed25519"],
      ["rsa-ca", "rsa", "-b", "2048"],
      ["other", "ed25519"],
    ] as const)
      keygen("-t", ...type, "-N", "", "-f", at(name));
    authorities = at("authorities");
    await copyFile(at("ca.pub"), authorities);
    server = await startServer({
      nodeAttestors: {
        sshpop: {
          cert_authorities: [await readFile(at("rsa-ca.pub"), "utf8")],
          cert_authorities_path: authorities,
          canonical_domain: "prod.test",
          agent_path_template: "/{{ .PluginName }}/{{ .Hostname }}/{{ .Fingerprint | trunc 8 }}",
        },
      },
    });
    anonymous = server.connect();
  });
  afterAll(async () => {
    anonymous[Symbol.dispose]();
    await server[Symbol.asyncDispose]();
    await folder[Symbol.asyncDispose]();
  });

  test.each([
    ["ed25519"],
    ["ecdsa", "-b", "256"],
    ["ecdsa", "-b", "384"],
    ["ecdsa", "-b", "521"],
    ["rsa", "-b", "2048"],
  ])("a host with a key of type %s %s %s attests, as often as it likes", async (...type) => {
    const made = await host({ type: type.filter((part) => part !== undefined) });
    const first = await attestWith(anonymous, evidence(made));
    const fingerprint = sshFingerprint(parseSshCertificate(made.raw)).slice(0, 8);
    expect(first.id).toBe(`spiffe://example.org/spire/agent/sshpop/web-1/${fingerprint}`);
    expect(first.reattestable).toBe(true);
    expect((await attestWith(anonymous, evidence(made))).id).toBe(first.id);
  });

  test("an authority with an RSA key vouches by SHA-2 alone", async () => {
    const good = await host({ authority: "rsa-ca", sign: ["-h", "-t", "rsa-sha2-512"] });
    expect((await attestWith(anonymous, evidence(good))).reattestable).toBe(true);
    const old = await host({ authority: "rsa-ca", sign: ["-h", "-t", "ssh-rsa"] });
    expect(await refused(anonymous, evidence(old))).toEqual({
      kind: "denied",
      message: `${PREFIX}certificate signature does not verify`,
    });
  });

  test("an authority that is added to the file counts at once", async () => {
    const made = await host({ authority: "other" });
    expect(await refused(anonymous, evidence(made))).toMatchObject({ kind: "denied" });
    await appendFile(authorities, await readFile(at("other.pub"), "utf8"));
    expect((await attestWith(anonymous, evidence(made))).reattestable).toBe(true);
    await copyFile(at("ca.pub"), authorities);
  });

  test("an agent attests by its host's certificate", async () => {
    const { path } = await host();
    const nodeAttestor = { sshpop: { host_key_path: path, host_cert_path: `${path}-cert.pub` } };
    await using agent = await startAgent(server, { nodeAttestor });
    expect(agent.id()).toMatch(/\/spire\/agent\/sshpop\/web-1\/.{8}$/);
  });

  const FORGED: Readonly<Record<string, { kind: string; message: string; make: () => Promise<Evidence> }>> = {
    "a user's certificate": {
      kind: "denied",
      message: "certificate is not a host certificate",
      make: async () => evidence(await host({ sign: [] })),
    },
    "an unknown authority's": {
      kind: "denied",
      message: "no authorities for the certificate",
      make: async () => evidence(await host({ authority: "other" })),
    },
    "one without a host": {
      kind: "denied",
      message: "cert has no valid principals",
      make: async () => evidence(await host({ principals: "" })),
    },
    "an expired one": {
      kind: "denied",
      message: "cert has expired",
      make: async () => evidence(await host({ sign: ["-h", "-V", "20200101:20200102"] })),
    },
    "one of the future": {
      kind: "denied",
      message: "cert is not yet valid",
      make: async () => evidence(await host({ sign: ["-h", "-V", "20990101:20990102"] })),
    },
    "a host of another domain": {
      kind: "denied",
      message: 'failed to decanonicalize hostname: cert principal is not in domain ".prod.test"',
      make: async () => evidence(await host({ principals: "web.prod.test.evil" })),
    },
    "T-S1 a principal that is no path segment": {
      kind: "denied",
      message: 'failed to make spiffe id: the value of "Hostname" contains a slash',
      make: async () => evidence(await host({ principals: "../x.prod.test" })),
    },
    "T-N8 an answer of another key": {
      kind: "denied",
      message: "failed to verify signature",
      make: async () => evidence({ raw: (await host()).raw, key: (await host()).key }),
    },
    "T-N8 an answer without a signature": {
      kind: "denied",
      message: "failed to verify signature: there is none",
      make: async () => ({
        ...evidence(await host()),
        respond: () => JSON.stringify({ Nonce: Buffer.alloc(32).toString("base64"), Signature: null }),
      }),
    },
    "a bare key": {
      kind: "invalid",
      message: "pubkey in response is not a certificate",
      make: async () => {
        const { path, key } = await host();
        const raw = Buffer.from((await readFile(`${path}.pub`, "utf8")).split(" ")[1] ?? "", "base64");
        return evidence({ raw, key });
      },
    },
    "bytes behind the certificate": {
      kind: "invalid",
      message: "malformed SSH data: data follows the end",
      make: async () => {
        const { raw, key } = await host();
        return evidence({ raw: Buffer.concat([raw, Buffer.of(0)]), key });
      },
    },
    "a changed certificate": {
      kind: "denied",
      message: "certificate signature does not verify",
      make: async () => {
        const { raw, key } = await host();
        const at = raw.indexOf("web-1");
        return evidence({ raw: Buffer.concat([raw.subarray(0, at), Buffer.from("web-2"), raw.subarray(at + 5)]), key });
      },
    },
  };

  test.each(Object.entries(FORGED))("%s is refused", async (_, { kind, message, make }) => {
    expect(await refused(anonymous, await make())).toEqual({ kind, message: PREFIX + message });
  });

  test("a certificate that is cut anywhere is malformed, and never half read", async () => {
    const { raw } = await host();
    for (let length = 0; length < raw.length; length += 1)
      expect(faultOf(() => parseSshCertificate(raw.subarray(0, length))).kind).toBe("invalid");
  });

  test("an encrypted private key says so", async () => {
    keygen("-t", "ed25519", "-N", "secret", "-f", at("locked"));
    const text = await readFile(at("locked"), "utf8");
    expect(faultOf(() => readPrivateKey(text)).message).toContain("the private key is encrypted");
    await writeFile(at("locked"), "nothing");
    expect(faultOf(() => readPrivateKey("nothing")).message).toContain("unknown form");
  });
});
