import { generateKeyPairSync, sign, verify } from "node:crypto";
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { status as failure, fieldMatcher, KubeCollection, type KubeObject, Versions } from "./kube-watch.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "./pki.ts";

/** Who a request comes from, as Kubernetes' authenticators have it. */
export interface KubeUser {
  readonly username: string;
  readonly groups: readonly string[];
}

/** What a role lets a user do. */
export interface KubeRule {
  readonly user: string;
  readonly verb: string;
  readonly resource: string;
  readonly subresource?: string;
  readonly group?: string;
  /** One object only. */
  readonly namespace?: string;
  readonly name?: string;
}

export interface KubePodReference {
  readonly name: string;
  readonly uid: string;
}

interface ResourceAttributes {
  readonly verb?: string;
  readonly resource?: string;
  readonly subresource?: string;
  readonly group?: string;
  readonly namespace?: string;
  readonly name?: string;
}

/** Objects of a type that has no place of its own here; by `<namespace>/<name>`, or `/<name>` without a namespace. */
export type KubeObjects = Map<string, { readonly metadata: Readonly<Record<string, unknown>> }>;

export const API_AUDIENCE = "https://kubernetes.default.svc.cluster.local";
const LOCALHOST = new Uint8Array([127, 0, 0, 1]);
const HOUR_S = 3600;

/** A certificate that TLS clients accept for this host, or for the user of a client certificate. */
export function issueTls(ca: TestCa, options: CertificateOptions = {}): Promise<Issued> {
  return ca.issue({ uris: [], dnsNames: ["localhost"], ipAddresses: [LOCALHOST], ...options });
}

/**
 * The part of a Kubernetes API server that nodes and agents lean on: TokenReview, SubjectAccessReview, namespaces, pods
 * and discovery, over TLS, with tokens that are really signed and verified. Speaks what kubectl understands.
 */
export class KubeApiServer implements AsyncDisposable {
  readonly ca: TestCa;
  readonly #versions = new Versions();
  /** Labels by namespace. */
  readonly namespaces = new KubeCollection<Record<string, string>>(
    { kind: "Namespace", plural: "namespaces" },
    this.#versions,
    (name, labels) => ({ metadata: { name, uid: `ns-${name}`, labels }, status: { phase: "Active" } }),
  );
  /** Pods that tokens may be bound to, by namespace and name. */
  readonly pods = new KubeCollection<{ readonly uid: string; readonly object: object }>(
    { kind: "Pod", plural: "pods" },
    this.#versions,
    (_, { object }) => object as KubeObject,
  );
  /** Nodes by name. */
  readonly nodes = new Map<string, object>();
  /** Before Kubernetes 1.32 a token review does not name the node of a pod. */
  tellsNodes = true;
  /** Changes what a token review answers. */
  bend: ((status: Readonly<Record<string, unknown>>) => object) | undefined;
  /** Drops whoever asks, but kubelets: they remember reviews for minutes. */
  isAway = false;
  readonly rules: KubeRule[] = [];
  /** Deployments of the group `apps`. */
  readonly deployments: KubeObjects = new Map();
  readonly requests: string[] = [];
  readonly #key = generateKeyPairSync("rsa", { modulusLength: 2048 });
  readonly #server: Server;

