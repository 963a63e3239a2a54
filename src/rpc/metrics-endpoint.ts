import { readFile } from "node:fs/promises";
import { createServer as createHttpServer, type RequestListener, type Server } from "node:http";
import { createServer as createHttpsServer, type Server as HttpsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { SecureContextOptions, TLSSocket } from "node:tls";
import type { Certificate } from "../crypto/certificate.ts";
import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { Feed } from "../runtime/feed.ts";
import type { Log } from "../runtime/log.ts";
import { every, type Task } from "../runtime/task.ts";
import type { PrometheusTls } from "../runtime/telemetry-config.ts";
import type { SpiffeId } from "../spiffe/id.ts";
import { Refusals } from "./refusals.ts";
import { contextOptions, peerChain, type TlsIdentity } from "./tls.ts";

export interface MetricsTls {
  readonly settings: PrometheusTls<SpiffeId>;
  /** The program's own SVID; undefined while it has none yet. */
  readonly identity: Feed<TlsIdentity | undefined>;
  /** Verifies an X.509-SVID against the bundles of this moment; leaf first. Throws to refuse it. */
  readonly verify: (chain: readonly Certificate[]) => SpiffeId;
}

export interface MetricsEndpointOptions {
  readonly host: string;
  readonly port: number;
  readonly tls?: MetricsTls | undefined;
  /** The answer to every request. */
  readonly text: () => string;
  readonly clock: Clock;
  readonly log: Log;
}

export interface MetricsEndpoint extends AsyncDisposable {
  readonly address: string;
  readonly port: number;
  /** Shows new certificates as they come. */
  readonly run: Task;
}

/** A scrape is one connection; whoever opens more waits. */
const MOST_CONNECTIONS = 64;
const PATIENCE_MS = 10_000;
const REREAD_MS = 10_000;
const LIMITS = { headersTimeout: PATIENCE_MS, requestTimeout: PATIENCE_MS, maxHeaderSize: 8192 };
const TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8";

/** Serves metrics at every path, as SPIRE does. Throws when the port or a certificate file cannot be used. */
export async function serveMetrics(options: MetricsEndpointOptions): Promise<MetricsEndpoint> {
  const { tls, log, clock } = options;
  const refusals = new Refusals(log, clock);
  const answer = answering(options, refusals);
  const server = tls === undefined ? createHttpServer(LIMITS, answer) : await secureServer(tls, answer, refusals);
  server.maxConnections = MOST_CONNECTIONS;
  await listening(server, options);
  const { address, port } = server.address() as AddressInfo;
  log.info("Starting prometheus exporter", { host: options.host, port });
  return {
    address,
    port,
    run: (signal) => (tls === undefined ? Promise.resolve() : follow(server as HttpsServer, tls, options, signal)),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise<void>((done) => server.close(() => done()));
    },
  };
}

function answering({ text, tls }: MetricsEndpointOptions, refusals: Refusals): RequestListener {
  return ({ method, socket }, response) => {
    if (tls !== undefined && !isWelcome(socket, tls, refusals)) return void response.writeHead(403).end();
    if (method !== "GET" && method !== "HEAD") return void response.writeHead(405, { allow: "GET, HEAD" }).end();
    const body = text();
    response.writeHead(200, { "content-type": TEXT_FORMAT, "content-length": Buffer.byteLength(body) });
    response.end(method === "HEAD" ? undefined : body);
  };
}

async function secureServer(tls: MetricsTls, answer: RequestListener, refusals: Refusals): Promise<HttpsServer> {
  const server = createHttpsServer({
    ...LIMITS,
    ...(await contextOf(tls)),
    ...clientSettings(tls.settings),
    handshakeTimeout: PATIENCE_MS,
  });
  server.on("secureConnection", (socket) => {
    if (!isWelcome(socket, tls, refusals)) socket.destroy();
  });
  server.on("request", answer);
  server.on("tlsClientError", (error, socket) => {
    refusals.add(error, socket.remoteAddress);
    socket.destroy();
  });
  return server;
}

/** With authorized IDs the chain is ours to verify; with an authorities file it is OpenSSL's. */
function clientSettings(settings: PrometheusTls<SpiffeId>): {
  readonly requestCert: boolean;
  readonly rejectUnauthorized: boolean;
} {
  const byFile = !settings.useSvid && settings.files.clientCaFile !== undefined;
  return { requestCert: byFile || settings.authorizedIds.length > 0, rejectUnauthorized: byFile };
}

/** At the handshake and again at each request, since trust may have ended while the connection was open. */
function isWelcome(socket: Socket, { settings, verify }: MetricsTls, refusals: Refusals): boolean {
  if (settings.authorizedIds.length === 0) return true;
  try {
    const id = verify(peerChain(socket as TLSSocket));
    if (settings.authorizedIds.includes(id)) return true;
    throw new Fault("denied", `"${id}" is not one of authorized_spiffe_ids`);
  } catch (error) {
    refusals.add(error, socket.remoteAddress);
    return false;
  }
}

async function contextOf({ settings, identity }: MetricsTls): Promise<SecureContextOptions> {
  const plain = contextOptions(settings.useSvid ? identity.value : undefined);
  if (settings.useSvid) return plain;
  const { certFile, keyFile, clientCaFile } = settings.files;
  const [cert, key, ca] = await Promise.all([read(certFile), read(keyFile), clientCaFile ? read(clientCaFile) : []]);
  return { ...plain, cert, key, ca };
}

async function read(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw new Fault("precondition", `could not read ${path} for the Prometheus endpoint`, {
      code: "metrics-certificate",
      hint: "check cert_file, key_file and client_ca_file in telemetry.Prometheus.tls",
      cause,
    });
  }
}

/** What cannot be used is logged, and the certificate before it stays. */
async function follow(
  server: HttpsServer,
  tls: MetricsTls,
  { clock, log }: MetricsEndpointOptions,
  signal: AbortSignal,
): Promise<void> {
  let shown = "";
  const show = async (): Promise<void> => {
    try {
      const context = await contextOf(tls);
      const now = JSON.stringify([context.cert, context.key, context.ca]);
      if (now === shown) return;
      server.setSecureContext(context);
      shown = now;
    } catch (error) {
      log.error("Certificate of the Prometheus endpoint cannot be used; the one before it stays", {
        error: Fault.from(error),
      });
    }
  };
  if (!tls.settings.useSvid) return every(clock, () => REREAD_MS, show, signal);
  for await (const _ of tls.identity.watch(signal)) await show();
}

function listening(server: Server | HttpsServer, { host, port }: MetricsEndpointOptions): Promise<void> {
  return new Promise((done, fail) => {
    const refuse = (cause: NodeJS.ErrnoException): void =>
      fail(
        new Fault("precondition", `could not serve metrics on ${host}:${port}: ${cause.message}`, {
          code: cause.code === "EADDRINUSE" ? "port-in-use" : "listen-failed",
          hint: "change host or port in telemetry.Prometheus",
          cause,
        }),
      );
    server.once("error", refuse);
    server.listen(port, host === "localhost" ? "127.0.0.1" : host, () => {
      server.off("error", refuse);
      done();
    });
  });
}
