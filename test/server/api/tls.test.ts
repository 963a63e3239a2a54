import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { EXT_KEY_USAGE } from "../../../src/crypto/extensions.ts";
import { type LocalSigner, localSigner, privateKeyFromPkcs8 } from "../../../src/crypto/key.ts";
import type { TlsIdentity } from "../../../src/rpc/tls.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { startServer, type TestServer, type TestSvid } from "../../support/server.ts";
import { connectOnce, connects, handshake, identityOf } from "./handshakes.ts";

/** The server's own authority, with the key from its disk: signs what the server itself never would. */
interface StolenAuthority {
  readonly root: Certificate;
  issue(options: CertificateOptions): Promise<Issued>;
}

async function stealAuthority(server: TestServer, helper: TestCa): Promise<StolenAuthority> {
  const { keys } = JSON.parse(readFileSync(join(server.folder, "data", "keys.json"), "utf8")) as {
    readonly keys: Readonly<Record<string, string>>;
  };
  const signedBy: LocalSigner = localSigner(privateKeyFromPkcs8(Buffer.from(keys["x509-CA-A"] ?? "", "base64")));
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  const root = parseCertificate(x509_authorities.at(-1)?.asn1 ?? new Uint8Array());
  const authorityKeyId = Buffer.from(root.subjectKeyId, "hex");
  return { root, issue: (options) => helper.issue({ signedBy, issuerName: root.subject, authorityKeyId, ...options }) };
}

