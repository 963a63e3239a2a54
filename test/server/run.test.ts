import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import { access, mkdtemp, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadServerConfig } from "../../server/config.ts";
import { runServer } from "../../server/run.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import { BundleApi, HealthApi } from "../../src/rpc/protos.ts";
import { SteppedClock } from "../support/clock.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom } from "../support/faults.ts";
import { createDatabase, findPostgres, startCluster, withoutPostgres } from "../support/postgres.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { entryMessage, protoId, startServer, type TestServer } from "../support/server.ts";
import { freePort, runServerProcess, writeServerConfig } from "../support/server-process.ts";

/** A folder that outlives a server, for starting again on the same data. */
async function keptFolder(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), "steeple-run-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** Starts with this configuration file and expects it to give up; resolves with its status and what it printed. */
async function failsToStart(configFile: string): Promise<{ readonly status: number | null; readonly output: string }> {
  const running = runServerProcess(["run", "-config", configFile]);
  const status = await running.exited();
  return { status, output: running.output() };
}

async function takePort(): Promise<AsyncDisposable & { readonly port: number }> {
  const holder = createServer().listen(0, "127.0.0.1");
  await once(holder, "listening");
  const { port } = holder.address() as AddressInfo;
  return { port, [Symbol.asyncDispose]: () => new Promise<void>((done) => holder.close(() => done())) };
}

const PROBE_CSR = async (): Promise<Uint8Array> => createCertificateRequest({ signer: await generateKey("ec-p256") });

describe("a running server", () => {
  let server: TestServer;
  let healthPort: number;
  beforeAll(async () => {
    healthPort = await freePort();
    const health_checks = { listener_enabled: true, bind_port: healthPort };
    server = await startServer({ server: { audit_log_enabled: true }, sections: { health_checks } });
  });
  afterAll(() => server[Symbol.asyncDispose]());

  test("says `Starting Server APIs` once for each listener, with its address and network", async () => {
    const records = server.logged("Starting Server APIs");
    expect(
      records.map(({ address, network, subsystem_name, level }) => [address, network, subsystem_name, level]),
    ).toEqual([
      [`127.0.0.1:${server.port}`, "tcp", "endpoints", "info"],
      [server.socketPath, "unix", "endpoints", "info"],
    ]);
  });

  test("T-W10 its admin socket is for owner and group only, and its data for the owner only", () => {
    expect(statSync(server.socketPath).mode & 0o777).toBe(0o770);
    expect(statSync(join(server.folder, "data")).mode & 0o777).toBe(0o700);
    expect(statSync(join(server.folder, "data", "keys.json")).mode & 0o777).toBe(0o600);
  });

  test("answers on /live and /ready with 200 and a JSON object of subsystems, and 404 elsewhere", async () => {
    for (const path of ["/live", "/ready", "/ready?verbose"]) {
      const response = await fetch(`http://127.0.0.1:${healthPort}${path}`);
      expect([response.status, response.headers.get("content-type"), await response.json()]).toEqual([
        200,
        "application/json",
        { server: {}, "server.ca": {}, "catalog.datastore": {} },
      ]);
    }
    expect((await fetch(`http://127.0.0.1:${healthPort}/metrics`)).status).toBe(404);
  });

  test("answers gRPC health on the admin socket, for the server as a whole", async () => {
    expect(await server.admin.health.Check({})).toEqual({ status: "SERVING" });
    expect(await faultFrom(server.admin.health.Check({ service: "spire.api.server.entry.v1.Entry" }))).toMatchObject({
      kind: "invalid",
      message: "per-service health is not supported",
    });
  });

  test("writes one audit record for each call, and for each item of a batch", async () => {
    const sound = entryMessage({ spiffeId: "spiffe://example.org/audited", parentId: "spiffe://example.org/p" });
    await server.admin.entry.BatchCreateEntry({ entries: [sound, { ...sound, selectors: [] }] });
    await server.admin.entry.CountEntries({});
    await faultFrom(server.admin.entry.GetEntry({ id: "none" }));
    const records = await eventually("four records", () => {
      const found = server.logged("API accessed", { type: "audit", service: "entry.v1.Entry" });
      return found.length >= 4 && found;
    });
    expect(records.map(({ method, status, status_code }) => [method, status, status_code])).toEqual([
      ["BatchCreateEntry", "success", undefined],
      ["BatchCreateEntry", "error", 3],
      ["CountEntries", "success", undefined],
      ["GetEntry", "error", 5],
    ]);
    expect(records[0]).toMatchObject({
      spiffe_id: "spiffe://example.org/audited",
      caller_uid: process.getuid?.(),
      caller_gid: process.getgid?.(),
      authorized_as: "local",
      authorized_via: "transport",
      request_id: records[1]?.["request_id"],
    });
  });

  test("T-J8 logs no token, no key and no selector, whatever happens", async () => {
    const token = await server.createToken({ token: "canary-token-1", agentId: "spiffe://example.org/host" });
    const agent = await server.attest(token.replace("1", "2")).catch(() => server.attest(token));
    using apis = server.connect(agent.tls);
    const entry = await server.createEntry({
      spiffeId: "spiffe://example.org/secretive",
      parentId: agent.id,
      selectors: ["canary:selector"],
    });
    await server.admin.entry.BatchCreateEntry({
      entries: [
        {
          ...entryMessage({ spiffeId: "spiffe://example.org/x", parentId: agent.id }),
          selectors: [
            { type: "canary", value: "selector" },
            { type: "", value: "canary-bad" },
          ],
        },
      ],
    });
    await server.admin.entry.ListEntries({
      filter: {
        by_selectors: { match: "MATCH_ANY", selectors: [{ type: "canary", value: "selector" }] },
        by_spiffe_id: null,
        by_parent_id: null,
        by_federates_with: null,
        by_hint: null,
        by_downstream: null,
      },
    });
    const csr = await PROBE_CSR();
    await apis.svid.BatchNewX509SVID({
      params: [
        { entry_id: entry.id, csr },
        { entry_id: entry.id, csr: Buffer.from("canary-csr") },
      ],
    });
    await server.untilLogged("Signed X509 SVID", { entry_id: entry.id });
    const output = server.output();
    const { keys } = JSON.parse(readFileSync(join(server.folder, "data", "keys.json"), "utf8")) as {
      readonly keys: Readonly<Record<string, string>>;
    };
    for (const secret of ["canary-token-2", "canary:selector", "canary-bad", "canary-csr", ...Object.values(keys)])
      expect(output).not.toContain(secret);
    // The token is part of the ID of the agent that used it, and of nothing else.
    expect(output.replaceAll(agent.id, "")).not.toContain("canary-token-1");
  });
});

