import { createPublicKey, generateKeyPairSync } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  answerChallenge,
  certificateFingerprint,
  serialNumberHex,
  writeEvidence,
} from "../../../src/evidence/x509pop.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PREFIX = "nodeattestor(x509pop): ";
const LOOPBACK = Buffer.from([127, 0, 0, 1]);

let ca: TestCa;
/** Another CA of the same name. */
let stranger: TestCa;
let server: TestServer;
let anonymous: Apis;
/** Trusts SVIDs of its own, checks addresses, and names agents by their common name. */
let exchange: TestServer;
let atExchange: Apis;
let folder: Awaited<ReturnType<typeof temporaryDirectory>>;
let caFile: string;

beforeAll(async () => {
  ca = await createCa({ uris: [], subject: { commonName: "node CA" } });
  stranger = await createCa({ uris: [], subject: { commonName: "node CA" } });
  folder = await temporaryDirectory();
  caFile = join(folder.path, "ca.pem");
  await writeFile(caFile, ca.pem);
  [server, exchange] = await Promise.all([
    startServer({ nodeAttestors: { x509pop: { ca_bundle_path: caFile, verify_client_ip: true } } }),
    startServer({ nodeAttestors: { x509pop: { mode: "spiffe", spiffe_prefix: "/nodes" } } }),
  ]);
  anonymous = server.connect();
  atExchange = exchange.connect();
});
afterAll(async () => {
  for (const resource of [anonymous, atExchange]) resource[Symbol.dispose]();
  for (const resource of [server, exchange, folder]) await resource[Symbol.asyncDispose]();
});

const node = (options: CertificateOptions = {}, issuer: TestCa = ca): Promise<Issued> =>
  issuer.issue({ uris: [], ipAddresses: [LOOPBACK], subject: { commonName: "node-1" }, ...options });

function evidence(issued: Issued, change: Partial<Evidence> = {}): Evidence {
  return {
    type: "x509pop",
    payload: writeEvidence(issued.chain),
    respond: (challenge) => answerChallenge(issued.signer.privateKey, challenge),
    ...change,
  };
}

describe("x509pop, honest", () => {
  test.each(["ec-p256", "ec-p384", "rsa-2048"] as const)(
    "a node with a %s key gets its ID, every selector, and may attest again",
    async (keyType) => {
      const intermediate = await ca.intermediate({ uris: [] });
      const issued = await node(
        {
          keyType,
          uris: ["x509pop://example.org/role/web/front", "x509pop://other.test/role/no", "x509pop://example.org/alone"],
        },
        intermediate,
      );
      const { certificate } = issued;
      const first = await attestWith(anonymous, evidence(issued));
      expect(first.id).toBe(`spiffe://example.org/spire/agent/x509pop/${certificateFingerprint(certificate)}`);
      expect(first.reattestable).toBe(true);
      expect(await selectorsOf(server, first.id)).toEqual(
        [
          "x509pop:subject:cn:node-1",
          `x509pop:ca:fingerprint:${certificateFingerprint(intermediate.certificate)}`,
          `x509pop:ca:fingerprint:${certificateFingerprint(ca.certificate)}`,
          `x509pop:serialnumber:${serialNumberHex(certificate)}`,
          "x509pop:san:role:web/front",
        ].sort(),
      );
      const again = await attestWith(anonymous, evidence(issued));
      expect(again.id).toBe(first.id);
      using old = server.connect(first.tls);
      await expect(old.agent.PostStatus({ agent_version: "1" })).rejects.toMatchObject({ kind: "denied" });
    },
  );

  test("a CA that is added to the bundle counts at once, and one that is taken out no longer", async () => {
    const issued = await node({}, stranger);
    expect(await refused(anonymous, evidence(issued))).toMatchObject({ kind: "denied" });
    await writeFile(caFile, ca.pem + stranger.pem);
    expect((await attestWith(anonymous, evidence(issued))).id).toContain("/x509pop/");
    await writeFile(caFile, ca.pem);
    expect(await refused(anonymous, evidence(issued))).toMatchObject({ kind: "denied" });
  });

  test("a bundle that cannot be read leaves the earlier one in use", async () => {
    await writeFile(caFile, "-----BEGIN CERTIFICATE-----");
    expect((await attestWith(anonymous, evidence(await node()))).reattestable).toBe(true);
    expect(server.logged("Changed CA bundle cannot be used; the earlier one stays in use")).not.toEqual([]);
    await writeFile(caFile, ca.pem);
  });
});

