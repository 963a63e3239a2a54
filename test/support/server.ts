import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
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
  QuarantineApi,
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
import {
  type LogRecord,
  runServerProcess,
  type ServerProcess,
  type TestServerOptions,
  writeServerConfig,
} from "./server-process.ts";

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
  readonly quarantine: Client<typeof QuarantineApi>;
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

/** What is done with a server that runs, whoever started it and whatever it is. */
export interface ServerClient extends Disposable {
  readonly trustDomain: string;
  readonly socketPath: string;
  readonly address: string;
  readonly port: number;
  /** On the admin socket. */
  readonly admin: Apis;
  /** Over TLS, with the server verified by its bundle. Without an identity, no certificate is shown. The caller disposes. */
  connect(identity?: TlsIdentity): Apis;
  /** By the server's bundle. Throws to refuse it. */
  verifyServer(chain: readonly Certificate[]): void;
  createToken(request?: { readonly ttl?: number; readonly token?: string; readonly agentId?: string }): Promise<string>;
  /** A node that attests by a new token. */
  attest(token?: string): Promise<TestSvid>;
  createEntry(entry: EntryInput): Promise<Entry__Output>;
  /** An SVID of any workload ID. */
  mint(id: string): Promise<TestSvid>;
}

export interface TestServer extends Omit<ServerClient, typeof Symbol.dispose>, AsyncDisposable {
  readonly folder: string;
  readonly configFile: string;
  readonly pid: number;
  readonly databaseUrl: string | undefined;
  /** Everything on standard output and error. */
  output(): string;
  /** Log records with this message, and these fields. */
  logged(message: string, fields?: Readonly<Record<string, unknown>>): readonly LogRecord[];
  /** Waits for such a record. */
  untilLogged(message: string, fields?: Readonly<Record<string, unknown>>): Promise<LogRecord>;
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

/** Starts `steeple-server run` as a process of its own and waits until it serves. */
export async function startServer(options: TestServerOptions = {}): Promise<TestServer> {
  await using cleanup = new AsyncDisposableStack();
  const folder = options.folder ?? (await mkdtemp(join(tmpdir(), "steeple-server-")));
  if (options.folder === undefined) cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  const database = options.store === "postgres" ? cleanup.use(await createDatabase()) : undefined;
  const databaseUrl = database?.url ?? (typeof options.store === "object" ? options.store.url : undefined);
  const configFile = await writeServerConfig(folder, options, databaseUrl);
  const running = runServerProcess(["run", "-config", configFile], options.env);
  cleanup.defer(() => running.stop().then(() => undefined));
  const serves = (): boolean => running.logged("Starting Server APIs", { network: "unix" }).length > 0;
  await Promise.race([eventually("the server serves", serves, options.startMs ?? 50_000), running.failed()]);
  return testServer({ running, options, folder, configFile, databaseUrl, resources: cleanup.move() });
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
  const bound = String(running.logged("Starting Server APIs", { network: "tcp" })[0]?.["address"]);
  const [, address = "", port] = /^(.*):(\d+)$/.exec(bound) ?? [];
  const place = { socketPath: join(folder, "api.sock"), address, port: Number(port) };
  const client = resources.use(await openServerClient({ ...place, trustDomain: options.trustDomain ?? "example.org" }));
  return {
    ...client,
    ...{ folder, configFile, databaseUrl, address: place.address },
    pid: running.child.pid ?? 0,
    output: running.output,
    logged: running.logged,
    untilLogged: running.untilLogged,
    stop: () => running.stop(),
    async kill() {
      await running.stop("SIGKILL");
    },
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

/** Connects to the admin socket of a server that serves, and learns its bundle. Default trust domain: the bundle's. */
export async function openServerClient(
  place: Pick<ServerClient, "socketPath" | "address" | "port"> & { readonly trustDomain?: string },
): Promise<ServerClient> {
  const { socketPath, address, port } = place;
  const admin = apisOf(dialUnix(socketPath));
  const { trust_domain } = await admin.bundle.GetBundle({ output_mask: {} });
  let roots = await rootsOf(admin);
  const verifyServer = (chain: readonly Certificate[]): void => {
    validateX509Svid({ chain, authorities: () => roots, at: new Date(Date.now()) });
  };
  const connect: ServerClient["connect"] = (identity) => {
    const backoff = { firstMs: 50, maxMs: 200 };
    return apisOf(dialTls({ address, port, verifyServer, backoff, ...(identity === undefined ? {} : { identity }) }));
  };
  const createToken: ServerClient["createToken"] = async ({ ttl = 600, token = "", agentId } = {}) => {
    const agent_id = agentId === undefined ? null : protoId(agentId);
    return (await admin.agent.CreateJoinToken({ ttl, token, agent_id })).value;
  };
  return {
    ...{ socketPath, address, port, admin, verifyServer, connect, createToken },
    trustDomain: place.trustDomain ?? trust_domain,
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
    [Symbol.dispose]: () => admin[Symbol.dispose](),
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
    quarantine: channel.client(QuarantineApi),
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
