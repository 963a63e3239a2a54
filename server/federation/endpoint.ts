import { readFile } from "node:fs/promises";
import type { RequestListener, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { SecureContextOptions } from "node:tls";
import { Refusals } from "../../src/rpc/refusals.ts";
import { contextOptions, type TlsIdentity } from "../../src/rpc/tls.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import { every, type Task } from "../../src/runtime/task.ts";
import { type Bundle, encodeBundleDocument } from "../../src/spiffe/bundle.ts";
import type { ServerConfig } from "../config.ts";
import * as events from "../events.ts";

type BundleEndpointConfig = NonNullable<ServerConfig["federation"]["endpoint"]>;

export interface BundleEndpointOptions extends BundleEndpointConfig {
  /** The server's own bundle, as of now. */
  readonly bundle: () => Bundle | undefined;
  /** The server's own SVID, for `https_spiffe`. */
  readonly identity: Feed<TlsIdentity>;
  readonly clock: Clock;
  readonly log: Log;
}

export interface BundleEndpoint extends AsyncDisposable {
  readonly port: number;
  /** Shows new certificates as they come. */
  readonly run: Task;
}

const PATIENCE_MS = 10_000;
const MOST_CONNECTIONS = 1000;
/** Mozilla's "intermediate", less what needs a file of parameters. SPIFFE Federation, section 5. */
const CIPHERS = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_AES_256_GCM_SHA384",
  "TLS_CHACHA20_POLY1305_SHA256",
  "ECDHE-ECDSA-AES128-GCM-SHA256",
  "ECDHE-RSA-AES128-GCM-SHA256",
  "ECDHE-ECDSA-AES256-GCM-SHA384",
  "ECDHE-RSA-AES256-GCM-SHA384",
  "ECDHE-ECDSA-CHACHA20-POLY1305",
  "ECDHE-RSA-CHACHA20-POLY1305",
].join(":");

/**
 * Serves the own bundle to whoever asks: no client certificate is asked for, and none is taken. Throws when the port or
 * a certificate file cannot be used. SPIFFE Federation, section 5.2.
 */
export async function serveBundleEndpoint(options: BundleEndpointOptions): Promise<BundleEndpoint> {
  const { log, clock } = options;
  const refusals = new Refusals(log, clock);
  const limits = { headersTimeout: PATIENCE_MS, requestTimeout: PATIENCE_MS, maxHeaderSize: 8192 };
  const server = createServer(
    { ...limits, ...(await contextOf(options)), handshakeTimeout: PATIENCE_MS, ALPNProtocols: ["http/1.1"] },
    answering(options),
  );
  server.maxConnections = MOST_CONNECTIONS;
  server.on("tlsClientError", (error, socket) => {
    refusals.add(error, socket.remoteAddress);
    socket.destroy();
  });
  await listening(server, options);
  const { port } = server.address() as AddressInfo;
  events.bundleEndpointServing(log, `${options.address}:${port}`);
  return {
    port,
    run: (signal) => follow(server, options, signal),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise<void>((done) => server.close(() => done()));
    },
  };
}

function answering({ bundle, refreshHintSeconds, log }: BundleEndpointOptions): RequestListener {
  const documents = new WeakMap<Bundle, string | undefined>();
  const documentOf = (current: Bundle): string | undefined => {
    if (!documents.has(current)) documents.set(current, encoded({ ...current, refreshHint: refreshHintSeconds }, log));
    return documents.get(current);
  };
  return ({ method, url = "" }, response) => {
    if (method !== "GET" && method !== "HEAD") return refuse(response, 405, "405 method not allowed");
    if (url.split("?", 1)[0] !== "/") return refuse(response, 404, "404 page not found");
    const current = bundle();
    const body = current && documentOf(current);
    if (body === undefined) return refuse(response, 500, "500 unable to retrieve local bundle");
    const headers = { "content-type": "application/json", "cache-control": "no-store" };
    response.writeHead(200, { ...headers, "content-length": Buffer.byteLength(body) });
    response.end(method === "HEAD" ? undefined : body);
  };
}

/** Whatever may be wrong with the bundle, whoever asks for it does not end the server. */
function encoded(bundle: Bundle, log: Log): string | undefined {
  try {
    return encodeBundleDocument(bundle);
  } catch (error) {
    log.error("The bundle cannot be published", { error: Fault.from(error) });
    return undefined;
  }
}

function refuse(response: ServerResponse, status: number, text: string): void {
  const headers = { "content-type": "text/plain; charset=utf-8", connection: "close" };
  response.writeHead(status, status === 405 ? { ...headers, allow: "GET, HEAD" } : headers);
  response.end(`${text}\n`);
}

async function contextOf({ profile, identity }: BundleEndpointOptions): Promise<SecureContextOptions> {
  const settings = { ciphers: CIPHERS, honorCipherOrder: false };
  if (profile.type === "https_spiffe") return { ...contextOptions(identity.value), ...settings };
  const [cert, key] = await Promise.all([read(profile.certFile), read(profile.keyFile)]);
  return { ...contextOptions(undefined), ...settings, cert, key };
}

async function read(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw new Fault("precondition", `could not read ${path} for the bundle endpoint`, {
      code: "bundle-endpoint-certificate",
      hint: "check cert_file_path and key_file_path in federation.bundle_endpoint",
      cause,
    });
  }
}

/** What cannot be used is logged, and the certificate before it stays. */
async function follow(server: Server, options: BundleEndpointOptions, signal: AbortSignal): Promise<void> {
  const { profile, identity, clock, log } = options;
  let shown = "";
  const show = async (): Promise<void> => {
    try {
      const context = await contextOf(options);
      const now = JSON.stringify([context.cert, context.key]);
      if (now === shown) return;
      server.setSecureContext(context);
      shown = now;
    } catch (error) {
      log.error("Certificate of the bundle endpoint cannot be used; the one before it stays", {
        error: Fault.from(error),
      });
    }
  };
  if (profile.type === "https_web") return every(clock, () => profile.syncIntervalMs, show, signal);
  for await (const _ of identity.watch(signal)) await show();
}

function listening(server: Server, { address, port }: BundleEndpointConfig): Promise<void> {
  return new Promise((done, fail) => {
    const refused = (cause: NodeJS.ErrnoException): void =>
      fail(
        new Fault("precondition", `could not serve the bundle endpoint on ${address}:${port}: ${cause.message}`, {
          code: cause.code === "EADDRINUSE" ? "port-in-use" : "listen-failed",
          hint: "change address or port in federation.bundle_endpoint",
          cause,
        }),
      );
    server.once("error", refused);
    server.listen(port, address, () => {
      server.off("error", refused);
      done();
    });
  });
}
