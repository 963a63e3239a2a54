import type { IncomingMessage } from "node:http";
import { Agent, request } from "node:https";
import * as v from "valibot";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault, messageOf } from "../../src/runtime/fault.ts";
import { type KubeAccess, kubeAccess } from "./kubeconfig.ts";

const TIMEOUT_MS = 10_000;
const MAX_ANSWER_BYTES = 4 * 1024 * 1024;

const texts = v.record(v.string(), v.string());
const TokenReview = v.object({
  status: v.object({
    authenticated: v.optional(v.boolean(), false),
    error: v.optional(v.string(), ""),
    audiences: v.nullish(v.array(v.string()), []),
    user: v.optional(
      v.object({
        username: v.optional(v.string(), ""),
        extra: v.nullish(v.record(v.string(), v.array(v.string())), {}),
      }),
      {},
    ),
  }),
});
const Pod = v.object({
  metadata: v.object({
    name: v.string(),
    namespace: v.string(),
    uid: v.string(),
    labels: v.nullish(texts, {}),
  }),
  spec: v.object({ nodeName: v.optional(v.string(), ""), serviceAccountName: v.optional(v.string(), "") }),
  status: v.optional(v.object({ hostIP: v.optional(v.string(), "") }), {}),
});
const Node = v.object({ metadata: v.object({ name: v.string(), uid: v.string(), labels: v.nullish(texts, {}) }) });

export type KubePod = v.InferOutput<typeof Pod>;
export type KubeNode = v.InferOutput<typeof Node>;
export type TokenStatus = v.InferOutput<typeof TokenReview>["status"];

/** The API server of one cluster, for one attestation: credentials are read once, and one connection is kept. */
export class KubeApi implements Disposable {
  readonly #access: KubeAccess;
  readonly #agent: Agent;
  readonly #clock: Clock;

  private constructor(access: KubeAccess, clock: Clock) {
    const { ca, cert, key, serverName: servername } = access;
    this.#access = access;
    this.#clock = clock;
    this.#agent = new Agent({
      keepAlive: true,
      maxSockets: 1,
      minVersion: "TLSv1.2",
      ...(ca === undefined ? {} : { ca }),
      ...(cert === undefined || key === undefined ? {} : { cert, key }),
      ...(servername === undefined ? {} : { servername }),
    });
  }

  /** Throws `unavailable` when the credentials can't be read. */
  static async open(kubeConfigFile: string | undefined, clock: Clock): Promise<KubeApi> {
    return new KubeApi(await kubeAccess(kubeConfigFile), clock);
  }

  /** Without audiences, the API server's own. */
  async review(token: string, audiences: readonly string[], signal: AbortSignal): Promise<TokenStatus> {
    const spec = audiences.length === 0 ? { token } : { token, audiences };
    const body = JSON.stringify({ apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec });
    const call = { method: "POST", path: "/apis/authentication.k8s.io/v1/tokenreviews", body } as const;
    return (await this.#call(TokenReview, call, signal)).status;
  }

  pod(namespace: string, name: string, signal: AbortSignal): Promise<KubePod> {
    return this.#call(Pod, { method: "GET", path: `/api/v1/namespaces/${part(namespace)}/pods/${part(name)}` }, signal);
  }

  node(name: string, signal: AbortSignal): Promise<KubeNode> {
    return this.#call(Node, { method: "GET", path: `/api/v1/nodes/${part(name)}` }, signal);
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }

  async #call<S extends v.GenericSchema>(schema: S, call: Call, outer: AbortSignal): Promise<v.InferOutput<S>> {
    const timeout = new AbortController();
    const signal = AbortSignal.any([outer, timeout.signal]);
    const timer = this.#clock.sleep(TIMEOUT_MS, signal).then(
      () => timeout.abort(),
      () => undefined,
    );
    try {
      return v.parse(schema, JSON.parse(await this.#exchange(call, signal)));
    } catch (error) {
      outer.throwIfAborted();
      if (isFault(error)) throw error;
      const isOurs = error instanceof SyntaxError || error instanceof v.ValiError;
      const reason = isOurs ? "the answer is not of the expected form" : messageOf(error);
      throw unavailable(timeout.signal.aborted ? `no answer within ${TIMEOUT_MS / 1000} s` : reason, error);
    } finally {
      timeout.abort();
      await timer;
    }
  }

  async #exchange({ method, path, body }: Call, signal: AbortSignal): Promise<string> {
    const { server, token } = this.#access;
    const headers = {
      accept: "application/json",
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    };
    const url = new URL(server.pathname.replace(/\/$/, "") + path, server);
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      request(url, { method, headers, agent: this.#agent, signal }, resolve).on("error", reject).end(body);
    });
    const text = await readAll(response);
    if (Math.floor((response.statusCode ?? 0) / 100) === 2) return text;
    throw unavailable(`status ${response.statusCode}`);
  }
}

interface Call {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly body?: string;
}

/** A name that is one path segment: nothing in it needs to be encoded, and it's neither dot nor dots. */
function part(name: string): string {
  if (/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(name)) return name;
  throw unavailable("a name is not one of Kubernetes");
}

async function readAll(response: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response) {
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) throw unavailable("the answer is larger than 4 MiB");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function unavailable(reason: string, cause?: unknown): Fault {
  return new Fault("unavailable", reason, { code: "kube-api", cause });
}
