import { readFile } from "node:fs/promises";
import { Agent } from "node:https";
import { join } from "node:path";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { withDeadline } from "./deadline.ts";
import { type AnswerSink, excerpt, type HttpAnswer, type HttpQuestion, httpAsk, jsonOf } from "./http.ts";
import { objectOf, textOf } from "./pods.ts";

/** Where a pod finds the API server, as Kubernetes sets it up in every container. */
export interface InCluster {
  readonly host: string;
  readonly port: number;
  /** Holds `ca.crt` and `token`; the token is replaced from time to time. */
  readonly directory: string;
}

/** What an object is without what it wants and does. */
export const METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
export const METADATA_LIST = METADATA_ONLY.replace("PartialObjectMetadata", "PartialObjectMetadataList");

const DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount";
const REQUEST_MS = 10_000;
const MAX_BYTES = 16 * 1024 * 1024;
/** Two of them are taken while pods and namespaces are watched. */
const MAX_SOCKETS = 6;
/** Of the answer to a stream, which its reader bounds by piece. */
const MAX_STREAM_BYTES = 1024 * 1024 * 1024;
const PEER = "the Kubernetes API server";

interface Question {
  readonly path: string;
  readonly accept?: string;
  /** Sent by POST. */
  readonly body?: object;
  /** Ends the waiting; the client's own life does too. */
  readonly signal?: AbortSignal;
}

interface Streaming {
  readonly signal: AbortSignal;
  /** Longest time that the answer may go on for. */
  readonly ms: number;
  readonly sink: AnswerSink;
}

/** The API server of the cluster that this agent runs in, asked as the agent's service account. */
export class KubeApi {
  readonly #clock: Clock;
  readonly #life: AbortSignal;
  readonly #place: InCluster | undefined;
  #connection: { readonly ca: string; readonly agent: Agent } | undefined;

  /** `life` ends whatever is still being asked. */
  constructor(clock: Clock, life: AbortSignal, place: InCluster | undefined = inCluster()) {
    this.#clock = clock;
    this.#life = life;
    this.#place = place;
    life.addEventListener("abort", () => this.#connection?.agent.destroy(), { once: true });
  }

  /**
   * JSON of the answer. Throws `not_found` when there is no such thing, `unavailable` with the reason when there is no
   * answer or another one.
   */
  async ask({ signal, ...question }: Question): Promise<Readonly<Record<string, unknown>>> {
    const either = signal === undefined ? this.#life : AbortSignal.any([this.#life, signal]);
    const deadline = { ms: REQUEST_MS, clock: this.#clock, signal: either };
    const answer = await withDeadline(deadline, (limit) => this.#ask(question, limit));
    if (answer.status === 200 || answer.status === 201) return objectOf(jsonOf(answer.body, PEER));
    throw kubernetesFault(answer.status, statusMessage(answer));
  }

  /**
   * Hands over an answer piece by piece until its end. Throws as `ask` does, and with the code `kubernetes-gone` when
   * the version asked from is too old; also when it does not begin in time, or goes on for longer than `ms`.
   */
  async stream({ signal, ms, sink, ...question }: Question & Streaming): Promise<void> {
    const unopened = new AbortController();
    const opened = new AbortController();
    const either = AbortSignal.any([this.#life, signal, unopened.signal]);
    void this.#clock.sleep(REQUEST_MS, AbortSignal.any([opened.signal, either])).then(
      () => unopened.abort(new Fault("timeout", `no answer after ${REQUEST_MS / 1000} s`)),
      () => undefined,
    );
    const open = (): void => {
      opened.abort();
      sink.opened?.();
    };
    const rest = { maxBytes: MAX_STREAM_BYTES, sink: { opened: open, push: (chunk: Buffer) => sink.push(chunk) } };
    try {
      const answer = await withDeadline({ ms, clock: this.#clock, signal: either }, (limit) =>
        this.#ask(question, limit, rest),
      );
      if (answer.status !== 200) throw kubernetesFault(answer.status, statusMessage(answer));
    } finally {
      opened.abort();
    }
  }

  async #ask(
    { path, accept = "application/json", body }: Question,
    signal: AbortSignal,
    rest: Partial<HttpQuestion> = {},
  ): Promise<HttpAnswer> {
    const place = this.#place;
    if (place === undefined) {
      const message = "the agent does not run in a pod: KUBERNETES_SERVICE_HOST is not set";
      throw new Fault("unavailable", message, { code: "kubernetes-api" });
    }
    const [ca, token] = await Promise.all([load(place.directory, "ca.crt"), load(place.directory, "token")]);
    const type = body === undefined ? {} : { "content-type": "application/json" };
    const headers = { authorization: `Bearer ${token.trim()}`, accept, ...type };
    const options = { host: place.host, port: place.port, path, headers, agent: this.#agent(ca) };
    const sent = body === undefined ? {} : { body: JSON.stringify(body) };
    return httpAsk({ secure: true, options, maxBytes: MAX_BYTES, peer: PEER, ...sent, ...rest }, signal);
  }

  #agent(ca: string): Agent {
    if (this.#connection?.ca === ca) return this.#connection.agent;
    this.#connection?.agent.destroy();
    const agent = new Agent({ ca, keepAlive: true, maxSockets: MAX_SOCKETS });
    this.#connection = { ca, agent };
    return agent;
  }
}

const GONE = 410;
/** Code of a refusal to go on from a version that the API server does not remember. */
export const VERSION_GONE = "kubernetes-gone";

/** What a status means, of an answer or of an event in it. */
export function kubernetesFault(status: number, message: string): Fault {
  const code = status === GONE ? VERSION_GONE : "kubernetes-api";
  return new Fault(status === 404 ? "not_found" : "unavailable", message, { code });
}

/** What the API server says in a `v1.Status`, or what anybody else says. */
function statusMessage({ status, body }: HttpAnswer): string {
  const said = body.subarray(0, 1).toString() === "{" ? textOf(objectOf(jsonOf(body, PEER))["message"]) : excerpt(body);
  return `status ${status} ${said}`;
}

function inCluster(): InCluster | undefined {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = process.env;
  return host === undefined || host === "" ? undefined : { host, port: Number(port ?? 443), directory: DIRECTORY };
}

async function load(directory: string, name: string): Promise<string> {
  try {
    return await readFile(join(directory, name), "utf8");
  } catch (cause) {
    throw new Fault("unavailable", (cause as Error).message, { code: "kubernetes-api", cause });
  }
}
