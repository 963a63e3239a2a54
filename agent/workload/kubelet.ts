import { readFile } from "node:fs/promises";
import { Agent as PlainAgent } from "node:http";
import { Agent } from "node:https";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { withDeadline } from "./deadline.ts";
import { type AnswerSink, excerpt, type HttpAnswer, httpAsk } from "./http.ts";
import { PodReader } from "./pod-reader.ts";
import type { Pod } from "./pods.ts";

/** How the kubelet is reached, recognised, and told who asks. */
export interface KubeletConfig {
  readonly port: number;
  /** The read-only port knows neither TLS nor credentials. */
  readonly secure: boolean;
  /** PEM of the authorities that may have signed the kubelet's certificate; undefined believes any certificate. */
  readonly caPath: string | undefined;
  readonly credentials:
    | { readonly type: "token"; readonly path: string }
    | { readonly type: "certificate"; readonly certificatePath: string; readonly privateKeyPath: string }
    | { readonly type: "anonymous" };
  /** Host that is dialled, and that the certificate must be made out to; undefined is this host, by any name. */
  readonly nodeName: string | undefined;
  readonly reloadIntervalMs: number;
}

interface Material {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly token?: string;
}

interface Connection {
  readonly material: Material;
  readonly agent: Agent;
  readonly loadedAt: number;
}

const LOOPBACK = "127.0.0.1";
const REQUEST_MS = 10_000;
/** Of a whole list, which is read one pod at a time. */
const MAX_BYTES = 128 * 1024 * 1024;
const PEER = "the kubelet";

/** Asks a kubelet for the pods of its node. Certificates and token are read again at `reloadIntervalMs`. */
export class KubeletClient implements Disposable {
  readonly #config: KubeletConfig;
  readonly #clock: Clock;
  readonly #plain = new PlainAgent({ keepAlive: true });
  #connection: Connection | undefined;
  readonly #reader = new PodReader(PEER);
  #last: { readonly etag: string | undefined; readonly pods: readonly Pod[] } | undefined;

  constructor(config: KubeletConfig, clock: Clock) {
    this.#config = config;
    this.#clock = clock;
  }

  /**
   * The pods that `GET /pods` lists; the very array of the time before when nothing has changed. Throws `unavailable`
   * with the reason when there is no list.
   */
  async pods(signal: AbortSignal): Promise<readonly Pod[]> {
    const reading = this.#reader.begin();
    const deadline = { ms: REQUEST_MS, clock: this.#clock, signal };
    const answer = await withDeadline(deadline, (limit) => this.#get(reading, limit));
    if (answer.status === 304 && this.#last !== undefined) return this.#last.pods;
    if (answer.status !== 200) throw this.#refused(answer);
    const pods = reading.end();
    this.#last = { etag: answer.headers.etag, pods };
    return pods;
  }

  [Symbol.dispose](): void {
    this.#plain.destroy();
    this.#connection?.agent.destroy();
  }

  async #get(sink: AnswerSink, signal: AbortSignal): Promise<HttpAnswer> {
    const { port, secure, nodeName } = this.#config;
    const etag = this.#last?.etag;
    const headers: Record<string, string> = { accept: "application/json" };
    if (etag !== undefined) headers["if-none-match"] = etag;
    const common = { path: "/pods", port, headers };
    const rest = { maxBytes: MAX_BYTES, peer: PEER, sink };
    if (!secure)
      return httpAsk({ ...rest, secure, options: { ...common, host: LOOPBACK, agent: this.#plain } }, signal);
    const { agent, material } = await this.#connect();
    if (material.token !== undefined) headers["authorization"] = `Bearer ${material.token}`;
    return httpAsk({ ...rest, secure, options: { ...common, host: nodeName ?? LOOPBACK, agent } }, signal);
  }

  async #connect(): Promise<Connection> {
    const now = this.#clock.monotonic();
    const held = this.#connection;
    if (held !== undefined && now - held.loadedAt < this.#config.reloadIntervalMs) return held;
    const material = await this.#load();
    const isSame = held !== undefined && sameTls(held.material, material);
    if (!isSame) held?.agent.destroy();
    this.#connection = { material, loadedAt: now, agent: isSame ? held.agent : this.#agent(material) };
    return this.#connection;
  }

  /** A kubelet that is reached over loopback has no name there: its chain is verified, its name cannot be. */
  #agent({ ca, cert, key }: Material): Agent {
    return new Agent({
      keepAlive: true,
      maxSockets: 2,
      rejectUnauthorized: this.#config.caPath !== undefined,
      ...(this.#config.nodeName === undefined ? { checkServerIdentity: () => undefined } : {}),
      ...(ca === undefined ? {} : { ca }),
      ...(cert === undefined || key === undefined ? {} : { cert, key }),
    });
  }

  async #load(): Promise<Material> {
    const { caPath, credentials } = this.#config;
    const ca = caPath === undefined ? {} : { ca: await load("kubelet CA", caPath) };
    if (credentials.type === "token") return { ...ca, token: (await load("token", credentials.path)).trim() };
    if (credentials.type === "anonymous") return ca;
    const cert = await load("certificate", credentials.certificatePath);
    return { ...ca, cert, key: await load("private key", credentials.privateKeyPath) };
  }

  /** What was refused may have been replaced in the meantime. */
  #refused({ status, body }: HttpAnswer): Fault {
    if (this.#connection !== undefined && (status === 401 || status === 403))
      this.#connection = { ...this.#connection, loadedAt: Number.NEGATIVE_INFINITY };
    const message = `unexpected status code on pods response: ${status} ${excerpt(body)}`;
    const hint = HINTS[status];
    return new Fault("unavailable", message, { code: "kubelet-refused", ...(hint === undefined ? {} : { hint }) });
  }
}

const HINTS: Readonly<Record<number, string>> = {
  401: "the kubelet does not know the agent: check token_path, or certificate_path and private_key_path",
  403: 'let the agent "get" the resource "nodes/pods", or "nodes/proxy" before Kubernetes 1.33',
};

function sameTls(one: Material, other: Material): boolean {
  return one.ca === other.ca && one.cert === other.cert && one.key === other.key;
}

async function load(what: string, path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    const message = `unable to load ${what}: ${messageOf(cause)}`;
    throw new Fault("unavailable", message, { code: "kubelet-credentials", cause });
  }
}
