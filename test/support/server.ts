import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey, type LocalSigner } from "../../src/crypto/key.ts";
import type { ClientOf } from "../../src/rpc/client.ts";
import { type Channel, dialTls, dialUnix } from "../../src/rpc/dial.ts";
import type { Entry, Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import {
  AgentApi,
  BundleApi,
  EntryApi,
  HealthApi,
  LocalAuthorityApi,
  PushApi,
  ServerDebugApi,
  ServerLoggerApi,
  type Service,
  SvidApi,
  TrustDomainApi,
} from "../../src/rpc/protos.ts";

import type { TlsIdentity } from "../../src/rpc/tls.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { eventually } from "./eventually.ts";
import { createDatabase } from "./postgres.ts";

type Client<S> = S extends Service<infer M> ? ClientOf<M> : never;

/** Typed clients of one connection. */
export interface Apis extends Disposable {
  readonly agent: Client<typeof AgentApi>;
  readonly bundle: Client<typeof BundleApi>;
  readonly entry: Client<typeof EntryApi>;
  readonly svid: Client<typeof SvidApi>;
  readonly trustDomain: Client<typeof TrustDomainApi>;
  readonly health: Client<typeof HealthApi>;
  readonly push: Client<typeof PushApi>;
  readonly localAuthority: Client<typeof LocalAuthorityApi>;
  readonly logger: Client<typeof ServerLoggerApi>;
  readonly debug: Client<typeof ServerDebugApi>;
  readonly channel: Channel;
}

/** An X.509-SVID with its key. */
export interface TestSvid {
  readonly id: string;
  readonly chain: readonly Certificate[];
  /** Decimal. */
  readonly serialNumber: string;
  readonly signer: LocalSigner;
  readonly tls: TlsIdentity;
}

export interface TestServerOptions {
  /** A database URL shares a database between servers. Default: embedded. */
  readonly store?: "embedded" | "postgres" | { readonly url: string };
  readonly trustDomain?: string;
  /** Keys of the `server` section, over those of this helper. */
  readonly server?: Readonly<Record<string, unknown>>;
  /** Further top-level sections. */
  readonly sections?: Readonly<Record<string, unknown>>;
  readonly keyManager?: "disk" | "memory";
  /** Instead of `keyManager`: its name and data. */
  readonly keyManagers?: Readonly<Record<string, object>>;
  /** The UpstreamAuthority and its data. */
  readonly upstream?: Readonly<Record<string, object>>;
  /** Further node attestors with their data. */
  readonly nodeAttestors?: Readonly<Record<string, object>>;
  /** A folder of the caller's, which stays; for starting again on the same data. */
  readonly folder?: string;
  /** How long it may take until it serves. */
  readonly startMs?: number;
}

export type LogRecord = Readonly<Record<string, unknown>> & { readonly msg: string; readonly level: string };

export interface TestServer extends AsyncDisposable {
  readonly trustDomain: string;
  readonly folder: string;
  readonly configFile: string;
  readonly socketPath: string;
  readonly address: "127.0.0.1";
  readonly port: number;
  readonly pid: number;
  /** On the admin socket. */
  readonly admin: Apis;
  readonly databaseUrl: string | undefined;
  /** Over TLS, with the server verified by its bundle. Without an identity, no certificate is shown. The caller disposes. */
  connect(identity?: TlsIdentity): Apis;
  /** Everything on standard output and error. */
  output(): string;
  /** Log records with this message, and these fields. */
  logged(message: string, fields?: Readonly<Record<string, unknown>>): readonly LogRecord[];
  /** Waits for such a record. */
  untilLogged(message: string, fields?: Readonly<Record<string, unknown>>): Promise<LogRecord>;
  createToken(request?: { readonly ttl?: number; readonly token?: string; readonly agentId?: string }): Promise<string>;
  /** A node that attests by a new token. */
  attest(token?: string): Promise<TestSvid>;
  createEntry(entry: EntryInput): Promise<Entry__Output>;
  /** An SVID of any workload ID. */
  mint(id: string): Promise<TestSvid>;
  /** Asks it to end, and resolves with the exit status. */
  stop(): Promise<number | null>;
  kill(): Promise<void>;
}

export interface EntryInput extends Omit<Entry, "spiffe_id" | "parent_id" | "selectors"> {
  readonly spiffeId: string;
  readonly parentId: string;
  /** `type:value`; default `unix:uid:1000`. */
  readonly selectors?: readonly string[];
}

export const PROJECT = fileURLToPath(new URL("../..", import.meta.url));

/** Starts `steeple-server run` as a process of its own and waits until it serves. */
export async function startServer(options: TestServerOptions = {}): Promise<TestServer> {
  await using cleanup = new AsyncDisposableStack();
  const folder = options.folder ?? (await mkdtemp(join(tmpdir(), "steeple-server-")));
  if (options.folder === undefined) cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  const database = options.store === "postgres" ? cleanup.use(await createDatabase()) : undefined;
  const databaseUrl = database?.url ?? (typeof options.store === "object" ? options.store.url : undefined);
  const configFile = await writeServerConfig(folder, options, databaseUrl);
  const running = runServerProcess(["run", "-config", configFile]);
  cleanup.defer(() => running.stop().then(() => undefined));
  const serves = (): boolean => running.logged("Starting Server APIs", { network: "unix" }).length > 0;
  await Promise.race([eventually("the server serves", serves, options.startMs ?? 30_000), running.failed()]);
  return testServer({ running, options, folder, configFile, databaseUrl, resources: cleanup.move() });
}

/** A port that nobody listens on; another process may still take it before the server does. */
export async function freePort(): Promise<number> {
  const holder = createServer().listen(0, "127.0.0.1");
  await once(holder, "listening");
  const { port } = holder.address() as AddressInfo;
  await new Promise((done) => holder.close(done));
  return port;
}

/** A configuration file in the folder, with everything in that folder and a port that is free. */
export async function writeServerConfig(
  folder: string,
  options: TestServerOptions,
  databaseUrl?: string,
): Promise<string> {
  const disk = { disk: { plugin_data: { keys_path: join(folder, "data", "keys.json") } } };
  const sql = { sql: { plugin_data: { database_type: "postgres", connection_string: databaseUrl } } };
  const config = {
    server: {
      trust_domain: options.trustDomain ?? "example.org",
      bind_address: "127.0.0.1",
      bind_port: await freePort(),
      socket_path: join(folder, "api.sock"),
      data_dir: join(folder, "data"),
      log_level: "DEBUG",
      log_format: "json",
      ratelimit: { attestation: false, signing: true },
      ...options.server,
    },
    plugins: {
      KeyManager:
        options.keyManagers === undefined
          ? options.keyManager === "memory"
            ? { memory: { plugin_data: {} } }
            : disk
          : pluginData(options.keyManagers),
      NodeAttestor: pluginData({ join_token: {}, ...options.nodeAttestors }),
      ...(databaseUrl === undefined ? {} : { DataStore: sql }),
      ...(options.upstream === undefined ? {} : { UpstreamAuthority: pluginData(options.upstream) }),
    },
    ...options.sections,
  };
  const path = join(folder, "server.json");
  await writeFile(path, JSON.stringify(config));
  return path;
}

/** `{ name: data }` as a configuration has it. */
export function pluginData(plugins: Readonly<Record<string, object>>): Readonly<Record<string, object>> {
  return Object.fromEntries(Object.entries(plugins).map(([name, data]) => [name, { plugin_data: data }]));
}

export interface ServerProcess {
  readonly child: ChildProcess;
  output(): string;
  logged(message: string, fields?: Readonly<Record<string, unknown>>): readonly LogRecord[];
  untilLogged(message: string, fields?: Readonly<Record<string, unknown>>): Promise<LogRecord>;
  /** Rejects when the process ends before it was asked to. */
  failed(): Promise<never>;
  exited(): Promise<number | null>;
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

/** `steeple-server` with these arguments. The caller stops it. */
export function runServerProcess(args: readonly string[], env: Readonly<Record<string, string>> = {}): ServerProcess {
  const child = spawn(process.execPath, [join(PROJECT, "server/main.ts"), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  const chunks: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => chunks.push(chunk));
  const closed = once(child, "close").then(([code]) => code as number | null);
  const output = (): string => Buffer.concat(chunks).toString("utf8");
  const logged: ServerProcess["logged"] = (message, fields = {}) =>
    output()
      .split("\n")
      .flatMap(parseRecord)
      .filter(
        (record) => record.msg === message && Object.entries(fields).every(([key, value]) => record[key] === value),
      );
  return {
    child,
    output,
    logged,
    untilLogged: (message, fields) =>
      eventually(`the server logs ${JSON.stringify(message)}`, () => logged(message, fields)[0], 30_000),
    failed: () =>
      closed.then((code) => Promise.reject(new Error(`the server ended with status ${code}:\n${output()}`))),
    exited: () => closed,
    stop: (signal = "SIGTERM") => {
      if (child.exitCode === null && child.signalCode === null) child.kill(signal);
      return closed;
    },
  };
}

function parseRecord(line: string): LogRecord[] {
  try {
    const record: unknown = JSON.parse(line);
    return typeof record === "object" && record !== null && "msg" in record ? [record as LogRecord] : [];
  } catch {
    return [];
  }
}

interface Parts {
  readonly running: ServerProcess;
  readonly options: TestServerOptions;
  readonly folder: string;
  readonly configFile: string;
  readonly databaseUrl: string | undefined;
  readonly resources: AsyncDisposableStack;
}

async function testServer({
  running,
  options,
  folder,
  configFile,
  databaseUrl,
  resources,
}: Parts): Promise<TestServer> {
  const trustDomain = options.trustDomain ?? "example.org";
  const socketPath = join(folder, "api.sock");
  const port = Number(
    String(running.logged("Starting Server APIs", { network: "tcp" })[0]?.["address"])
      .split(":")
      .at(-1),
  );
  const admin = resources.use(apisOf(dialUnix(socketPath)));
  let roots: readonly Certificate[] = await rootsOf(admin);
  const verifyServer = (chain: readonly Certificate[]): void => {
    validateX509Svid({ chain, authorities: () => roots, at: new Date(Date.now()) });
  };
  const connect = (identity?: TlsIdentity): Apis =>
    apisOf(
      dialTls({
        address: "127.0.0.1",
        port,
        verifyServer,
        backoff: { firstMs: 50, maxMs: 200 },
        ...(identity === undefined ? {} : { identity }),
      }),
    );
  const createToken: TestServer["createToken"] = async ({ ttl = 600, token = "", agentId } = {}) => {
    const agent_id = agentId === undefined ? null : protoId(agentId);
    return (await admin.agent.CreateJoinToken({ ttl, token, agent_id })).value;
  };
  return {
    ...{ trustDomain, folder, configFile, socketPath, port, admin, databaseUrl, connect, createToken },
    address: "127.0.0.1",
    pid: running.child.pid ?? 0,
    output: running.output,
    logged: running.logged,
    untilLogged: running.untilLogged,
    async attest(token) {
      using anonymous = connect();
      return await attestWithToken(anonymous, token ?? (await createToken()));
    },
    async createEntry(entry) {
      const { results } = await admin.entry.BatchCreateEntry({ entries: [entryMessage(entry)] });
      const made = results[0];
      if (made?.entry == null || made.status?.code !== 0) throw new Error(made?.status?.message ?? "no result");
      return made.entry;
    },
    async mint(id) {
      const signer = await generateKey("ec-p256");
      const csr = await createCertificateRequest({ signer, uris: [id] });
      const { svid } = await admin.svid.MintX509SVID({ csr, ttl: 600 });
      roots = await rootsOf(admin);
      return testSvid(signer, svid?.cert_chain ?? []);
    },
    stop: () => running.stop(),
    async kill() {
      await running.stop("SIGKILL");
    },
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

function apisOf(channel: Channel): Apis {
  return {
    agent: channel.client(AgentApi),
    bundle: channel.client(BundleApi),
    entry: channel.client(EntryApi),
    svid: channel.client(SvidApi),
    trustDomain: channel.client(TrustDomainApi),
    health: channel.client(HealthApi),
    push: channel.client(PushApi),
    localAuthority: channel.client(LocalAuthorityApi),
    logger: channel.client(ServerLoggerApi),
    debug: channel.client(ServerDebugApi),
    channel,
    [Symbol.dispose]: () => channel[Symbol.dispose](),
  };
}

async function rootsOf(apis: Apis): Promise<readonly Certificate[]> {
  const { x509_authorities } = await apis.bundle.GetBundle({});
  return x509_authorities.map(({ asn1 }) => parseCertificate(asn1));
}

/** The whole stream of a join token, as an agent runs it. */
export async function attestWithToken(apis: Apis, token: string): Promise<TestSvid> {
  const signer = await generateKey("ec-p256");
  const csr = await createCertificateRequest({ signer });
  const [response] = await collect(
    apis.agent.AttestAgent(
      from([{ params: { data: { type: "join_token", payload: Buffer.from(token) }, params: { csr } } }]),
      { deadlineMs: 60_000 },
    ),
  );
  return testSvid(signer, response?.result?.svid?.cert_chain ?? []);
}

export function testSvid(signer: LocalSigner, chain: readonly Uint8Array[]): TestSvid {
  const certificates = chain.map(parseCertificate);
  const [leaf] = certificates;
  if (leaf === undefined) throw new Error("the answer holds no certificate");
  return {
    id: leaf.uris[0] ?? "",
    chain: certificates,
    serialNumber: leaf.serialNumber,
    signer,
    tls: { chain, privateKey: signer.privateKey },
  };
}

export function protoId(id: string): { readonly trust_domain: string; readonly path: string } {
  const trustDomain = parseTrustDomain(/^spiffe:\/\/([^/]*)/.exec(id)?.[1] ?? "");
  return { trust_domain: trustDomain, path: id.slice(`spiffe://${trustDomain}`.length) };
}

export function entryMessage({ spiffeId, parentId, selectors = ["unix:uid:1000"], ...rest }: EntryInput): Entry {
  const messages = selectors.map((text) => ({
    type: text.slice(0, text.indexOf(":")),
    value: text.slice(text.indexOf(":") + 1),
  }));
  return { ...rest, spiffe_id: protoId(spiffeId), parent_id: protoId(parentId), selectors: messages };
}

export async function* from<T>(items: Iterable<T>): AsyncGenerator<T, void, undefined> {
  yield* items;
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