  private constructor(ca: TestCa, { pem, keyPem }: Issued) {
    this.ca = ca;
    this.namespaces.set("default", {});
    this.#server = createServer(
      { cert: pem, key: keyPem, ca: ca.pem, requestCert: true, rejectUnauthorized: false },
      (request, response) => void this.#answer(request, response),
    );
  }

  static async open(): Promise<KubeApiServer> {
    const ca = await createCa({ trustDomain: "cluster.local" });
    const server = new KubeApiServer(ca, await issueTls(ca));
    server.#server.listen(0, "127.0.0.1");
    await once(server.#server, "listening");
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** A projected service account token, bound to a pod when one is named. */
  token(
    namespace: string,
    account: string,
    options: { audience?: string; seconds?: number; pod?: KubePodReference } = {},
  ): string {
    const now = Math.floor(Date.now() / 1000);
    const { audience = API_AUDIENCE, seconds = HOUR_S, pod } = options;
    const claims = {
      ...{ iss: API_AUDIENCE, aud: [audience], iat: now, nbf: now, exp: now + seconds },
      sub: `system:serviceaccount:${namespace}:${account}`,
      "kubernetes.io": { namespace, serviceaccount: { name: account, uid: `sa-${account}` }, ...(pod && { pod }) },
    };
    const text = [{ alg: "RS256", kid: "1" }, claims].map((part) => base64url(JSON.stringify(part))).join(".");
    return `${text}.${sign("RSA-SHA256", Buffer.from(text), this.#key.privateKey).toString("base64url")}`;
  }

  /** Ends every connection, and takes no more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((done) => this.#server.close(done));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const [path = "", query = ""] = (request.url ?? "").split("?");
    this.requests.push(`${request.method} ${path}`);
    const user = clientUser(request.socket as TLSSocket) ?? this.authenticate(bearer(request), API_AUDIENCE);
    if (this.isAway && user?.groups.includes("system:nodes") !== true) return void request.socket.destroy();
    if (user === undefined) return respond(response, 401, failure(401, "Unauthorized", "Unauthorized"));
    const body = request.method === "POST" ? await bodyOf(request) : {};
    if (body === undefined) {
      const message = "the body of the request was in an unknown format";
      return respond(response, 415, failure(415, "UnsupportedMediaType", message));
    }
    const accept = request.headers.accept ?? "";
    const asked = new URLSearchParams(query);
    const found =
      this.#watched(path, asked, { user, accept, response }) ??
      this.#collected(path, asked, user) ??
      this.#listed(`${request.method} ${path}`, asked, user) ??
      this.#route(`${request.method} ${path}`, body, user);
    if (found === "watched") return;
    if (accept.includes("as=PartialObjectMetadata") && found.status === 200) found.body = metadataOnly(found.body);
    respond(response, found.status, found.body);
  }

  /** The collection that a path names, and which of its objects. */
  #collection(path: string, query: URLSearchParams) {
    const [, namespace, inNamespace] = /^\/api\/v1\/(?:namespaces\/([^/]+)\/)?(pods|namespaces)$/.exec(path) ?? [];
    if (inNamespace === undefined || (namespace !== undefined && inNamespace !== "pods")) return undefined;
    const selects = fieldMatcher(query.get("fieldSelector"));
    const matches = (object: KubeObject): boolean =>
      selects(object) && (namespace === undefined || object.metadata["namespace"] === namespace);
    return { objects: inNamespace === "pods" ? this.pods : this.namespaces, matches };
  }

  #watched(
    path: string,
    query: URLSearchParams,
    { user, accept, response }: { user: KubeUser; accept: string; response: ServerResponse },
  ): { status: number; body: object } | "watched" | undefined {
    if (!["1", "true"].includes(query.get("watch") ?? "")) return undefined;
    const found = this.#collection(path, query);
    if (found === undefined) return { status: 404, body: failure(404, "NotFound", "the server could not find it") };
    const { objects, matches } = found;
    const resource = objects.type.plural;
    if (!this.#allows(user.username, { verb: "watch", resource })) return forbidden(user, "watch", resource);
    const shape = accept.includes("as=PartialObjectMetadata") ? metadataOnly : (object: object) => object;
    objects.watch(query, response, { matches, shape });
    return "watched";
  }

  /** Objects that have versions, in pages that are cut out of what there is now. */
  #collected(path: string, query: URLSearchParams, user: KubeUser): { status: number; body: object } | undefined {
    const found = this.#collection(path, query);
    if (found === undefined) return undefined;
    const { type } = found.objects;
    if (!this.#allows(user.username, { verb: "list", resource: type.plural }))
      return forbidden(user, "list", type.plural);
    const { version, items } = found.objects.list(found.matches);
    const { metadata, page } = paged(items, query);
    const body = { kind: `${type.kind}List`, apiVersion: "v1", metadata: { resourceVersion: version, ...metadata } };
    return { status: 200, body: { ...body, items: page } };
  }

  /** Deployments of all namespaces, in pages. */
  #listed(route: string, query: URLSearchParams, user: KubeUser): { status: number; body: object } | undefined {
    if (route !== "GET /apis/apps/v1/deployments") return undefined;
    if (!this.#allows(user.username, { verb: "list", resource: "deployments" }))
      return forbidden(user, "list", "deployments");
    const { metadata, page } = paged([...this.deployments.values()], query);
    return { status: 200, body: { kind: "List", apiVersion: "v1", metadata, items: page } };
  }

  #route(route: string, body: Record<string, unknown>, user: KubeUser): { status: number; body: object } {
    const spec = (body["spec"] ?? {}) as Record<string, unknown>;
    if (route === "POST /apis/authentication.k8s.io/v1/tokenreviews")
      return { status: 201, body: { ...body, metadata: {}, status: this.#review(spec) } };
    if (route === "POST /apis/authorization.k8s.io/v1/subjectaccessreviews") {
      const attributes = (spec["resourceAttributes"] ?? {}) as ResourceAttributes;
      const allowed = this.#allows(String(spec["user"]), attributes);
      return { status: 201, body: { ...body, metadata: {}, status: { allowed } } };
    }
    if (DISCOVERY[route] !== undefined) return { status: 200, body: DISCOVERY[route] };
    return this.#objects(route, user);
  }

  #objects(route: string, user: KubeUser): { status: number; body: object } {
    const [, podNamespace, podName] = /^GET \/api\/v1\/namespaces\/([^/]+)\/pods\/([^/]+)$/.exec(route) ?? [];
    if (podName !== undefined) return this.#one(user, "pods", podName, this.pods.object(`${podNamespace}/${podName}`));
    const [, within, deployment] =
      /^GET \/apis\/apps\/v1\/namespaces\/([^/]+)\/deployments\/([^/]+)$/.exec(route) ?? [];
    if (deployment !== undefined)
      return this.#one(user, "deployments", deployment, this.deployments.get(`${within}/${deployment}`));
    const [, nodeName] = /^GET \/api\/v1\/nodes\/([^/]+)$/.exec(route) ?? [];
    if (nodeName !== undefined) return this.#one(user, "nodes", nodeName, this.nodes.get(nodeName));
    const [, namespace] = /^GET \/api\/v1\/namespaces\/([^/]+)$/.exec(route) ?? [];
    if (namespace !== undefined) return this.#one(user, "namespaces", namespace, this.namespaces.object(namespace));
    return { status: 404, body: failure(404, "NotFound", "the server could not find it") };
  }

  #one(user: KubeUser, resource: string, name: string, object: object | undefined): { status: number; body: object } {
    if (!this.#allows(user.username, { verb: "get", resource })) return forbidden(user, "get", resource);
    if (object !== undefined) return { status: 200, body: object };
    return { status: 404, body: failure(404, "NotFound", `${resource} "${name}" not found`) };
  }

  #review({ token, audiences }: Record<string, unknown>): object {
    const asked = Array.isArray(audiences) && audiences.length > 0 ? audiences.map(String) : [API_AUDIENCE];
    const audience = asked.find((one) => this.authenticate(String(token ?? ""), one) !== undefined);
    const user = audience === undefined ? undefined : this.authenticate(String(token ?? ""), audience);
    if (user === undefined) return { user: {}, error: "[invalid bearer token, token lookup failed]" };
    const extra = this.#extra(String(token));
    const status = { authenticated: true, user: { ...user, uid: "1", extra }, audiences: [audience] };
    return this.bend?.(status) ?? status;
  }

  /** What a review tells of a token that is bound to a pod. */
  #extra(token: string): object {
    const claims = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString("utf8")) as Claims;
    const { namespace, pod } = claims["kubernetes.io"];
    if (pod === undefined) return {};
    const object = this.pods.get(`${namespace}/${pod.name}`)?.object as { spec?: { nodeName?: string } } | undefined;
    const nodeName = object?.spec?.nodeName;
    const node = this.nodes.get(nodeName ?? "") as { metadata?: { uid?: string } } | undefined;
    const prefix = "authentication.kubernetes.io/";
    return {
      [`${prefix}pod-name`]: [pod.name],
      [`${prefix}pod-uid`]: [pod.uid],
      ...(this.tellsNodes && node !== undefined
        ? { [`${prefix}node-name`]: [nodeName], [`${prefix}node-uid`]: [node.metadata?.uid] }
        : {}),
    };
  }

  /** The user of a token with a good signature, in time, for this audience, of a pod that still is the same. */
  authenticate(token: string | undefined, audience: string): KubeUser | undefined {
    const [header, payload, signature, more] = (token ?? "").split(".");
    if (header === undefined || payload === undefined || signature === undefined || more !== undefined)
      return undefined;
    const signed = Buffer.from(`${header}.${payload}`);
    if (!verify("RSA-SHA256", signed, this.#key.publicKey, Buffer.from(signature, "base64url"))) return undefined;
    const claims = JSON.parse(Buffer.from(payload, "base64url").toString("utf8")) as Claims;
    const { namespace, serviceaccount, pod } = claims["kubernetes.io"];
    if (claims.exp * 1000 <= Date.now() || !claims.aud.includes(audience)) return undefined;
    if (pod !== undefined && this.pods.get(`${namespace}/${pod.name}`)?.uid !== pod.uid) return undefined;
    const groups = ["system:serviceaccounts", `system:serviceaccounts:${namespace}`, "system:authenticated"];
    return { username: `system:serviceaccount:${namespace}:${serviceaccount.name}`, groups };
  }

  #allows(user: string, { verb, resource, subresource, ...object }: ResourceAttributes): boolean {
    if (user === "system:admin") return true;
    return this.rules.some(
      (rule) =>
        rule.user === user &&
        rule.verb === verb &&
        rule.resource === resource &&
        (rule.subresource ?? "") === (subresource ?? "") &&
        (["group", "namespace", "name"] as const).every((key) => [undefined, object[key]].includes(rule[key])),
    );
  }
}

