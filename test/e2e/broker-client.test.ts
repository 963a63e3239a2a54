import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { type ConnectionOptions, connect, createServer, type Server, type TLSSocket, type TlsOptions } from "node:tls";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { BrokerClient, type BrokeredWorkload } from "../../src/client/broker.ts";
import { pidReference, processReference } from "../../src/client/broker-reference.ts";
import { keepX509Files } from "../../src/client/kept-files.ts";
import {
  authorizeAgentOf,
  authorizeAny,
  guardServer,
  mtlsClientOptions,
  mtlsServerOptions,
} from "../../src/client/tls.ts";
import { X509Source } from "../../src/client/x509-source.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom, faultOf, refusal } from "../support/faults.ts";
import { createCa, type Issued, type TestCa } from "../support/pki.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { isRoot, temporaryDirectory } from "../support/workload.ts";

const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");
const [UID1, UID2] = [65_532, 65_533];
const id = (name: string): string => `spiffe://example.org/${name}`;

/** Processes of other users are what the broker of these tests acts for. */
describe.skipIf(!isRoot)("a broker at a whole agent", () => {
  let scope: AsyncDisposableStack;
  let server: TestServer;
  let agent: TestAgent;
  let broker: BrokerClient;
  let own: X509Source;
  let rootB: TestCa;
  let leafB: Issued;
  beforeAll(async () => {
    scope = new AsyncDisposableStack();
    server = scope.use(await startServer());
    const { path } = scope.use(await temporaryDirectory());
    const socket_path = join(path, "broker", "broker.sock");
    const brokers = [{ id: id("broker"), allowed_reference_types: [{ type_url: "*" }] }];
    agent = scope.use(
      await startAgent(server, {
        agent: { experimental: { sync_interval: "200ms", broker: { socket_path, brokers } } },
      }),
    );
    rootB = await createCa({ trustDomain: B });
    leafB = await rootB.issue();
    await server.admin.bundle.BatchSetFederatedBundle({
      bundle: [{ trust_domain: B, x509_authorities: [{ asn1: Buffer.from(rootB.der) }] }],
    });
    const parentId = agent.id();
    // Of entries made in one second the one with the lesser ID is the older.
    const grant = (name: string, selector: string, more: object = {}) =>
      server.createEntry({ id: name, parentId, spiffeId: id(name), selectors: [selector], ...more });
    await grant("broker", OWN_SELECTOR);
    await grant("w1", `unix:uid:${UID1}`, { hint: "internal", federates_with: [B] });
    await grant("w1-ext", `unix:uid:${UID1}`, { hint: "external" });
    await grant("w2", `unix:uid:${UID2}`);
    await agent.untilLogged("Entry created", {}, 4);
    own = scope.use(await X509Source.open({ socket: agent.socket }));
    await agent.untilLogged("Starting SPIFFE Broker Endpoint");
    broker = scope.use(
      new BrokerClient({ socket: `unix://${socket_path}`, source: own, authorize: authorizeAgentOf(A) }),
    );
  });
  afterAll(() => scope.disposeAsync());

  let round: AsyncDisposableStack;
  let one: ChildProcess;
  let w1: BrokeredWorkload;
  let w2: BrokeredWorkload;
  beforeEach(async (context) => {
    round = new AsyncDisposableStack();
    context.onTestFinished(() => round.disposeAsync());
    one = running(UID1);
    w1 = broker.workload(processReference(one.pid ?? 0));
    w2 = broker.workload(pidReference(running(UID2).pid ?? 0));
  });

  function running(uid: number): ChildProcess {
    const child = spawn("sleep", ["600"], { uid, gid: uid, stdio: "ignore" });
    round.defer(() => void child.kill("SIGKILL"));
    return child;
  }

  async function end(child: ChildProcess): Promise<void> {
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  async function sources(): Promise<readonly [X509Source, X509Source]> {
    return [round.use(await w1.x509Source()), round.use(await w2.x509Source())];
  }

  /** A server that says hello, and its port. */
  async function listening(options: TlsOptions, prepare: (made: Server) => void = () => {}): Promise<number> {
    const made = createServer(options, (socket) => socket.end("hello"));
    made.on("tlsClientError", () => undefined);
    prepare(made);
    made.listen(0, "127.0.0.1");
    round.defer(() => void made.close());
    await once(made, "listening");
    return (made.address() as AddressInfo).port;
  }

  /** What a client hears, and from whom; an error when there is no connection. */
  async function heard(options: ConnectionOptions): Promise<{ readonly words: string; readonly peer: string }> {
    const socket: TLSSocket = connect({ host: "127.0.0.1", ...options });
    const peer = once(socket, "secureConnect").then(() => socket.getPeerX509Certificate()?.subjectAltName ?? "");
    const [words, from] = await Promise.all([text(socket), peer]);
    return { words, peer: from.replace("URI:", "") };
  }

  test("BEP-03 BRK-34 gets X.509 and JWT material of two workloads over one connection, each its own", async () => {
    const [x1, x2] = await sources();
    expect(x1.context.svids.map((svid) => svid.id)).toEqual([id("w1"), id("w1-ext")]);
    expect(x2.context.svids.map((svid) => svid.id)).toEqual([id("w2")]);
    await using j1 = await w1.jwtSource();
    await using j2 = await w2.jwtSource();
    const [t1, t2] = await Promise.all([j1.fetch("reports"), j2.fetch("reports")]);
    expect([t1.id, t2.id]).toEqual([id("w1"), id("w2")]);
    expect((await j2.validate(t1.token, "reports")).id).toBe(id("w1"));
    expect((await j1.fetchByHint("reports", "external")).id).toBe(id("w1-ext"));
    expect(own.context.svids.map((svid) => svid.id)).toEqual([id("broker")]);
    expect(own.bundle(B)).toBeUndefined();
  });

  test("BRK-35 BRK-48 BRK-60 a peer of a trust domain that one workload federates with counts for that one only", async () => {
    const [x1, x2] = await sources();
    expect(x1.verify(leafB.certificates)).toBe("spiffe://partner.test/web");
    expect(faultOf(() => x2.verify(leafB.certificates))).toMatchObject(refusal("denied", "no-bundle"));
    expect(faultOf(() => own.verify(leafB.certificates))).toMatchObject(refusal("denied", "no-bundle"));
    const told = new AbortController();
    for await (const { bundles } of w2.watchX509Bundles({ signal: told.signal })) {
      expect([...bundles.keys()]).toEqual([A]);
      break;
    }
  });

  test("BRK-65 BRK-72 X.509 bundles have certificates and no keys for tokens, JWT bundles the other way round", async () => {
    const { signal } = new AbortController();
    for await (const { bundles } of w1.watchX509Bundles({ signal })) {
      expect([...bundles.keys()].sort()).toEqual([A, B]);
      for (const bundle of bundles.values())
        for (const { isCa, publicKey } of bundle.authorities)
          expect([isCa, publicKey.length > 0]).toEqual([true, true]);
      break;
    }
    await using x509 = await w1.x509Source();
    await using jwt = await w1.jwtSource();
    const { token } = await jwt.fetch("reports");
    const roots = new Set(x509.bundle(A)?.authorities.map(({ publicKey }) => Buffer.from(publicKey).toString("hex")));
    const keys = (jwt.bundle(A)?.authorities ?? []).map(({ publicKey }) => Buffer.from(publicKey).toString("hex"));
    expect(keys.length).toBeGreaterThan(0);
    expect(keys.filter((key) => roots.has(key))).toEqual([]);
    expect((await jwt.validate(token, "reports")).id).toBe(id("w1"));
    expect(x509.verify(x509.svid.chain)).toBe(id("w1"));
  });

  test("BRK-36 between two workloads the client's material serves the way out, the server's the way in", async () => {
    const [x1, x2] = await sources();
    const outside = { cert: leafB.pem, key: leafB.keyPem };
    const beyond = await listening({ ...outside, requestCert: true, rejectUnauthorized: false });
    const out = (source: X509Source) =>
      heard({ port: beyond, ...mtlsClientOptions({ source, authorize: authorizeAny }) });
    expect(await out(x1)).toEqual({ words: "hello", peer: "spiffe://partner.test/web" });
    await expect(out(x2)).rejects.toThrow();

    const inward = (source: X509Source) =>
      listening(mtlsServerOptions({ source }), (made) => guardServer(made, { source, authorize: authorizeAny }));
    const port2 = await inward(x2);
    const asOwn = mtlsClientOptions({ source: own, authorize: authorizeAny });
    expect(await heard({ port: port2, ...asOwn })).toEqual({ words: "hello", peer: id("w2") });
    const fromOutside = { ...outside, rejectUnauthorized: false };
    const refused = await heard({ port: port2, ...fromOutside }).catch(() => ({ words: "" }));
    expect(refused.words).toBe("");
    expect((await heard({ port: await inward(x1), ...fromOutside })).words).toBe("hello");
  });

  test("BRK-58 when the workload ends everything of it goes: memory, files, and what TLS servers show", async () => {
    const { path } = round.use(await temporaryDirectory());
    const [x1, x2] = await sources();
    await using jwt = await w1.jwtSource();
    const { signal } = new AbortController();
    const kept = keepX509Files(x1, { folder: path, signal });
    await eventually("the files", () =>
      readFile(join(path, "current", "internal", "svid_key.pem"), "utf8").catch(() => undefined),
    );
    const port = await listening(mtlsServerOptions({ source: x1 }), (made) =>
      guardServer(made, { source: x1, authorize: authorizeAny }),
    );
    const hello = () => heard({ port, ...mtlsClientOptions({ source: own, authorize: authorizeAny }) });
    expect((await hello()).words).toBe("hello");
    await end(one);
    await eventually("the source is empty", () => faultOf(() => x1.context).code === "workload-not-found");
    await eventually("so are its bundles", () => faultOf(() => jwt.bundle(A)).code === "workload-not-found");
    await kept;
    expect(await readdir(path)).toEqual([]);
    await expect(hello()).rejects.toThrow();
    expect(faultOf(() => x1.verify(leafB.certificates)).kind).toBe("not_found");
    expect(await faultFrom(w1.fetchJwtSvids("reports"))).toMatchObject(refusal("not_found", "workload-not-found"));
    expect(x2.svid.id).toBe(id("w2"));
  });

  test("BRK-64b BRK-64a a workload whose entries go loses everything, and others lose nothing", async () => {
    const parentId = agent.id();
    const uid3 = 65_531;
    const entry = await server.createEntry({ parentId, spiffeId: id("w3"), selectors: [`unix:uid:${uid3}`] });
    const w3 = broker.workload(pidReference(running(uid3).pid ?? 0));
    const told = AbortSignal.timeout(60_000);
    await using x3 = await w3.x509Source({ retryRefused: true, signal: told });
    await using x2 = await w2.x509Source();
    const served = async (source: X509Source) => {
      const port = await listening(mtlsServerOptions({ source }), (made) =>
        guardServer(made, { source, authorize: authorizeAny }),
      );
      return () => heard({ port, ...mtlsClientOptions({ source: own, authorize: authorizeAny }) });
    };
    const [as2, as3] = [await served(x2), await served(x3)];
    expect([(await as2()).peer, (await as3()).peer]).toEqual([id("w2"), id("w3")]);
    await server.admin.entry.BatchDeleteEntry({ ids: [entry.id] });
    await eventually("the withdrawal", () => faultOf(() => x3.context).kind === "denied");
    expect(faultOf(() => x3.svid).code).toBe("workload-not-entitled");
    await expect(as3()).rejects.toThrow();
    expect(await as2()).toEqual({ words: "hello", peer: id("w2") });
  });

  test("BRK-56 a process that has gone is not asked for again, whoever has its ID by then", async () => {
    const gone = running(UID1);
    const reference = processReference(gone.pid ?? 0);
    const named = broker.workload(reference);
    await named.fetchJwtSvids("reports");
    await end(gone);
    expect(reference.stillMeant?.()).toBe(false);
    expect(await faultFrom(named.fetchJwtSvids("reports"))).toMatchObject(refusal("not_found", "workload-not-found"));
    expect(faultOf(() => processReference(gone.pid ?? 0))).toMatchObject(refusal("not_found", "workload-not-found"));
  });

  test("BRK-68 keeps the identities of a workload in files under their hints", async () => {
    const { path } = round.use(await temporaryDirectory());
    const [x1] = await sources();
    const stop = new AbortController();
    const kept = keepX509Files(x1, { folder: path, signal: stop.signal });
    const read = (name: string) => readFile(join(path, "current", name), "utf8");
    await eventually("the files", () => read("internal/svid.pem").catch(() => undefined));
    expect((await readdir(join(path, "current"))).sort()).toEqual(["external", "federated", "internal"]);
    for (const hint of ["internal", "external"]) {
      const files = { cert: await read(`${hint}/svid.pem`), key: await read(`${hint}/svid_key.pem`) };
      const port = await listening(files);
      const asOwn = mtlsClientOptions({ source: own, authorize: authorizeAny });
      expect((await heard({ port, ...asOwn })).peer).toBe(x1.svidByHint(hint).id);
    }
    stop.abort();
    await kept;
    expect(await readdir(path)).toEqual([]);
  });
});
