import { readFile } from "node:fs/promises";
import { type IncomingMessage, request as requestHttp } from "node:http";
import { type RequestOptions, request as requestHttps } from "node:https";
import type { Clock } from "../runtime/clock.ts";
import { Fault, messageOf } from "../runtime/fault.ts";

/** How to reach a HashiCorp Vault or OpenBao server, and who to be there. */
export interface VaultConfig {
  /** Such as `https://vault.example.org:8200`. */
  readonly address: string;
  readonly namespace?: string;
  /** PEM. Default: the system's roots. */
  readonly caCertPath?: string;
  readonly insecureSkipVerify: boolean;
  readonly auth: VaultAuth;
}

export type VaultAuth =
  | { readonly method: "token"; readonly token: string }
  | {
      readonly method: "cert";
      readonly mount: string;
      readonly role?: string;
      readonly certPath: string;
      readonly keyPath: string;
    }
  | { readonly method: "approle"; readonly mount: string; readonly roleId: string; readonly secretId: string }
  | { readonly method: "k8s"; readonly mount: string; readonly role: string; readonly tokenPath: string };

type Json = Readonly<Record<string, unknown>>;

interface Answer {
  readonly status: number;
  readonly body: Json;
}

interface Login {
  readonly token: string;
  /** Monotonic milliseconds from which on the next login is due. */
  readonly until: number;
}

const TIMEOUT_MS = 10_000;
const MAX_ANSWER_BYTES = 4 * 1024 * 1024;
/** Share of a lease after which the next one is taken. */
const LEASE_SHARE = 0.5;
const MESSAGE_CHARACTERS = 300;

/** The HTTP API of Vault. Logs in when needed, and anew when a lease is half over or the server says so. */
export class VaultClient {
  readonly #config: VaultConfig;
  readonly #clock: Pick<Clock, "monotonic">;
  #login: Promise<Login> | undefined;

  constructor(config: VaultConfig, clock: Pick<Clock, "monotonic">) {
    this.#config = config;
    this.#clock = clock;
  }

  /**
   * The `data` of the answer. `path` stands below `/v1/`. Throws `not_found`, `denied`, `invalid` for what the server
   * refuses, and `unavailable` when it is away or sealed.
   */
  async call(method: "GET" | "POST" | "DELETE", path: string, body?: Json): Promise<Json> {
    const login = await this.#token();
    let answer = await this.#send(method, path, { token: login.token, body });
    if (answer.status === 403) {
      this.#login = undefined;
      answer = await this.#send(method, path, { token: (await this.#token()).token, body });
    }
    if (answer.status >= 300) throw refusal(method, path, answer);
    return objectIn(answer.body, "data");
  }

  async #token(): Promise<Login> {
    const held = await this.#login?.catch(() => undefined);
    if (held !== undefined && held.until > this.#clock.monotonic()) return held;
    this.#login = this.#config.auth.method === "token" ? this.#renewed(this.#config.auth.token) : this.#loggedIn();
    return this.#login;
  }

  /** A given token is renewed where that is possible; where it is not it is used as it is. */
  async #renewed(token: string): Promise<Login> {
    const answer = await this.#send("POST", "auth/token/renew-self", { token, body: {} });
    const lease = answer.status < 300 ? Number(objectIn(answer.body, "auth")["lease_duration"]) : 0;
    return { token, until: this.#until(lease) };
  }

  async #loggedIn(): Promise<Login> {
    const { path, body } = await loginRequest(this.#config.auth);
    const answer = await this.#send("POST", path, { body });
    if (answer.status >= 300) throw refusal("POST", path, answer);
    const auth = objectIn(answer.body, "auth");
    const token = auth["client_token"];
    if (typeof token !== "string" || token === "") throw unexpected("the login's answer holds no token");
    return { token, until: this.#until(Number(auth["lease_duration"])) };
  }

  /** A lease of 0 never ends. */
  #until(leaseSeconds: number): number {
    const lasts = leaseSeconds > 0 ? leaseSeconds * 1000 * LEASE_SHARE : Number.POSITIVE_INFINITY;
    return this.#clock.monotonic() + lasts;
  }

