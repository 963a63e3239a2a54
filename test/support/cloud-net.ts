import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer, type Server as TlsServer } from "node:https";
import { type AddressInfo, connect, type Socket } from "node:net";
import { join } from "node:path";
import { createSecureContext, type SecureContext } from "node:tls";
import { createCa, type TestCa } from "./pki.ts";
import { temporaryDirectory } from "./workload.ts";

export interface CloudRequest {
  readonly method: string;
  /** Whole, as who asks meant it. */
  readonly url: URL;
  readonly headers: IncomingMessage["headers"];
  readonly body: string;
}

export interface CloudAnswer {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
}

type Handler = (request: CloudRequest) => CloudAnswer | Promise<CloudAnswer>;

/**
 * An internet of a few hosts, behind a proxy as companies have it: programs that use the proxy and believe its CA find
 * the hosts under their real names, by TLS or without. There is nothing else in it.
 */
export class CloudNet implements AsyncDisposable {
  /** For programs of Node and of Go. */
  readonly env: Readonly<Record<string, string>>;
  readonly ca: TestCa;
  /** Method and URL of each request. */
  readonly requests: string[] = [];
  readonly #hosts = new Map<string, Handler>();
  readonly #sockets = new Set<Socket>();
  readonly #resources: AsyncDisposableStack;

  private constructor(ca: TestCa, env: CloudNet["env"], resources: AsyncDisposableStack) {
    this.ca = ca;
    this.env = env;
    this.#resources = resources;
  }

  static async open(): Promise<CloudNet> {
    await using scope = new AsyncDisposableStack();
    const { path } = scope.use(await temporaryDirectory());
    const ca = await createCa({ uris: [] });
    const file = join(path, "ca.pem");
    await writeFile(file, ca.pem);
    const proxy = createServer();
    const contexts = new Map<string, Promise<SecureContext>>();
    const tls = createTlsServer({
      SNICallback: (host, done) => {
        const context = contexts.get(host) ?? contextFor(ca, host);
        contexts.set(host, context);
        context.then((made) => done(null, made), done);
      },
    });
    const ports = await Promise.all([proxy, tls].map(listen));
    const proxied = `http://127.0.0.1:${ports[0]}`;
    const trust = { NODE_EXTRA_CA_CERTS: file, SSL_CERT_FILE: file };
    const env = { HTTPS_PROXY: proxied, HTTP_PROXY: proxied, NO_PROXY: "127.0.0.1,localhost", ...trust };
    const net = new CloudNet(ca, env, scope.move());
    net.#serve(proxy, tls, ports[1] ?? 0);
    return net;
  }

  /** The host answers from now on. */
  on(host: string, handler: Handler): void {
    this.#hosts.set(host, handler);
  }

  #serve(proxy: Server, tls: TlsServer, tlsPort: number): void {
    for (const server of [proxy, tls])
      server.on("connection", (socket: Socket) => {
        this.#sockets.add(socket);
        socket.on("error", () => socket.destroy()).on("close", () => this.#sockets.delete(socket));
      });
    proxy.on("connect", (request, socket: Socket) => {
      const host = (request.url ?? "").replace(/:443$/, "");
      if (!this.#hosts.has(host)) return socket.end("HTTP/1.1 502 Bad Gateway\r\n\r\n");
      const onward = connect(tlsPort, "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        socket.pipe(onward).pipe(socket);
      });
      onward.on("error", () => socket.destroy());
      return onward;
    });
    proxy.on("request", (request, response) => void this.#answer(new URL(request.url ?? ""), request, response));
    tls.on("request", (request, response) => {
      void this.#answer(new URL(request.url ?? "", `https://${request.headers.host}`), request, response);
    });
    this.#resources.defer(() => {
      for (const socket of this.#sockets) socket.destroy();
      proxy.close();
      tls.close();
    });
  }

  async #answer(url: URL, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method = "", headers } = request;
    this.requests.push(`${method} ${url.href}`);
    const handler = this.#hosts.get(url.host);
    const asked = { method, url, headers, body: Buffer.concat(chunks).toString() };
    const answer = (await handler?.(asked)) ?? { status: 502, body: "" };
    response.writeHead(answer.status ?? 200, answer.headers).end(answer.body);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

async function contextFor(ca: TestCa, host: string): Promise<SecureContext> {
  const { pem: cert, keyPem: key } = await ca.issue({ uris: [], dnsNames: [host] });
  return createSecureContext({ cert, key });
}

/** Serves until the scope ends; resolves with the base URL. */
export async function serveHttp(scope: AsyncDisposableStack, handler: Handler): Promise<string> {
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method = "", headers, url = "" } = request;
    const asked = {
      method,
      url: new URL(url, `http://${headers.host}`),
      headers,
      body: Buffer.concat(chunks).toString(),
    };
    const answer = await handler(asked);
    response.writeHead(answer.status ?? 200, answer.headers).end(answer.body);
  });
  const port = await listen(server);
  scope.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${port}`;
}

async function listen(server: Server | TlsServer): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}
