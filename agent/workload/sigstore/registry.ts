import { createHash } from "node:crypto";
import { urlToHttpOptions } from "node:url";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { withDeadline } from "../deadline.ts";
import { type HttpAnswer, httpAsk, jsonOf } from "../http.ts";
import { objectOf, textOf } from "../pods.ts";
import type { Image } from "./image.ts";

export interface RegistryCredentials {
  readonly username: string;
  readonly password: string;
}

type Headers = Readonly<Record<string, string>>;

export interface RegistryOptions {
  readonly clock: Clock;
  /** Shown to nobody but the registry, and to the token service that it names. */
  readonly credentials: RegistryCredentials | undefined;
}

const REQUEST_MS = 10_000;
/** Of an answer that only says where to ask, or whom for a token; it may be longer than the blob that is asked for. */
const MAX_WORDS_BYTES = 64 * 1024;
/** What a registry accepts at most, by the distribution specification. */
const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;
const MAX_TOKEN_BYTES = 256 * 1024;
const MAX_HOPS = 5;
const MANIFEST_TYPES = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
].join(", ");

/** Reads one repository of a registry by the OCI distribution specification. For one verification. */
export class Repository {
  readonly #options: RegistryOptions;
  readonly #base: URL;
  readonly #repository: string;
  readonly #peer: string;
  #authorization: Headers = {};

  constructor({ registry, repository }: Image, options: RegistryOptions) {
    this.#options = options;
    this.#repository = repository;
    this.#peer = `the registry ${registry}`;
    const base = new URL(`https://${registry}/v2/${repository}/`);
    if (isLoopback(base)) base.protocol = "http:";
    this.#base = base;
  }

  /** Undefined when there is no such tag. Throws `unavailable`. */
  async manifest(tag: string, signal: AbortSignal): Promise<Buffer | undefined> {
    const answer = await this.#get(`manifests/${tag}`, MANIFEST_TYPES, MAX_MANIFEST_BYTES, signal);
    if (answer.status === 404) return undefined;
    return this.#whole(answer);
  }

  /** Exactly the bytes that the digest names. Throws `unavailable`; `denied` when they are others. */
  async blob(digest: string, size: number, signal: AbortSignal): Promise<Buffer> {
    const maxBytes = Math.max(size, MAX_WORDS_BYTES);
    const body = this.#whole(await this.#get(`blobs/${digest}`, "*/*", maxBytes, signal));
    if (body.length === size && digest === `sha256:${createHash("sha256").update(body).digest("hex")}`) return body;
    throw new Fault("denied", `${this.#peer} sent other bytes than ${digest} names`, { code: "registry-content" });
  }

  #whole({ status, body }: HttpAnswer): Buffer {
    if (status === 200) return body;
    throw new Fault("unavailable", `${this.#peer} answered with status ${status} for ${this.#repository}`, {
      code: "registry-refused",
      hint: status === 401 || status === 403 ? "see registry_credentials of the sigstore block" : "see the registry",
    });
  }

  /** Registries keep blobs elsewhere: another host gets the question, never the authorization. */
  async #get(path: string, accept: string, maxBytes: number, signal: AbortSignal): Promise<HttpAnswer> {
    let url = new URL(path, this.#base);
    for (let hop = 0, mayAuthenticate = true; hop <= MAX_HOPS; hop += 1) {
      const isOwn = url.origin === this.#base.origin;
      const answer = await this.#ask(url, { accept, ...(isOwn ? this.#authorization : {}) }, maxBytes, signal);
      const { location, "www-authenticate": challenge } = answer.headers;
      if (answer.status === 401 && isOwn && mayAuthenticate && challenge !== undefined) {
        mayAuthenticate = false;
        if (!(await this.#authenticate(challenge, signal))) return answer;
      } else if (answer.status >= 300 && answer.status <= 399 && location !== undefined) {
        url = this.#allowed(location, url);
      } else return answer;
    }
    throw new Fault("unavailable", `${this.#peer} redirects in circles`, { code: "registry-refused" });
  }

  /** Plaintext only on this host, and only when that is where the registry is. */
  #allowed(location: string, base: URL): URL {
    const url = URL.parse(location, base);
    if (url?.protocol === "https:") return url;
    if (url?.protocol === "http:" && isLoopback(url) && this.#base.protocol === "http:") return url;
    throw new Fault("denied", `${this.#peer} names an address without TLS`, { code: "registry-refused" });
  }

  #ask(url: URL, headers: Headers, maxBytes: number, signal: AbortSignal) {
    const options = {
      ...urlToHttpOptions(url),
      headers: { "user-agent": "steeple-agent", ...headers },
    };
    const question = { secure: url.protocol === "https:", options, maxBytes, peer: this.#peer };
    const deadline = { ms: REQUEST_MS, clock: this.#options.clock, signal };
    return withDeadline(deadline, (limit) => httpAsk(question, limit));
  }

  /** False when nothing can be shown that the registry would take. */
  async #authenticate(challenge: string, signal: AbortSignal): Promise<boolean> {
    const { credentials } = this.#options;
    const secret = credentials && Buffer.from(`${credentials.username}:${credentials.password}`).toString("base64");
    const basic: Headers = secret === undefined ? {} : { authorization: `Basic ${secret}` };
    const bearer = /(?:^|,)\s*bearer\s+(.*)/is.exec(challenge)?.[1];
    if (bearer !== undefined)
      this.#authorization = { authorization: `Bearer ${await this.#token(bearer, basic, signal)}` };
    else if (/(?:^|,)\s*basic\b/i.test(challenge)) this.#authorization = basic;
    return this.#authorization["authorization"] !== undefined;
  }

  /** As the distribution project's token authentication has it. */
  async #token(challenge: string, basic: Headers, signal: AbortSignal): Promise<string> {
    const parameter = (name: string): string | undefined =>
      new RegExp(`\\b${name}="([^"]*)"`, "i").exec(challenge)?.[1];
    const url = this.#allowed(parameter("realm") ?? "", this.#base);
    const service = parameter("service");
    if (service !== undefined) url.searchParams.set("service", service);
    url.searchParams.set("scope", `repository:${this.#repository}:pull`);
    const answer = await this.#ask(url, { accept: "application/json", ...basic }, MAX_TOKEN_BYTES, signal);
    const body = objectOf(jsonOf(this.#whole(answer), this.#peer));
    const token = textOf(body["token"]) || textOf(body["access_token"]);
    if (/^[\x21-\x7e]+$/.test(token)) return token;
    throw new Fault("unavailable", `the token service of ${this.#peer} gave no token`, { code: "registry-refused" });
  }
}

/** Where a registry is reached without TLS. */
function isLoopback({ hostname }: URL): boolean {
  return hostname === "localhost" || hostname === "127.0.0.1" || hostname === "[::1]";
}