  async #send(
    method: string,
    path: string,
    { token, body }: { readonly token?: string; readonly body?: Json | undefined },
  ): Promise<Answer> {
    const { address, namespace } = this.#config;
    const text = body === undefined ? "" : JSON.stringify(body);
    const headers = {
      "x-vault-request": "true",
      ...(token === undefined ? {} : { "x-vault-token": token }),
      ...(namespace === undefined ? {} : { "x-vault-namespace": namespace }),
      ...(text === "" ? {} : { "content-type": "application/json", "content-length": String(Buffer.byteLength(text)) }),
    };
    const url = new URL(`v1/${path}`, address.endsWith("/") ? address : `${address}/`);
    const tls = url.protocol === "https:" ? await this.#tls() : {};
    try {
      return await exchange(url, { method, headers, timeout: TIMEOUT_MS, ...tls }, text);
    } catch (cause) {
      throw new Fault("unavailable", `Vault at ${url.host} does not answer: ${messageOf(cause)}`, {
        code: "vault-away",
        cause,
      });
    }
  }

  async #tls(): Promise<RequestOptions> {
    const { caCertPath, insecureSkipVerify, auth } = this.#config;
    const client =
      auth.method === "cert" ? { cert: await readFile(auth.certPath), key: await readFile(auth.keyPath) } : {};
    const ca = caCertPath === undefined ? {} : { ca: await readFile(caCertPath) };
    return { ...client, ...ca, rejectUnauthorized: !insecureSkipVerify };
  }
}

async function loginRequest(auth: VaultAuth): Promise<{ readonly path: string; readonly body: Json }> {
  switch (auth.method) {
    case "cert":
      return { path: `auth/${auth.mount}/login`, body: auth.role === undefined ? {} : { name: auth.role } };
    case "approle":
      return { path: `auth/${auth.mount}/login`, body: { role_id: auth.roleId, secret_id: auth.secretId } };
    case "k8s": {
      const jwt = (await readFile(auth.tokenPath, "utf8")).trim();
      return { path: `auth/${auth.mount}/login`, body: { role: auth.role, jwt } };
    }
    case "token":
      throw new Fault("internal", "a token needs no login");
  }
}

function exchange(url: URL, options: RequestOptions, body: string): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const send = url.protocol === "https:" ? requestHttps : requestHttp;
  const sent = send(url, options, (response) => {
    collected(response).then((text) => resolve({ status: response.statusCode ?? 0, body: parsed(text) }), reject);
  });
  sent.on("timeout", () => sent.destroy(new Error(`no answer within ${TIMEOUT_MS} ms`)));
  sent.on("error", reject);
  sent.end(body);
  return promise;
}

async function collected(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) throw new Error("the answer is too large");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function parsed(text: string): Json {
  if (text === "") return {};
  const value: unknown = JSON.parse(text);
  return typeof value === "object" && value !== null ? (value as Json) : {};
}

function objectIn(body: Json, name: string): Json {
  const value = body[name];
  return typeof value === "object" && value !== null ? (value as Json) : {};
}

const KINDS = new Map([
  [400, "invalid"],
  [403, "denied"],
  [404, "not_found"],
] as const);

/** With what the server says of it, which holds no secret of ours. */
function refusal(method: string, path: string, { status, body }: Answer): Fault {
  const errors: unknown = body["errors"];
  const said = Array.isArray(errors) ? errors.filter((error) => typeof error === "string").join("; ") : "";
  const kind = KINDS.get(status as 400) ?? "unavailable";
  const message = `Vault refuses ${method} ${path} with ${status}${said === "" ? "" : `: ${said}`}`;
  return new Fault(kind, message.slice(0, MESSAGE_CHARACTERS), { code: `vault-${status}` });
}

function unexpected(reason: string): Fault {
  return new Fault("unavailable", `unexpected answer of Vault: ${reason}`, { code: "vault-answer" });
}
