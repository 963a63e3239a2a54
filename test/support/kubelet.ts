import { hash } from "node:crypto";
import { once } from "node:events";
import { createServer as createPlainServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer, request as tlsRequest } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { bearer, clientUser, issueTls, type KubeApiServer, type KubeUser, textOf } from "./kube-apiserver.ts";
import type { Issued } from "./pki.ts";

export interface KubeletOptions {
  readonly nodeName?: string;
  /** Whether those without credentials are `system:anonymous` instead of refused. */
  readonly anonymous?: boolean;
}

interface KubeContainer {
  readonly name: string;
  readonly image?: string;
  readonly imageID?: string;
  /** With the runtime's scheme; absent while the container is waiting. */
  readonly containerID?: string;
}

export interface KubePod {
  readonly uid: string;
  readonly name: string;
  readonly namespace?: string;
  readonly serviceAccount?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly owners?: readonly { readonly kind: string; readonly name: string; readonly uid: string }[];
  readonly containers?: readonly KubeContainer[];
  readonly initContainers?: readonly KubeContainer[];
  readonly ephemeralContainers?: readonly KubeContainer[];
}

/** A pod as the kubelet shows it: without kind and version, statuses as far as its containers have come. */
export function podJson(pod: KubePod, nodeName = "node-1"): object {
  const created = "2026-11-01T10:00:00Z";
  const statuses = (list: readonly KubeContainer[] = []): object[] => list.map(statusJson);
  return {
    metadata: {
      ...{ name: pod.name, namespace: pod.namespace ?? "default", uid: pod.uid, creationTimestamp: created },
      ...{ resourceVersion: "1042", labels: pod.labels, annotations: pod.annotations },
      ownerReferences: pod.owners?.map((owner) => ({ apiVersion: "apps/v1", controller: true, ...owner })),
    },
    spec: {
      ...{ nodeName, serviceAccountName: pod.serviceAccount ?? "default", restartPolicy: "Always" },
      containers: (pod.containers ?? []).map(({ name, image }) => ({ name, image, imagePullPolicy: "Always" })),
      volumes: [{ name: "kube-api-access", projected: { sources: [{ serviceAccountToken: { path: "token" } }] } }],
    },
    status: {
      ...{ phase: "Running", hostIP: "10.0.0.1", podIP: "10.1.0.7", startTime: created, qosClass: "Burstable" },
      conditions: [{ type: "Ready", status: "True", lastTransitionTime: created }],
      containerStatuses: statuses(pod.containers),
      ...(pod.initContainers && { initContainerStatuses: statuses(pod.initContainers) }),
      ...(pod.ephemeralContainers && { ephemeralContainerStatuses: statuses(pod.ephemeralContainers) }),
    },
  };
}

/** The kubelet keeps its pods in a map, which has no order. */
function shuffled<T>(all: readonly T[]): readonly T[] {
  return all
    .map((one) => ({ one, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ one }) => one);
}

function statusJson({ name, image = "", imageID = "", containerID }: KubeContainer): object {
  if (containerID === undefined)
    return { name, image, imageID: "", state: { waiting: { reason: "ContainerCreating" } }, ready: false };
  const state = { running: { startedAt: "2026-11-01T10:00:01Z" } };
  return { name, state, lastState: {}, ready: true, restartCount: 0, image, imageID, containerID, started: true };
}

/**
 * A kubelet's `/pods` over TLS, and over the read-only port: it authenticates by client certificate or by TokenReview,
 * and authorises by SubjectAccessReview for `nodes/pods` and then `nodes/proxy`, as the real one does.
 */
export class Kubelet implements AsyncDisposable {
  readonly nodeName: string;
  /** Answers to `/pods`, of whatever status. */
  answered = 0;
  /** Answers that there is nothing new. */
  unchanged = 0;
  /** Makes lists have ETags, as a kubelet's have not, and sees the requests. */
  etags: ((request: IncomingMessage) => void) | undefined;
  /** Instead of an answer. */
  override: ((response: ServerResponse) => void) | undefined;
  readonly #pods = new Map<string, object>();
  readonly #apiserver: KubeApiServer;
  readonly #options: KubeletOptions;
  readonly #secure: Server;
  readonly #plain: Server;
  readonly #own: Issued;

  private constructor(apiserver: KubeApiServer, options: KubeletOptions, own: Issued) {
    this.nodeName = options.nodeName ?? "node-1";
    this.#apiserver = apiserver;
    this.#options = options;
    this.#own = own;
    const tls = { cert: own.pem, key: own.keyPem, ca: apiserver.ca.pem, requestCert: true, rejectUnauthorized: false };
    this.#secure = createServer(tls, (request, response) => void this.#guarded(request, response));
    this.#plain = createPlainServer((request, response) => this.#serve(request, response));
  }

