import { createHash, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer as createPlainServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";

export interface RegistryDoubleOptions {
  /** Certificate and key of a registry with TLS, PEM. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** Default: the address that needs no TLS. */
  readonly host?: string;
  readonly port?: number;
  /**
   * Who may read; anybody when absent. With `token`, the token service asks for them, and the registry for its token;
   * without a user's name it gives one to anybody.
   */
  readonly login?: { readonly scheme: "basic" | "token"; readonly username: string; readonly password: string };
}

export interface SeenRequest {
  readonly method: string;
  readonly url: string;
  readonly authorization: string | undefined;
}

export interface Descriptor {
  readonly mediaType: string;
  readonly size: number;
  readonly digest: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

const MANIFEST = "application/vnd.oci.image.manifest.v1+json";
const CONFIG = "application/vnd.oci.image.config.v1+json";
const ROUTE = /^\/v2\/(?<name>.+?)\/(?<kind>manifests|blobs|blobs\/uploads)\/(?<reference>[^/]*)$/;

/** A registry by the OCI distribution specification (v1.1): pull, push, and the token service of the distribution project. */
export class RegistryDouble implements AsyncDisposable {
  readonly requests: SeenRequest[] = [];
  /** Answers in the registry's place when it returns true. */
  override: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;
  readonly #options: RegistryDoubleOptions;
  readonly #server: Server;
  readonly #manifests = new Map<string, { readonly type: string; readonly body: Buffer }>();
  readonly #blobs = new Map<string, Buffer>();
  readonly #uploads = new Map<string, Buffer>();
  readonly #token = randomUUID();

  private constructor(options: RegistryDoubleOptions) {
    this.#options = options;
    const listener = (request: IncomingMessage, response: ServerResponse): void => void this.#serve(request, response);
    this.#server = options.tls === undefined ? createPlainServer(listener) : createServer(options.tls, listener);
  }

  static async open(options: RegistryDoubleOptions = {}): Promise<RegistryDouble> {
    const registry = new RegistryDouble(options);
    registry.#server.listen(options.port ?? 0, options.host ?? "127.0.0.1");
    await once(registry.#server, "listening");
    return registry;
  }

  /** Host and port, as names of images begin. */
  get host(): string {
    return `${this.#options.host ?? "127.0.0.1"}:${(this.#server.address() as AddressInfo).port}`;
  }

  get origin(): string {
    return `${this.#options.tls === undefined ? "http" : "https"}://${this.host}`;
  }

  /** Stores an image of no layers. */
  image(repository: string, label: string): string {
    const config = this.blob(
      Buffer.from(JSON.stringify({ architecture: "amd64", os: "linux", config: { Labels: { label } } })),
    );
    const digest = this.manifest(repository, "latest", { config, layers: [] });
    return digest;
  }

  blob(body: Buffer, descriptor: Partial<Descriptor> = {}): Descriptor {
    const digest = digestOf(body);
    this.#blobs.set(digest, body);
    return { mediaType: CONFIG, size: body.length, digest, ...descriptor };
  }

  blobOf(digest: string): Buffer {
    return this.#blobs.get(digest) ?? Buffer.alloc(0);
  }

  /** Stores bytes under a digest that is not theirs, or loses them. */
  corrupt(digest: string, body: Buffer | undefined): void {
    if (body === undefined) this.#blobs.delete(digest);
    else this.#blobs.set(digest, body);
  }

  manifest(
    repository: string,
    tag: string,
    manifest: { readonly config?: Descriptor; readonly layers: readonly object[] },
  ): string {
    const whole = { schemaVersion: 2, mediaType: MANIFEST, config: this.blob(Buffer.from("{}")), ...manifest };
    return this.#store(repository, tag, MANIFEST, Buffer.from(JSON.stringify(whole)));
  }

  remove(repository: string, tag: string): void {
    this.#manifests.delete(`${repository}@${tag}`);
  }

  #store(repository: string, reference: string, type: string, body: Buffer): string {
    const digest = digestOf(body);
    for (const key of [reference, digest]) this.#manifests.set(`${repository}@${key}`, { type, body });
    return digest;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = "", url = "", headers } = request;
    this.requests.push({ method, url, authorization: headers.authorization });
    if (this.override?.(request, response) === true) return;
    const path = new URL(url, this.origin).pathname;
    if (path === "/token") return this.#giveToken(url, headers.authorization, response);
    if (!this.#mayUse(headers.authorization)) return this.#challenge(url, response);
    if (path === "/v2/") return void response.writeHead(200).end("{}");
    const { name = "", kind, reference = "" } = ROUTE.exec(path)?.groups ?? {};
    if (kind === "manifests") return await this.#serveManifest(request, response, { name, reference });
    if (kind === "blobs") return this.#serveBlob(response, reference);
    if (kind === "blobs/uploads") return await this.#serveUpload(request, response, { name, reference });
    refuse(response, 404, "NAME_UNKNOWN");
  }

  async #serveManifest(request: IncomingMessage, response: ServerResponse, { name, reference }: Route): Promise<void> {
    if (request.method === "PUT") {
      const digest = this.#store(name, reference, request.headers["content-type"] ?? MANIFEST, await bodyOf(request));
      return void response
        .writeHead(201, { location: `/v2/${name}/manifests/${digest}`, "docker-content-digest": digest })
        .end();
    }
    const found = this.#manifests.get(`${name}@${reference}`);
    if (found === undefined) return refuse(response, 404, "MANIFEST_UNKNOWN");
    const headers = {
      "content-type": found.type,
      "docker-content-digest": digestOf(found.body),
      "content-length": found.body.length,
    };
    response.writeHead(200, headers).end(request.method === "HEAD" ? undefined : found.body);
  }

  #serveBlob(response: ServerResponse, digest: string): void {
    const found = this.#blobs.get(digest);
    if (found === undefined) {
      refuse(response, 404, "BLOB_UNKNOWN");
      return;
    }
    response
      .writeHead(200, {
        "content-type": "application/octet-stream",
        "docker-content-digest": digest,
        "content-length": found.length,
      })
      .end(found);
  }

  async #serveUpload(request: IncomingMessage, response: ServerResponse, { name, reference }: Route): Promise<void> {
    const id = reference === "" ? randomUUID() : reference;
    const body = Buffer.concat([this.#uploads.get(id) ?? Buffer.alloc(0), await bodyOf(request)]);
    this.#uploads.set(id, body);
    const digest = new URL(request.url ?? "", this.origin).searchParams.get("digest");
    const location = `/v2/${name}/blobs/uploads/${id}`;
    if (request.method !== "PUT" || digest === null) {
      const range = `0-${Math.max(0, body.length - 1)}`;
      return void response.writeHead(202, { location, range }).end();
    }
    if (digest !== digestOf(body)) return refuse(response, 400, "DIGEST_INVALID");
    this.#blobs.set(digest, body);
    response.writeHead(201, { location: `/v2/${name}/blobs/${digest}`, "docker-content-digest": digest }).end();
  }

  #mayUse(authorization: string | undefined): boolean {
    const { login } = this.#options;
    if (login === undefined) return true;
    return authorization === (login.scheme === "token" ? `Bearer ${this.#token}` : basicOf(login));
  }

  #challenge(url: string, response: ServerResponse): void {
    const [, name = ""] = /^\/v2\/(.+?)\/(?:manifests|blobs)\//.exec(url) ?? [];
    const token = `Bearer realm="${this.origin}/token",service="registry.test",scope="repository:${name}:pull"`;
    const challenge = this.#options.login?.scheme === "token" ? token : 'Basic realm="registry.test"';
    response.setHeader("www-authenticate", challenge);
    refuse(response, 401, "UNAUTHORIZED");
  }

  #giveToken(url: string, authorization: string | undefined, response: ServerResponse): void {
    const { login } = this.#options;
    const asked = new URL(url, this.origin).searchParams;
    const isWhole = asked.get("service") === "registry.test" && /^repository:.+:pull$/.test(asked.get("scope") ?? "");
    const mayHave = login?.username === "" || (login !== undefined && authorization === basicOf(login));
    if (!isWhole || !mayHave) {
      refuse(response, 401, "DENIED");
      return;
    }
    response
      .writeHead(200, { "content-type": "application/json" })
      .end(JSON.stringify({ token: this.#token, expires_in: 300 }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}

interface Route {
  readonly name: string;
  readonly reference: string;
}

function basicOf({ username, password }: { readonly username: string; readonly password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
}

export function digestOf(body: Uint8Array): string {
  return `sha256:${createHash("sha256").update(body).digest("hex")}`;
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function refuse(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify({ errors: [{ code, message: code.toLowerCase() }] }));
}
