import { execFile } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, connect, type Socket } from "node:net";
import { createServer as createTlsServer, connect as tlsConnect } from "node:tls";
import { expect, test } from "vitest";
import type { Certificate } from "../../../src/crypto/certificate.ts";
import { privateKeyFromPkcs8 } from "../../../src/crypto/key.ts";
import type { Call } from "../../../src/rpc/caller.ts";
import { dialTls } from "../../../src/rpc/dial.ts";
import { HealthApi } from "../../../src/rpc/protos.ts";
import { serverStream, unary } from "../../../src/rpc/service.ts";
import type { TlsIdentity } from "../../../src/rpc/tls.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import { parseSpiffeId, type SpiffeId } from "../../../src/spiffe/id.ts";
import { validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { openssl } from "../../support/openssl.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { openDescriptors, startRpc, type TestRpcOptions, type TestRpcServer } from "../../support/rpc.ts";

const SERVER = "spiffe://example.org/spire/server";
const AGENT = "spiffe://example.org/spire/agent/a";

interface TlsServer extends TestRpcServer {
  readonly ca: TestCa;
  readonly address: string;
  readonly port: number;
  readonly identity: Feed<TlsIdentity>;
  /** Chains that clients showed, accepted or not. */
  readonly shown: (readonly Certificate[])[];
  /** What clients are verified against. */
  readonly roots: Certificate[];
}

test("a client without a certificate is served and has no identity", async () => {
  await using server = await startTls();
  using channel = dialTo(server);
  expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
  expect(server.calls[0]?.caller).toMatchObject({ transport: "tcp", remoteAddress: "127.0.0.1" });
  expect(server.calls[0]?.caller.peer).toBeUndefined();
  expect(server.shown).toEqual([]);
});

test("a client with a certificate is served under its verified ID, chain leaf first", async () => {
  await using server = await startTls();
  const middle = await (await server.ca.intermediate()).intermediate();
  const agent = await middle.issue({ id: AGENT });
  using channel = dialTo(server, agent);
  await channel.client(HealthApi).Check({});
  const peer = server.calls[0]?.caller.peer;
  expect(peer?.id).toBe(AGENT);
  expect(peer?.chain.map(({ raw }) => Buffer.from(raw))).toEqual(agent.chain.map((der) => Buffer.from(der)));
  expect(agent.chain).toHaveLength(3);
});

test("a client certificate that is refused ends the connection before any call", async () => {
  await using server = await startTls();
  const stranger = await (await createCa()).issue({ id: AGENT });
  using channel = dialTo(server, stranger);
  expect(await faultFrom(channel.client(HealthApi).Check({}))).toMatchObject({ kind: "unavailable" });
  expect(server.calls).toEqual([]);
  expect(server.shown.length).toBeGreaterThan(0);
  expect(server.log.lines.some(({ message }) => message === "Connection refused")).toBe(true);
});

test("T-X5 a chain of ten certificates is read, one of eleven is refused unread", async () => {
  await using server = await startTls();
  let above: TestCa = server.ca;
  for (let depth = 0; depth < 9; depth++) above = await above.intermediate();
  const ten = await above.issue({ id: AGENT });
  using long = dialTo(server, ten);
  await long.client(HealthApi).Check({});
  expect(server.calls[0]?.caller.peer?.chain).toHaveLength(10);
  const unrelated = await createCa();
  using longer = dialTo(server, { ...ten, chain: [...ten.chain, unrelated.der] });
  expect(await faultFrom(longer.client(HealthApi).Check({}))).toMatchObject({ kind: "unavailable" });
  expect(server.shown).toHaveLength(1);
  expect(server.log.lines.at(-1)?.fields["error"]).toMatchObject(refusal("denied", "chain-too-long"));
});

test("the client refuses a server that its function refuses, and not a byte of the call leaves", async () => {
  await using server = await startTls();
  const refuse = (): never => {
    throw new Fault("denied", "x509svid: certificate signed by unknown authority", {
      code: "unknown-authority",
      hint: "get the bundle anew",
    });
  };
  using channel = dialTls({ ...addressOf(server), verifyServer: refuse });
  const fault = await faultFrom(channel.client(HealthApi).Check({}));
  expect(fault).toMatchObject({
    ...refusal("unavailable", "unknown-authority"),
    hint: "get the bundle anew",
    cause: { kind: "denied" },
  });
  expect(fault.message).toBe(
    `could not connect to 127.0.0.1:${server.port}: x509svid: certificate signed by unknown authority`,
  );
  expect(server.calls).toEqual([]);
});

test("the client sees the server's chain leaf first, whatever name it dialled", async () => {
  await using server = await startTls();
  const seen: (readonly Certificate[])[] = [];
  using channel = dialTls({ address: "localhost", port: server.port, verifyServer: (chain) => void seen.push(chain) });
  await channel.client(HealthApi).Check({});
  expect(seen[0]?.map(({ uris }) => uris)).toEqual(server.identity.value.chain.length === 1 ? [[SERVER]] : []);
});

test.each(["-tls1_3", "-tls1_2"])(
  "T-C6 with %s a session is not resumed, so a root that is gone stays gone",
  async (version) => {
    await using server = await startTls();
    await using directory = await openssl();
    const agent = await server.ca.issue({ id: AGENT });
    await directory.write("agent.pem", agent.pem);
    await directory.write("agent.key", agent.keyPem);
    const common = [version, "-alpn", "h2", "-cert", "agent.pem", "-key", "agent.key"];
    const first = await sClient(server.port, directory.path, [...common, "-sess_out", "session.pem"]);
    expect(first).toMatch(/^New, TLSv1\.[23]/m);
    server.roots.length = 0;
    const second = await sClient(server.port, directory.path, [...common, "-sess_in", "session.pem"]);
    expect(second).toMatch(/^New, TLSv1\.[23]/m);
    expect(server.shown.map(([leaf]) => leaf?.uris)).toEqual([[AGENT], [AGENT]]);
    expect(server.log.lines.filter(({ message }) => message === "Connection refused")).toHaveLength(1);
  },
);

test("T-C6 the same client does resume its session with a server that allows it", async () => {
  await using directory = await openssl();
  const { pem, keyPem } = await (await createCa()).issue({ id: SERVER });
  const lax = createTlsServer({ cert: pem, key: keyPem }, (socket) => socket.on("error", () => {}).end("hello"));
  await once(lax.listen(0, "127.0.0.1"), "listening");
  const { port } = lax.address() as AddressInfo;
  await sClient(port, directory.path, ["-sess_out", "session.pem"]);
  expect(await sClient(port, directory.path, ["-sess_in", "session.pem"])).toMatch(/^Reused, TLSv1\.3/m);
  lax.close();
});

test.each(["TLSv1.3", "TLSv1.2"] as const)(
  "T-C6 with %s the server does not take up a session that a client kept",
  async (maxVersion) => {
    await using server = await startTls();
    const options = {
      port: server.port,
      host: "127.0.0.1",
      rejectUnauthorized: false,
      ALPNProtocols: ["h2"],
      maxVersion,
    };
    const socket = tlsConnect(options);
    await once(socket, "secureConnect");
    // The settings frame comes after everything that TLS has to say.
    await once(socket, "data");
    const session = socket.getSession();
    if (session === undefined) throw new Error("there is no session to offer");
    socket.destroy();
    const again = tlsConnect({ ...options, session });
    await once(again, "secureConnect");
    expect(again.isSessionReused()).toBe(false);
    again.destroy();
  },
);

test.each([
  { what: "TLS 1.1", options: ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2"] },
  { what: "HTTP/1.1 only", options: ["-alpn", "http/1.1"] },
])("a client that offers $what is turned away in the handshake", async ({ options }) => {
  await using server = await startTls();
  await expect(sClient(server.port, "/", options)).rejects.toThrow(/alert|handshake failure|no protocols/i);
  expect(server.calls).toEqual([]);
});

test("a client that negotiates no protocol is disconnected without an answer", async () => {
  await using server = await startTls();
  const socket = tlsConnect({ port: server.port, host: "127.0.0.1", rejectUnauthorized: false });
  socket.on("error", () => {});
  const received: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => received.push(chunk));
  await once(socket, "close");
  expect(Buffer.concat(received).toString("latin1")).not.toContain("HTTP");
});

test("a new identity is shown to new connections while a stream on an old one lives on", async () => {
  const { health, feed } = follow();
  await using server = await startTls({ health });
  const seen: string[] = [];
  const serials = (chain: readonly Certificate[]): void => void seen.push(chain[0]?.serialNumber ?? "");
  using old = dialTls({ ...addressOf(server), verifyServer: serials });
  const stream = old.client(HealthApi).Watch({})[Symbol.asyncIterator]();
  expect(await stream.next()).toMatchObject({ value: { status: "SERVING" } });
  const next = await server.ca.issue({ id: SERVER });
  server.identity.set(identityOf(next));
  await eventually("the new certificate", async () => {
    using fresh = dialTls({ ...addressOf(server), verifyServer: serials });
    await fresh.client(HealthApi).Check({});
    return seen.at(-1) === next.certificate.serialNumber;
  });
  feed.set("NOT_SERVING");
  expect(await stream.next()).toMatchObject({ value: { status: "NOT_SERVING" } });
  expect(seen[0]).not.toBe(next.certificate.serialNumber);
});

test("an identity that cannot be used is logged, and the one before it stays", async () => {
  await using server = await startTls();
  const other = await server.ca.issue({ id: SERVER });
  server.identity.set({ ...server.identity.value, privateKey: privateKeyFromPkcs8(other.privateKey) });
  await eventually("a line in the log", () => server.log.lines.some(({ level }) => level === "error"));
  using channel = dialTo(server);
  expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
});

test("after its age a connection gets a GOAWAY: its stream ends in peace and calls move to another one", async () => {
  const { health, feed } = follow();
  await using server = await startTls({ health, maxConnectionAgeMs: 200 });
  using channel = dialTo(server);
  const stream = channel.client(HealthApi).Watch({})[Symbol.asyncIterator]();
  await stream.next();
  const first = server.calls[0]?.caller.connectionId;
  await eventually("a second connection", async () => {
    await channel.client(HealthApi).Check({});
    return server.calls.at(-1)?.caller.connectionId !== first;
  });
  feed.set("NOT_SERVING");
  expect(await stream.next()).toMatchObject({ value: { status: "NOT_SERVING" } });
  expect(server.outcomes.every(({ code }) => code === "OK")).toBe(true);
});

test("T-X9 idle connections by the hundred keep nobody out", async () => {
  await using server = await startTls();
  const idle: Socket[] = [];
  for (let i = 0; i < 400; i++) idle.push(await opened(server));
  using channel = dialTo(server);
  expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
  for (const socket of idle) socket.destroy();
});

test("T-X9 T-W2 junk, half a handshake and vanishing clients leave the server serving, with no descriptor behind", async () => {
  await using server = await startTls();
  await failEachWay(server);
  const before = await openDescriptors();
  for (let round = 0; round < 10; round++) await failEachWay(server);
  await eventually("all descriptors closed", async () => (await openDescriptors()) <= before);
  using channel = dialTo(server);
  expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
});

test("a port in use is refused, naming the process that holds it", async () => {
  await using server = await startTls();
  const again = server.rpc.listenTls({
    address: "127.0.0.1",
    port: server.port,
    identity: server.identity,
    verifyPeer: () => parseSpiffeId(AGENT),
  });
  const fault = await faultFrom(again);
  expect(fault).toMatchObject(refusal("precondition", "port-in-use"));
  expect(fault.message).toBe(
    `could not listen on 127.0.0.1:${server.port}: the port is in use by process ${process.pid}`,
  );
});

test("an address that is not ours is refused", async () => {
  await using server = await startTls();
  const elsewhere = server.rpc.listenTls({
    address: "192.0.2.1",
    port: 0,
    identity: server.identity,
    verifyPeer: () => parseSpiffeId(AGENT),
  });
  expect(await faultFrom(elsewhere)).toMatchObject(refusal("precondition", "listen-failed"));
});

async function startTls(options: TestRpcOptions = {}): Promise<TlsServer> {
  const ca = await createCa();
  const roots = [ca.certificate];
  const shown: (readonly Certificate[])[] = [];
  const identity = new Feed(identityOf(await ca.issue({ id: SERVER })));
  const server = await startRpc(options);
  const verifyPeer = (chain: readonly Certificate[]): SpiffeId => {
    shown.push(chain);
    return validateX509Svid({ chain, authorities: () => roots, at: systemClock.now() });
  };
  const bound = await server.rpc.listenTls({ address: "127.0.0.1", port: 0, identity, verifyPeer });
  return { ...server, ...bound, ca, identity, shown, roots };
}

function identityOf({ chain, privateKey }: Pick<Issued, "chain" | "privateKey">): TlsIdentity {
  return { chain, privateKey: privateKeyFromPkcs8(privateKey) };
}

function addressOf({ address, port }: TlsServer): { readonly address: string; readonly port: number } {
  return { address, port };
}

function dialTo(server: TlsServer, client?: Pick<Issued, "chain" | "privateKey">) {
  return dialTls({ ...addressOf(server), verifyServer: () => {}, ...(client && { identity: identityOf(client) }) });
}

/** A stream that follows a feed. */
function follow() {
  const feed = new Feed<"SERVING" | "NOT_SERVING">("SERVING");
  const Watch = serverStream(async function* (_: object, { signal }: Call<undefined>) {
    for await (const status of feed.watch(signal)) yield { status };
  });
  return { health: { Watch, Check: unary(async () => ({ status: "SERVING" as const })) }, feed };
}

/** What `openssl s_client` prints for one connection; rejects when the handshake fails. */
function sClient(port: number, cwd: string, options: readonly string[]): Promise<string> {
  return new Promise((done, fail) => {
    const all = ["s_client", "-connect", `127.0.0.1:${port}`, "-ign_eof", ...options];
    const child = execFile("openssl", all, { cwd, timeout: 10_000 }, (error, stdout, stderr) => {
      if (/alert (?!close)|no protocols|handshake failure/i.test(stderr)) fail(new Error(stderr, { cause: error }));
      else done(`${stdout}\n${stderr}`);
    });
    // What follows the preface is no frame, so the server ends the connection.
    child.stdin?.end("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\njunk that ends the connection");
  });
}

async function opened({ port }: TlsServer): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {});
  await once(socket, "connect");
  return socket;
}

async function failEachWay(server: TlsServer): Promise<void> {
  (await opened(server)).resume().end("GET / HTTP/1.1\r\n\r\n");
  (await opened(server)).resume().end(Buffer.from("16030100ff010000fb0303", "hex"));
  (await opened(server)).destroy();
  const tls = tlsConnect({ port: server.port, host: "127.0.0.1", rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  await once(tls, "secureConnect");
  tls
    .on("error", () => {})
    .resume()
    .end("garbage");
  await once(tls, "close");
}
