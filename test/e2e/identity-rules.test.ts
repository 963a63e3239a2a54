import { mkdir, mkdtemp, readdir, readFile, readlink, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { loadAgentConfig } from "../../agent/config.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { isFault } from "../../src/runtime/fault.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { createCa } from "../support/pki.ts";
import { startServer } from "../support/server.ts";
import { runServerProcess, writeServerConfig } from "../support/server-process.ts";

describe("the signing authority of a trust domain", () => {
  test("ID-22: without an authority the server does not start, and signs nothing", async () => {
    const folder = await mkdtemp(join(tmpdir(), "steeple-id22-"));
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(() => rm(folder, { recursive: true, force: true }));
    const config = await writeServerConfig(folder, {});
    await mkdir(join(folder, "data", "keys.json"), { recursive: true });
    const server = runServerProcess(["run", "-config", config]);
    cleanup.defer(() => server.stop().then(() => undefined));
    expect(await server.exited()).toBe(1);
    expect(server.output()).toContain("keys.json");
    expect(server.logged("Starting Server APIs")).toEqual([]);
  });

  test("ID-23, ID-24, ID-25: it carries one ID, that of its own trust domain, without a path", async () => {
    await using server = await startServer({ trustDomain: "third.test" });
    const { x509_authorities } = await server.admin.bundle.GetBundle({});
    expect(x509_authorities).toHaveLength(1);
    const root = parseCertificate(x509_authorities[0]?.asn1 ?? new Uint8Array());
    expect(root.uris).toEqual(["spiffe://third.test"]);
    expect(root.isCa).toBe(true);
  });
});

describe("what an SVID says besides its ID", () => {
  test("ID-28: further names are carried and leave the identity as it is", async () => {
    await using server = await startServer();
    const agent = await server.attest();
    const dns_names = ["web.local", "*.web.local"];
    const { id } = await server.createEntry({ spiffeId: "spiffe://example.org/web", parentId: agent.id, dns_names });
    expect(id).not.toBe("");
    const ca = await createCa({ trustDomain: "example.org" });
    const { certificate } = await ca.issue({ uris: ["spiffe://example.org/web"], dnsNames: dns_names });
    expect(certificate.dnsNames).toEqual(dns_names);
    const authorities = () => [ca.certificate];
    expect(validateX509Svid({ chain: [certificate], authorities, at: new Date() })).toBe("spiffe://example.org/web");
  });

  test("ID-29: administrator rights of one trust domain's ID mean nothing for the same path in another", async () => {
    await using server = await startServer({ server: { admin_ids: ["spiffe://example.org/boss"] } });
    const boss = await server.mint("spiffe://example.org/boss");
    using own = server.connect(boss.tls);
    await expect(own.entry.CountEntries({})).resolves.toMatchObject({ count: 0 });
    // The same path, in another trust domain, whose bundle this server does not even hold.
    const ca = await createCa({ trustDomain: "partner.test" });
    const foreign = await ca.issue({ uris: ["spiffe://partner.test/boss"] });
    using other = server.connect({ chain: [foreign.certificate.raw], privateKey: foreign.signer.privateKey });
    await expect(other.entry.CountEntries({})).rejects.toSatisfy((error) => isFault(error, "unavailable"));
  });
});

describe("names that become part of an identity", () => {
  test("T-S4: a join token that could change a path is refused before anything is made of it", async () => {
    await using server = await startServer();
    for (const token of ["../server", "a/../b", "x?y", "x#y", "a%2fb", "a b", "é", "a\0b", ".", ".."]) {
      await expect(server.createToken({ token }), JSON.stringify(token)).rejects.toSatisfy((error) =>
        isFault(error, "invalid"),
      );
    }
    await expect(server.createToken({ token: "a-good.token_1" })).resolves.toBe("a-good.token_1");
    expect((await server.admin.entry.CountEntries({})).count).toBe(0);
  });

  test("T-S6: selectors and filters compare literally; dots, stars and percent signs are themselves", async () => {
    await using server = await startServer();
    const parentId = "spiffe://example.org/node";
    const names = ["a.b", "axb", "a%b", "a_b", "a*b", ".*", "%"];
    for (const [index, name] of names.entries()) {
      await server.createEntry({
        spiffeId: `spiffe://example.org/w${index}`,
        parentId,
        selectors: [`unix:user:${name}`],
        hint: name,
      });
    }
    for (const name of names) {
      const by_selectors = { selectors: [{ type: "unix", value: `user:${name}` }], match: "MATCH_SUPERSET" as const };
      expect((await server.admin.entry.CountEntries({ filter: { by_selectors } })).count, name).toBe(1);
      expect((await server.admin.entry.CountEntries({ filter: { by_hint: { value: name } } })).count, name).toBe(1);
    }
  });
});

describe("where the Workload Endpoint is exposed", () => {
  test("WEP-01, WEP-02, WEP-06: the agent listens on its Unix socket and on no network port", async () => {
    await using server = await startServer();
    await using agent = await startAgent(server);
    await server.createEntry({ spiffeId: "spiffe://example.org/web", parentId: agent.id(), selectors: [OWN_SELECTOR] });
    await eventually("the socket serves", () => agent.fetch().catch(() => undefined));
    expect(await listeningPorts(agent.pid)).toEqual([]);
    // The same look finds the server's port, so it can find one.
    expect(await listeningPorts(server.pid)).toEqual([server.port]);
  });

  test("WEP-05: a Unix socket is the default, and there is no key for a network address", () => {
    const { socketPath, trustDomain } = loadAgentConfig({ flags: { trustDomain: "example.org" } });
    expect(trustDomain).toBe(parseTrustDomain("example.org"));
    expect(socketPath).toBe("/tmp/spire-agent/public/api.sock");
  });
});

/** TCP ports on which the process listens, by the sockets it holds. */
async function listeningPorts(pid: number): Promise<readonly number[]> {
  const links = await Promise.all(
    (await readdir(`/proc/${pid}/fd`)).map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")),
  );
  const held = new Set(links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []));
  const ports = new Set<number>();
  for (const table of ["tcp", "tcp6"]) {
    const rows = (await readFile(`/proc/net/${table}`, "utf8").catch(() => "")).trim().split("\n").slice(1);
    for (const row of rows.map((line) => line.trim().split(/\s+/))) {
      const [local, state, inode] = [row[1] ?? "", row[3], row[9] ?? ""];
      if (state === "0A" && held.has(inode)) ports.add(Number.parseInt(local.split(":")[1] ?? "", 16));
    }
  }
  return [...ports];
}