  static async open(apiserver: KubeApiServer, options: KubeletOptions = {}): Promise<Kubelet> {
    const nodeName = options.nodeName ?? "node-1";
    const subject = { commonName: `system:node:${nodeName}`, organization: ["system:nodes"] };
    const own = await issueTls(apiserver.ca, { dnsNames: [nodeName], ipAddresses: [], subject });
    const kubelet = new Kubelet(apiserver, options, own);
    for (const server of [kubelet.#secure, kubelet.#plain]) {
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
    }
    return kubelet;
  }

  get port(): number {
    return (this.#secure.address() as AddressInfo).port;
  }

  get readOnlyPort(): number {
    return (this.#plain.address() as AddressInfo).port;
  }

  set(...pods: readonly KubePod[]): void {
    for (const pod of pods) this.#pods.set(pod.uid, podJson(pod, this.nodeName));
  }

  remove(uid: string): void {
    this.#pods.delete(uid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of [this.#secure, this.#plain]) {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    }
  }

  async #guarded(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const user = await this.#authenticate(request);
    const what = "verb=get, resource=nodes, subresource(s)=[pods proxy]";
    if (user === undefined) this.#refuse(response, 401, "Unauthorized");
    else if (await this.#mayRead(user)) this.#serve(request, response);
    else this.#refuse(response, 403, `Forbidden (user=${user.username}, ${what})`);
  }

  async #authenticate(request: IncomingMessage): Promise<KubeUser | undefined> {
    const named = clientUser(request.socket as TLSSocket);
    if (named !== undefined) return named;
    const token = bearer(request);
    if (token === undefined)
      return this.#options.anonymous === true ? { username: "system:anonymous", groups: [] } : undefined;
    const kind = "TokenReview";
    const review = await this.#ask("/apis/authentication.k8s.io/v1/tokenreviews", kind, { token });
    const { authenticated, user } = review["status"] as { authenticated?: boolean; user: KubeUser };
    return authenticated === true ? user : undefined;
  }

  async #mayRead(user: KubeUser): Promise<boolean> {
    for (const subresource of ["pods", "proxy"]) {
      const resourceAttributes = { verb: "get", version: "v1", resource: "nodes", subresource, name: this.nodeName };
      const spec = { user: user.username, groups: user.groups, resourceAttributes };
      const path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
      const review = await this.#ask(path, "SubjectAccessReview", spec);
      if ((review["status"] as { allowed: boolean }).allowed) return true;
    }
    return false;
  }

  async #ask(path: string, kind: string, spec: object): Promise<Record<string, unknown>> {
    const { ca, port } = this.#apiserver;
    const [group, version] = path.split("/").slice(2);
    const tls = { ca: ca.pem, cert: this.#own.pem, key: this.#own.keyPem };
    const request = tlsRequest({ host: "127.0.0.1", port, path, method: "POST", agent: false, ...tls });
    request.end(JSON.stringify({ apiVersion: `${group}/${version}`, kind, metadata: {}, spec }));
    const [response] = (await once(request, "response")) as [IncomingMessage];
    return JSON.parse(await textOf(response)) as Record<string, unknown>;
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    if (request.url !== "/pods") this.#refuse(response, 404, "404 page not found");
    else if (request.method !== "GET") this.#refuse(response, 405, "Method Not Allowed");
    else this.#answer(response);
  }

  #answer(response: ServerResponse): void {
    this.answered += 1;
    if (this.override === undefined) this.#list(response);
    else this.override(response);
  }

  #list(response: ServerResponse): void {
    const items = this.#pods.size === 0 ? null : shuffled([...this.#pods.values()]);
    const body = JSON.stringify({ kind: "PodList", apiVersion: "v1", metadata: {}, items });
    if (this.etags === undefined) response.writeHead(200, { "content-type": "application/json" }).end(body);
    else this.#tagged(body, response);
  }

  #tagged(body: string, response: ServerResponse): void {
    this.etags?.(response.req);
    const etag = JSON.stringify(hash("sha256", [...this.#pods.values()].map((pod) => JSON.stringify(pod)).join()));
    const isSame = response.req.headers["if-none-match"] === etag;
    if (isSame) this.unchanged += 1;
    response.writeHead(isSame ? 304 : 200, { etag }).end(isSame ? undefined : body);
  }

  #refuse(response: ServerResponse, status: number, text: string): void {
    if (status !== 404) this.answered += 1;
    response.writeHead(status, { "content-type": "text/plain; charset=utf-8" }).end(`${text}\n`);
  }
}