describe("stopping and starting again", () => {
  test("ends in an orderly way at SIGTERM: status 0, no socket left, agents and entries and authority there at the next start", async () => {
    await using folder = await keptFolder();
    const port = await freePort();
    const options = { folder: folder.path, server: { bind_port: port } };
    const first = await startServer(options);
    const agent = await first.attest();
    const entry = await first.createEntry({ spiffeId: "spiffe://example.org/kept", parentId: agent.id });
    const { x509_authorities } = await first.admin.bundle.GetBundle({});
    expect(await first.stop()).toBe(0);
    await expect(access(first.socketPath)).rejects.toThrow();
    expect(first.logged("Stopping Server APIs")).toHaveLength(1);
    await first[Symbol.asyncDispose]();

    await using second = await startServer(options);
    expect((await second.admin.bundle.GetBundle({})).x509_authorities).toEqual(x509_authorities);
    using apis = second.connect(agent.tls);
    expect((await apis.entry.GetAuthorizedEntries({})).entries).toEqual([entry]);
    expect(second.logged("X509 CA activated")).toHaveLength(1);
  });

  test("a server that was killed leaves a stale socket and a lock, and neither stands in the way", async () => {
    await using folder = await keptFolder();
    const first = await startServer({ folder: folder.path });
    const agent = await first.attest();
    await first.kill();
    expect(statSync(first.socketPath).isSocket()).toBe(true);
    await first[Symbol.asyncDispose]();
    await using second = await startServer({ folder: folder.path });
    using apis = second.connect(agent.tls);
    expect((await apis.entry.GetAuthorizedEntries({})).entries).toEqual([]);
  });

  test("with keys in memory a new authority joins the old one in the bundle", async () => {
    await using folder = await keptFolder();
    const options = { folder: folder.path, keyManager: "memory" } as const;
    const first = await startServer(options);
    const { x509_authorities } = await first.admin.bundle.GetBundle({});
    await first[Symbol.asyncDispose]();
    await using second = await startServer(options);
    const both = (await second.admin.bundle.GetBundle({})).x509_authorities;
    expect(both).toHaveLength(2);
    expect(both).toEqual(expect.arrayContaining(x509_authorities));
  });

  test.each([
    { what: "an authority that ended while the server was down", hours: 25, fields: { reason: "expired" } },
    {
      what: "a clock that stands before the authority's start",
      hours: -1,
      fields: { reason: "not yet valid", clock_behind: expect.stringMatching(/^59m\d/), clock: expect.any(Date) },
    },
  ])("T-F7 $what is said, and is no dead end", async ({ hours, fields }) => {
    await using folder = await keptFolder();
    const first = await startServer({ folder: folder.path });
    const { x509_authorities: before } = await first.admin.bundle.GetBundle({});
    await first[Symbol.asyncDispose]();
    const config = loadServerConfig({ path: first.configFile, expandEnv: false, flags: {}, env: {} });
    const [log, clock, stop] = [new RecordingLog(), new SteppedClock(), new AbortController()];
    clock.step(hours * 3_600_000);
    const running = runServer({ config, log, logger: { level: "info" }, clock, version: "test", signal: stop.signal });
    await Promise.race([
      running,
      eventually(
        "the server serves",
        () => log.lines.filter(({ message }) => message === "Starting Server APIs").length === 2,
      ),
    ]);
    const slot = log.lines.find(({ message }) => message === "X509CA slot unusable");
    expect(slot).toMatchObject({ level: "warn", fields });
    using channel = dialUnix(first.socketPath);
    const { x509_authorities } = await channel.client(BundleApi).GetBundle({});
    const added = x509_authorities.filter(({ asn1 }) => !before.some((old) => asn1.equals(old.asn1)));
    const [root] = added.map(({ asn1 }) => parseCertificate(asn1));
    expect(root?.notBefore.getTime()).toBeLessThanOrEqual(clock.now().getTime());
    expect(root?.notAfter.getTime()).toBeGreaterThan(clock.now().getTime() + 23 * 3_600_000);
    expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
    stop.abort();
    await running;
  });
});