describe("the TLS port", () => {
  let server: TestServer;
  let authority: StolenAuthority;
  let helper: TestCa;
  let agent: TestSvid;
  beforeAll(async () => {
    server = await startServer();
    helper = await createCa();
    authority = await stealAuthority(server, helper);
    agent = await server.attest();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  test("takes a certificate of its own authority, with one URI and a path", async () => {
    const leaf = await authority.issue({ id: "spiffe://example.org/sound" });
    expect(await connects(server, identityOf(leaf))).toBe(true);
    expect(await handshake(server, identityOf(leaf))).toBe("open");
  });

  describe("T-C4 identity is the one URI of the leaf, after path validation, or nothing", () => {
    const rows: readonly {
      readonly what: string;
      readonly logged: RegExp;
      readonly make: () => Promise<TlsIdentity>;
    }[] = [
      {
        what: "self-issued with the authority's subject and the agent's ID",
        logged: /authority|signature|trust|chain/i,
        make: async () => {
          const impostor = await createCa({ subject: { commonName: "x" } });
          return identityOf(
            await impostor.issue({
              id: agent.id,
              issuerName: authority.root.subject,
              authorityKeyId: Buffer.from(authority.root.subjectKeyId, "hex"),
            }),
          );
        },
      },
      {
        what: "self-signed",
        logged: /authority|signature|trust|chain/i,
        make: async () => identityOf(await createCa({ id: agent.id, ca: false, keyUsage: ["digitalSignature"] })),
      },
      {
        what: "signed by a leaf that acts as an authority",
        logged: /CA|authority|chain|sign/i,
        make: async () => {
          const { signer, chain } = agent;
          const parent = chain[0] as Certificate;
          const rogue = await helper.issue({
            id: "spiffe://example.org/spire/agent/x",
            signedBy: signer,
            issuerName: parent.subject,
            authorityKeyId: Buffer.from(parent.subjectKeyId, "hex"),
          });
          return { chain: [rogue.der, parent.raw], privateKey: rogue.signer.privateKey };
        },
      },
      {
        what: "with two URIs",
        logged: /more than one URI SAN/,
        make: async () => identityOf(await authority.issue({ uris: [agent.id, "spiffe://example.org/x"] })),
      },
      {
        what: "with the ID only as common name",
        logged: /no URI SAN/,
        make: async () => identityOf(await authority.issue({ uris: [], subject: { commonName: agent.id } })),
      },
      {
        what: "with an ID without a path",
        logged: /no path/,
        make: async () => identityOf(await authority.issue({ id: "spiffe://example.org" })),
      },
      {
        what: "with an ID in upper case",
        logged: /scheme|trust domain characters/,
        make: async () => identityOf(await authority.issue({ uris: ["SPIFFE://EXAMPLE.ORG/x"] })),
      },
      {
        what: "that is a CA",
        logged: /CA flag/,
        make: async () => identityOf(await authority.issue({ id: agent.id, ca: true })),
      },
      {
        what: "that may sign certificates",
        logged: /KeyCertSign/,
        make: async () =>
          identityOf(await authority.issue({ id: agent.id, keyUsage: ["digitalSignature", "keyCertSign"] })),
      },
      {
        what: "T-X7 without digitalSignature",
        logged: /DigitalSignature/,
        make: async () => identityOf(await authority.issue({ id: agent.id, keyUsage: ["keyEncipherment"] })),
      },
      {
        what: "T-X7 for any purpose",
        logged: /extended key usage/,
        make: async () => identityOf(await authority.issue({ id: agent.id, extKeyUsage: [EXT_KEY_USAGE.any] })),
      },
      {
        what: "T-X7 for servers alone",
        logged: /extended key usage/,
        make: async () => identityOf(await authority.issue({ id: agent.id, extKeyUsage: [EXT_KEY_USAGE.serverAuth] })),
      },
      {
        what: "that has ended",
        logged: /expired|valid/i,
        make: async () =>
          identityOf(
            await authority.issue({
              id: agent.id,
              notBefore: new Date(Date.now() - 9000),
              notAfter: new Date(Date.now() - 1000),
            }),
          ),
      },
      {
        what: "that has not begun",
        logged: /valid|expired/i,
        make: async () => identityOf(await authority.issue({ id: agent.id, notBefore: new Date(Date.now() + 60_000) })),
      },
      {
        what: "T-S8 of another trust domain, signed by our own authority",
        logged: /unexpected trust domain in ID "spiffe:\/\/other.test\/x"/,
        make: async () => identityOf(await authority.issue({ id: "spiffe://other.test/x" })),
      },
      {
        what: "with an unknown critical extension",
        logged: /critical|extension/i,
        make: async () =>
          identityOf(
            await authority.issue({
              id: agent.id,
              extensions: [{ oid: "1.2.3.4", critical: true, value: new Uint8Array([5, 0]) }],
            }),
          ),
      },
    ];

    test.each(rows)("a certificate $what is refused at the handshake", async ({ make, logged }) => {
      const identity = await make();
      const before = server.logged("Connection refused").length;
      const record = await eventually("the refusal is logged, one a second at most", async () => {
        expect(await handshake(server, identity)).not.toBe("open");
        return server.logged("Connection refused")[before];
      });
      expect(String(record["error"])).toMatch(logged);
      expect(await connects(server, identity)).toBe(false);
    });

    test("a sound certificate for the ID of an agent that never attested is nobody's", async () => {
      const leaf = await authority.issue({ id: "spiffe://example.org/spire/agent/join_token/never" });
      using apis = server.connect(identityOf(leaf));
      expect(await faultFrom(apis.entry.GetAuthorizedEntries({}))).toMatchObject({
        kind: "denied",
        code: "agent-not-attested",
      });
    });

    test("a sound certificate for the ID of an agent, with another serial than the one recorded, is not the agent's", async () => {
      const leaf = await authority.issue({ id: agent.id });
      using apis = server.connect(identityOf(leaf));
      expect(await faultFrom(apis.entry.GetAuthorizedEntries({}))).toMatchObject({
        kind: "denied",
        code: "agent-not-active",
      });
    });
  });

  describe("T-X4 chains that are made to be searched for long", () => {
    const cpuMs = (): number => {
      const fields = readFileSync(`/proc/${server.pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
      return (Number(fields[11]) + Number(fields[12])) * 10;
    };
    const hostile: readonly { readonly what: string; readonly make: () => Promise<TlsIdentity> }[] = [
      {
        what: "nine intermediates of one name and one key, so that each could have issued each",
        make: async () => {
          const subject = { commonName: "loop" };
          const ca = await createCa({ subject });
          const loops = await Promise.all(
            Array.from({ length: 9 }, () => ca.intermediate({ subject, signer: ca.signer })),
          );
          const leaf = await ca.issue({ id: agent.id });
          return { chain: [leaf.der, ...loops.map(({ der }) => der)], privateKey: leaf.signer.privateKey };
        },
      },
      {
        what: "forty intermediates",
        make: async () => {
          const ca = await createCa();
          const many = await Promise.all(Array.from({ length: 40 }, () => ca.intermediate()));
          const leaf = await ca.issue({ id: agent.id });
          return { chain: [leaf.der, ...many.map(({ der }) => der)], privateKey: leaf.signer.privateKey };
        },
      },
      {
        what: "a leaf with 500 URIs",
        make: async () =>
          identityOf(
            await authority.issue({ uris: Array.from({ length: 500 }, (_, index) => `spiffe://example.org/${index}`) }),
          ),
      },
    ];
    test.each(hostile)("$what: refused in less than 50 ms of work", async ({ make }) => {
      const identity = await make();
      expect(await connects(server, identity)).toBe(false);
      const before = cpuMs();
      const times = 20;
      for (let count = 0; count < times; count += 1) await handshake(server, identity);
      expect((cpuMs() - before) / times).toBeLessThan(50);
      expect((await server.admin.bundle.GetBundle({})).trust_domain).toBe("example.org");
    });
  });

  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "T-C6 no %s session is ever resumed, so every connection is verified",
    async (version) => {
      const first = await connectOnce(server, agent.tls, version);
      const second = await connectOnce(server, agent.tls, version, first.session);
      expect([first.reused, second.reused, first.protocol, second.protocol]).toEqual([false, false, version, version]);
    },
  );

  test.each(["TLSv1", "TLSv1.1"] as const)("%s is refused", async (version) => {
    await expect(handshake(server, undefined, { minVersion: version, maxVersion: version })).resolves.toMatch(/error/);
  });
});