interface Claims {
  readonly aud: readonly string[];
  readonly exp: number;
  readonly "kubernetes.io": {
    readonly namespace: string;
    readonly serviceaccount: { readonly name: string };
    readonly pod?: KubePodReference;
  };
}

/** The user that a verified client certificate names. */
export function clientUser(socket: TLSSocket): KubeUser | undefined {
  if (!socket.authorized) return undefined;
  const { CN, O } = socket.getPeerCertificate().subject;
  const groups = O === undefined ? [] : [O].flat();
  return CN === undefined ? undefined : { username: String([CN].flat()[0]), groups };
}

/** The token of a request's header. */
export function bearer(request: IncomingMessage): string | undefined {
  return /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1];
}

export async function textOf(stream: AsyncIterable<unknown>): Promise<string> {
  return (await bytesOf(stream)).toString("utf8");
}

async function bytesOf(stream: AsyncIterable<unknown>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** JSON, or a token review as Go's clients send it; undefined for anything else. */
async function bodyOf(request: IncomingMessage): Promise<Record<string, unknown> | undefined> {
  const data = await bytesOf(request);
  if (request.headers["content-type"] !== PROTOBUF) return JSON.parse(data.toString("utf8"));
  if (data.toString("latin1", 0, 4) !== "k8s\0") return undefined;
  const unknown = protobufFields(data.subarray(4));
  const [apiVersion, kind] = [1, 2].map((at) => protobufFields(unknown.get(1)?.[0]).get(at)?.[0]?.toString());
  if (kind !== "TokenReview") return undefined;
  const spec = protobufFields(protobufFields(unknown.get(2)?.[0]).get(2)?.[0]);
  const [token, audiences] = [1, 2].map((at) => spec.get(at)?.map(String) ?? []);
  return { apiVersion, kind, spec: { token: token?.[0], audiences } };
}

const PROTOBUF = "application/vnd.kubernetes.protobuf";

/** Fields with a length, by their numbers; there are no others in a token review's specification. */
function protobufFields(message: Buffer = Buffer.alloc(0)): ReadonlyMap<number, readonly Buffer[]> {
  const fields = new Map<number, Buffer[]>();
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = message[at++] ?? 0;
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.length) {
    const number = varint() >> 3;
    const length = varint();
    fields.set(number, [...(fields.get(number) ?? []), message.subarray(at, at + length)]);
    at += length;
  }
  return fields;
}