describe("what stands in the way of a start is named", () => {
  test("a second server on the same folder is told the pid of the first", async () => {
    await using server = await startServer();
    const config = await writeServerConfig(server.folder, {
      server: { socket_path: join(server.folder, "other.sock") },
    });
    const { status, output } = await failsToStart(config);
    expect(status).toBe(1);
    expect(output).toContain(`directory ${join(server.folder, "data")} is in use by process ${server.pid}`);
    expect(await server.admin.health.Check({})).toEqual({ status: "SERVING" });
  });

  test("a port in use, with the process that has it", async () => {
    await using folder = await keptFolder();
    await using holder = await takePort();
    const { port } = holder;
    const { status, output } = await failsToStart(
      await writeServerConfig(folder.path, { server: { bind_port: port } }),
    );
    expect(status).toBe(1);
    expect(output).toContain(`could not listen on 127.0.0.1:${port}: the port is in use by process ${process.pid}`);
    expect(output).toContain("stop that process first, or choose another port");
  });

  test("an admin socket on which another server listens, with its pid", async () => {
    await using server = await startServer();
    await using folder = await keptFolder();
    const { status, output } = await failsToStart(
      await writeServerConfig(folder.path, { server: { socket_path: server.socketPath } }),
    );
    expect(status).toBe(1);
    expect(output).toContain(`the socket \\"${server.socketPath}\\" is in use by process ${server.pid}`);
    expect(await server.admin.health.Check({})).toEqual({ status: "SERVING" });
  });

  test("a health port in use", async () => {
    await using folder = await keptFolder();
    await using holder = await takePort();
    const { port } = holder;
    const { status, output } = await failsToStart(
      await writeServerConfig(folder.path, {
        sections: { health_checks: { listener_enabled: true, bind_address: "127.0.0.1", bind_port: port } },
      }),
    );
    expect(status).toBe(1);
    expect(output).toContain(`cannot serve health checks on 127.0.0.1:${port}`);
  });

  test("a database that another trust domain has filled", async () => {
    await using folder = await keptFolder();
    const first = await startServer({ folder: folder.path, trustDomain: "one.test" });
    await first.createEntry({ spiffeId: "spiffe://one.test/w", parentId: "spiffe://one.test/n" });
    await first[Symbol.asyncDispose]();
    const { status, output } = await failsToStart(await writeServerConfig(folder.path, { trustDomain: "two.test" }));
    expect(status).toBe(1);
    expect(output).toContain(
      "a registration entry with trust domain 'one.test' has been detected, which does not match the configured trust domain of 'two.test'",
    );
  });

  test("a data directory that cannot be made", async () => {
    await using folder = await keptFolder();
    const file = join(folder.path, "file");
    await writeFile(file, "");
    const { status, output } = await failsToStart(
      await writeServerConfig(folder.path, { server: { data_dir: join(file, "data") } }),
    );
    expect(status).toBe(1);
    expect(output).toContain(`unable to create directory ${join(file, "data")}`);
  });

  test("a database that is not there", async () => {
    await using folder = await keptFolder();
    const url = `postgres://nobody@127.0.0.1:${await freePort()}/none?connect_timeout=1`;
    const running = runServerProcess(["run", "-config", await writeServerConfig(folder.path, {}, url)]);
    await eventually("it says so", () => /datastore|database|ECONNREFUSED/i.test(running.output()), 30_000);
    expect(await running.stop()).not.toBeNull();
  });
});