test("T-X5 T-S7 a name that is too long for a selector is refused, and the server goes on following its datastore", async () => {
  const issued = await node({ subject: { commonName: "a".repeat(9000) } });
  expect(await refused(anonymous, evidence(issued))).toEqual({
    kind: "invalid",
    message: `${PREFIX}selector value is longer than 8192 bytes`,
  });
  const other = await server.attest();
  await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: other.id });
  using apis = server.connect(other.tls);
  expect((await apis.entry.GetAuthorizedEntries({})).entries).toHaveLength(1);
  expect(server.logged("Could not read changes from the datastore; serving what is held")).toEqual([]);
});

const FORGED: Readonly<Record<string, { kind: string; message: string | RegExp; make: () => Promise<Evidence> }>> = {
  "T-N8 no certificate": {
    kind: "invalid",
    message: "no certificate to attest",
    make: async () => evidence(await node(), { payload: '{"certificates":[]}' }),
  },
  "no JSON": {
    kind: "invalid",
    message: "failed to unmarshal data: not JSON",
    make: async () => evidence(await node(), { payload: "secret" }),
  },
  "base64 that is none": {
    kind: "invalid",
    message: 'failed to unmarshal data: "certificates.0" is not of the expected form',
    make: async () => evidence(await node(), { payload: '{"certificates":["a*b"]}' }),
  },
  "a certificate that is none": {
    kind: "invalid",
    message: /^unable to parse leaf certificate: /,
    make: async () => evidence(await node(), { payload: writeEvidence([Buffer.from("no certificate")]) }),
  },
  "T-N5 more intermediates than allowed": {
    kind: "invalid",
    message: "too many intermediate certificates",
    make: async () => {
      const { der, signer, chain } = await node();
      return evidence({ signer, chain: [...chain, der, der, der, der, der] } as unknown as Issued);
    },
  },
  "T-N5 an RSA key beyond the limit, before any signature is looked at": {
    kind: "invalid",
    message: /^leaf certificate key is not accepted: /,
    make: async () => evidence(await node({ publicKey: hugeRsaKey() })),
  },
  "T-N5 an intermediate's RSA key beyond the limit": {
    kind: "invalid",
    message: /^intermediate certificate 0 key is not accepted: /,
    make: async () => {
      const { chain, signer } = await node();
      const { der } = await ca.issue({ uris: [], ca: true, keyUsage: ["keyCertSign"], publicKey: hugeRsaKey() });
      return evidence({ signer, chain: [...chain, der] } as unknown as Issued);
    },
  },
  "T-N8 a certificate without its signature": {
    kind: "denied",
    message: /^certificate verification failed: x509: certificate signature does not verify/,
    make: async () => evidence(await node({ tamper: (der) => der.fill(0, der.length - 64) })),
  },
  "T-X6 an RSA key of 1024 bits": {
    kind: "invalid",
    message: /^leaf certificate key is not accepted: /,
    make: async () => {
      const { publicKey } = generateKeyPairSync("rsa", { modulusLength: 1024 });
      return evidence(await node({ publicKey: publicKey.export({ type: "spki", format: "der" }) }));
    },
  },
  "a certificate of a stranger's CA with the same name": {
    kind: "denied",
    message: /^certificate verification failed: x509: /,
    make: async () => evidence(await node({}, stranger)),
  },
  "an expired certificate": {
    kind: "denied",
    message: /^certificate verification failed: x509: certificate has expired/,
    make: async () => evidence(await node({ notBefore: new Date(0), notAfter: new Date(1000) })),
  },
  "a certificate of the future": {
    kind: "denied",
    message: /^certificate verification failed: x509: certificate is not yet valid/,
    make: async () => evidence(await node({ notBefore: new Date("2090-01-01"), notAfter: new Date("2099-01-01") })),
  },
  "a certificate whose issuer is left out": {
    kind: "denied",
    message: /^certificate verification failed: x509: certificate signed by unknown authority/,
    make: async () => {
      const { chain, ...rest } = await node({}, await ca.intermediate({ uris: [] }));
      return evidence({ ...rest, chain: chain.slice(0, 1) });
    },
  },
  "a certificate by a leaf in the place of an authority": {
    kind: "denied",
    message: /^certificate verification failed: x509: /,
    make: async () => {
      const [above, { chain, ...rest }] = [await node(), await node()];
      const forged = await ca.issue({ uris: [], signedBy: above.signer, issuerName: above.certificate.subject });
      return evidence({ ...rest, ...forged, chain: [forged.der, ...above.chain] });
    },
  },
  "a certificate that may not sign": {
    kind: "denied",
    message: "unable to generate challenge: certificate not intended for digital signature use",
    make: async () => evidence(await node({ keyUsage: ["keyEncipherment"] })),
  },
  "a certificate without key usage": {
    kind: "denied",
    message: "unable to generate challenge: certificate not intended for digital signature use",
    make: async () => evidence(await node({ keyUsage: null })),
  },
  "a certificate for another address": {
    kind: "denied",
    message: "client IP 127.0.0.1 does not match any certificate IP SAN",
    make: async () => evidence(await node({ ipAddresses: [Buffer.from([10, 0, 0, 1])] })),
  },
  "T-N8 an answer of another key": {
    kind: "denied",
    message: "challenge response verification failed: ECDSA signature verify failed",
    make: async () => {
      const other = await node();
      return evidence(await node(), { respond: (asked) => answerChallenge(other.signer.privateKey, asked) });
    },
  },
  "T-N8 an answer without a signature": {
    kind: "denied",
    message: "challenge response verification failed: expecting ECDSA response",
    make: async () => evidence(await node(), { respond: () => "{}" }),
  },
  "an answer to another challenge": {
    kind: "denied",
    message: "challenge response verification failed: ECDSA signature verify failed",
    make: async () => {
      const issued = await node();
      const nonce = Buffer.alloc(32, 7).toString("base64");
      const other = Buffer.from(JSON.stringify({ ecdsa_signature: { nonce } }));
      return evidence(issued, { respond: () => answerChallenge(issued.signer.privateKey, other) });
    },
  },
};