function respond(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}

function forbidden({ username }: KubeUser, verb: string, resource: string): { status: number; body: object } {
  const message = `${resource} is forbidden: User "${username}" cannot ${verb} resource "${resource}"`;
  return { status: 403, body: failure(403, "Forbidden", message) };
}

function paged<T>(all: readonly T[], query: URLSearchParams): { readonly metadata: object; readonly page: T[] } {
  const from = Number(query.get("continue") ?? 0);
  const to = from + (Number(query.get("limit")) || all.length);
  return { metadata: to < all.length ? { continue: String(to) } : {}, page: all.slice(from, to) };
}

/** What is left of an object, or of those of a list, for who asks for no more. */
function metadataOnly(body: object): object {
  const { items, metadata } = body as { readonly items?: readonly object[]; readonly metadata?: object };
  if (items === undefined) return { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1", metadata };
  return { kind: "PartialObjectMetadataList", apiVersion: "meta.k8s.io/v1", metadata, items: items.map(metadataOnly) };
}

function base64url(text: string): string {
  return Buffer.from(text).toString("base64url");
}

const RESOURCES = [
  {
    name: "namespaces",
    singularName: "namespace",
    namespaced: false,
    kind: "Namespace",
    verbs: ["get", "list", "watch"],
  },
  { name: "nodes", singularName: "node", namespaced: false, kind: "Node", verbs: ["get"] },
  { name: "pods", singularName: "pod", namespaced: true, kind: "Pod", verbs: ["get", "list", "watch"] },
];

const REVIEWS: Readonly<Record<string, object>> = {
  "authentication.k8s.io": {
    name: "tokenreviews",
    singularName: "tokenreview",
    kind: "TokenReview",
    verbs: ["create"],
  },
  "authorization.k8s.io": {
    ...{ name: "subjectaccessreviews", singularName: "subjectaccessreview" },
    ...{ kind: "SubjectAccessReview", verbs: ["create"] },
  },
};

const DISCOVERY: Readonly<Record<string, object>> = {
  "GET /api": { kind: "APIVersions", versions: ["v1"] },
  "GET /apis/apps": {
    ...{ kind: "APIGroup", apiVersion: "v1", name: "apps" },
    versions: [{ groupVersion: "apps/v1beta1", version: "v1beta1" }],
    preferredVersion: { groupVersion: "apps/v1", version: "v1" },
  },
  "GET /apis/apps/v1": {
    ...{ kind: "APIResourceList", groupVersion: "apps/v1" },
    resources: [
      { name: "deployments", singularName: "deployment", namespaced: true, kind: "Deployment", verbs: ["get", "list"] },
      { name: "deployments/scale", singularName: "", namespaced: true, kind: "Scale", verbs: ["get"] },
    ],
  },
  "GET /apis": {
    ...{ kind: "APIGroupList", apiVersion: "v1" },
    groups: Object.keys(REVIEWS).map((name) => {
      const version = { groupVersion: `${name}/v1`, version: "v1" };
      return { name, versions: [version], preferredVersion: version };
    }),
  },
  ...Object.fromEntries(
    Object.entries(REVIEWS).map(([name, resource]) => [
      `GET /apis/${name}/v1`,
      { kind: "APIResourceList", groupVersion: `${name}/v1`, resources: [{ ...resource, namespaced: false }] },
    ]),
  ),
  "GET /api/v1": { kind: "APIResourceList", groupVersion: "v1", resources: RESOURCES },
};