describe.skipIf(withoutPostgres)("while the database is away", () => {
  test("the server goes on issuing, answers from memory, stays ready, and takes changes again when it is back", {
    timeout: 120_000,
  }, async () => {
    await using cluster = await startCluster((await findPostgres()) ?? "");
    await using database = await createDatabase(cluster.url);
    const healthPort = await freePort();
    await using server = await startServer({
      store: { url: database.url },
      sections: { health_checks: { listener_enabled: true, bind_port: healthPort } },
    });
    const agent = await server.attest();
    const evicted = await server.attest();
    await server.admin.agent.DeleteAgent({ id: protoId(evicted.id) });
    const entry = await server.createEntry({ spiffeId: "spiffe://example.org/held", parentId: agent.id });
    using apis = server.connect(agent.tls);
    await apis.entry.GetAuthorizedEntries({});
    await cluster.stop();

    expect((await apis.entry.GetAuthorizedEntries({})).entries).toEqual([entry]);
    const { results } = await apis.svid.BatchNewX509SVID({ params: [{ entry_id: entry.id, csr: await PROBE_CSR() }] });
    expect(results[0]?.status).toEqual({ code: 0, message: "OK" });
    expect((await apis.bundle.GetBundle({})).x509_authorities).toHaveLength(1);
    using again = server.connect(agent.tls);
    expect((await again.entry.GetAuthorizedEntries({})).entries).toEqual([entry]);
    const ready = await fetch(`http://127.0.0.1:${healthPort}/ready`);
    expect([ready.status, await ready.json()]).toEqual([
      200,
      { server: {}, "server.ca": {}, "catalog.datastore": { list_bundle_err: "the datastore is not available" } },
    ]);
    const refused = await server.admin.entry.BatchCreateEntry({
      entries: [entryMessage({ spiffeId: "spiffe://example.org/new", parentId: agent.id })],
    });
    expect(refused.results[0]?.status).toEqual({
      code: 14,
      message: "failed to create entry: the datastore is not available",
    });
    const workload = await server.mint("spiffe://example.org/nobody");
    using nobody = server.connect(workload.tls);
    expect(await faultFrom(nobody.entry.GetAuthorizedEntries({}))).toMatchObject({ kind: "denied" });
    using stranger = server.connect(evicted.tls);
    expect(await faultFrom(stranger.entry.GetAuthorizedEntries({}))).toMatchObject({
      kind: "unavailable",
      message: "unable to look up agent information: the datastore is not available",
    });

    await cluster.start();
    const created = await eventually(
      "changes are taken again",
      () => server.createEntry({ spiffeId: "spiffe://example.org/new", parentId: agent.id }),
      30_000,
    );
    await eventually(
      "and seen",
      async () => (await apis.entry.GetAuthorizedEntries({})).entries.some(({ id }) => id === created.id),
      30_000,
    );
  });
});