/** 16,384 bits of modulus: nobody has the private key. */
function hugeRsaKey(): Uint8Array {
  const key = { kty: "RSA", e: "AQAB", n: Buffer.alloc(2048, 0xff).toString("base64url") };
  return createPublicKey({ key, format: "jwk" }).export({ type: "spki", format: "der" });
}

describe("x509pop, forged", () => {
  test.each(Object.entries(FORGED))("%s is refused", async (_, { kind, message, make }) => {
    const answer = await refused(anonymous, await make());
    expect(answer).toEqual({
      kind,
      message:
        typeof message === "string" ? PREFIX + message : expect.stringMatching(message.source.replace(/^\^/, "")),
    });
  });

  test("T-N14 a leaf that is its own evidence under two names cannot take another node's ID", async () => {
    const [one, two] = [await node(), await node()];
    const first = await attestWith(anonymous, evidence(one));
    const second = await attestWith(anonymous, evidence(two));
    expect(first.id).not.toBe(second.id);
  });
});

test("T-S1 a name in an agent's path that is no segment makes no ID, and no other name is made of it", async () => {
  const agent_path_template = "/{{ .PluginName }}/{{ .Subject.CommonName }}";
  await using named = await startServer({
    nodeAttestors: { x509pop: { ca_bundle_path: caFile, agent_path_template } },
  });
  using apis = named.connect();
  const attest = async (commonName: string) => evidence(await node({ subject: { commonName } }));
  for (const name of ["..", ".", "a/b", "../server", "%2e%2e", "a%2Fb", "a?b", "a#b", "a b", "n\u043ede", "a\0b"]) {
    const { kind, message } = await refused(apis, await attest(name));
    expect([name, kind, message]).toEqual([name, "denied", expect.stringMatching(/failed to make spiffe id|^nodeatt/)]);
  }
  expect((await attestWith(apis, await attest("rack-7.b_1"))).id).toBe(
    "spiffe://example.org/spire/agent/x509pop/rack-7.b_1",
  );
  expect(await named.admin.agent.CountAgents({})).toEqual({ count: 1 });
});

describe("x509pop in spiffe mode", () => {
  const shown = (svid: Awaited<ReturnType<TestServer["mint"]>>): Evidence => ({
    type: "x509pop",
    payload: writeEvidence(svid.chain.map(({ raw }) => raw)),
    respond: (challenge) => answerChallenge(svid.signer.privateKey, challenge),
  });

  test("an SVID below the prefix becomes the agent's path", async () => {
    const svid = await exchange.mint("spiffe://example.org/nodes/rack/7");
    const attested = await attestWith(atExchange, shown(svid));
    expect(attested.id).toBe("spiffe://example.org/spire/agent/x509pop/rack/7");
  });

  test.each(["spiffe://example.org/nodesx/7", "spiffe://example.org/web"])("%s is not below it", async (id) => {
    expect(await refused(atExchange, shown(await exchange.mint(id)))).toEqual({
      kind: "denied",
      message: `${PREFIX}x509 cert doesnt match SVID prefix`,
    });
  });

  test("an SVID of another trust domain with the same authority's name is refused", async () => {
    const foreign = await createCa();
    const issued = await foreign.issue({ id: "spiffe://example.org/nodes/7" });
    expect(await refused(atExchange, evidence(issued))).toMatchObject({ kind: "denied" });
  });
});
