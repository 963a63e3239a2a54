import { readFile } from "node:fs/promises";
import { Agent } from "node:https";
import { join } from "node:path";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { withDeadline } from "./deadline.ts";
import { excerpt, type HttpAnswer, httpGet, jsonOf } from "./http.ts";
import { objectOf, textEntries, textOf } from "./pods.ts";

type Labels = readonly (readonly [key: string, value: string])[];

/** Where a pod finds the API server, as Kubernetes sets it up in every container. */
export interface InCluster {
  readonly host: string;
  readonly port: number;
  /** Holds `ca.crt` and `token`; the token is replaced from time to time. */
  readonly directory: string;
}

const DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount";
const REQUEST_MS = 10_000;
const MAX_BYTES = 4 * 1024 * 1024;
const PEER = "the Kubernetes API server";

/** Labels of namespaces, asked of the API server each time; callers at the same time share the answer. */
export class NamespaceLabels {
  readonly #clock: Clock;
  readonly #life: AbortSignal;
  readonly #place: InCluster | undefined;
  readonly #asking = new Map<string, Promise<Labels>>();

  /** `life` ends whatever is still being asked. */
  constructor(clock: Clock, life: AbortSignal, place: InCluster | undefined = inCluster()) {
    this.#clock = clock;
    this.#life = life;
    this.#place = place;
  }

  /** Throws `unavailable` with the reason when they cannot be had. */
  async of(namespace: string): Promise<Labels> {
    const running = this.#asking.get(namespace) ?? this.#ask(namespace);
    this.#asking.set(namespace, running);
    return running;
  }

  #ask(namespace: string): Promise<Labels> {
    const deadline = { ms: REQUEST_MS, clock: this.#clock, signal: this.#life };
    const asking = withDeadline(deadline, (limit) => this.#get(namespace, limit));
    return asking.finally(() => this.#asking.delete(namespace));
  }

  async #get(namespace: string, signal: AbortSignal): Promise<Labels> {
    const place = this.#place;
    if (place === undefined)
      throw failed(namespace, "the agent does not run in a pod: KUBERNETES_SERVICE_HOST is not set");
    const [ca, token] = await Promise.all(["ca.crt", "token"].map((name) => load(place.directory, name, namespace)));
    using scope = new DisposableStack();
    const agent = scope.adopt(new Agent({ ca, maxSockets: 1 }), (open) => open.destroy());
    const headers = {
      authorization: `Bearer ${token?.trim()}`,
      accept: "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
    };
    const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}`;
    const options = { host: place.host, port: place.port, path, headers, agent };
    const answer = await httpGet({ secure: true, options, maxBytes: MAX_BYTES, peer: PEER }, signal);
    if (answer.status !== 200) throw failed(namespace, statusMessage(answer));
    return textEntries(objectOf(objectOf(jsonOf(answer.body, PEER))["metadata"])["labels"]);
  }
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

async function load(directory: string, name: string, namespace: string): Promise<string> {
  try {
    return await readFile(join(directory, name), "utf8");
  } catch (error) {
    throw failed(namespace, messageOf(error));
  }
}

function failed(namespace: string, reason: string): Fault {
  return new Fault("unavailable", `unable to get namespace labels for ${JSON.stringify(namespace)}: ${reason}`, {
    code: "namespace-labels",
    hint: 'let the agent\'s service account "get" the resource "namespaces", or turn enable_namespace_labels off',
  });
}
