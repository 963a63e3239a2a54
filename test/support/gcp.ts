import { generateKeyPairSync, type KeyObject, sign, verify } from "node:crypto";
import { type CloudAnswer, CloudNet, type CloudRequest, serveHttp } from "./cloud-net.ts";
import { createCa, type TestCa } from "./pki.ts";

export interface GcpInstance {
  readonly project: string;
  readonly zone: string;
  readonly id: string;
  readonly name: string;
  readonly serviceAccount: string;
  tags?: readonly string[];
  labels?: Readonly<Record<string, string>>;
  metadata?: readonly { readonly key: string; readonly value?: string }[];
}

type Claims = Readonly<Record<string, unknown>>;

/** A key that Google publishes under an ID, or doesn't. */
export interface TokenKey {
  readonly id: string;
  readonly ca: TestCa;
}

export const SERVER_EMAIL = "server@project.iam.gserviceaccount.com";
const HOUR_S = 3600;

/** The wires of Google that node attestation needs. */
export class GcpDouble implements AsyncDisposable {
  readonly net: CloudNet;
  /** Host and port of the metadata service. */
  readonly metadataHost: string;
  readonly instances = new Map<string, GcpInstance>();
  /** Those that Google publishes. */
  readonly keys: TokenKey[] = [];
  /** The instance that the metadata service is on. */
  here: GcpInstance | undefined;
  /** Changes what Compute Engine answers. */
  bend: ((instance: object) => object) | undefined;
  certificatesRead = 0;
  /** Ways in which access tokens were had. */
  readonly grants: string[] = [];
  readonly metadataRequests: string[] = [];
  readonly serverKey: KeyObject;
  readonly #serverPublic: KeyObject;
  readonly #resources: AsyncDisposableStack;
  #serial = 0;

  private constructor(net: CloudNet, metadataHost: string, resources: AsyncDisposableStack) {
    this.net = net;
    this.metadataHost = metadataHost;
    this.#resources = resources;
    const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    this.serverKey = privateKey;
    this.#serverPublic = publicKey;
  }

  static async open(shared?: CloudNet): Promise<GcpDouble> {
    await using scope = new AsyncDisposableStack();
    const net = shared ?? scope.use(await CloudNet.open());
    let double: GcpDouble | undefined;
    const metadata = await serveHttp(scope, (request) => (double as GcpDouble).#metadata(request));
    double = new GcpDouble(net, new URL(metadata).host, scope.move());
    const own = double;
    net.on("www.googleapis.com", (request) => own.#certificates(request));
    net.on("oauth2.googleapis.com", (request) => own.#grant(request));
    net.on("compute.googleapis.com", (request) => own.#compute(request));
    await own.publish();
    return own;
  }

  get env(): Readonly<Record<string, string>> {
    return { ...this.net.env, HOME: "/nonexistent", GCE_METADATA_HOST: this.metadataHost };
  }

  /** Makes Google sign with a new key. */
  async publish(): Promise<TokenKey> {
    const key = await this.newKey();
    this.keys.unshift(key);
    return key;
  }

  async newKey(): Promise<TokenKey> {
    const ca = await createCa({ uris: [], keyType: "rsa-2048" });
    return { id: ca.certificate.serialNumber, ca };
  }

  launch(options: Partial<GcpInstance> = {}): GcpInstance {
    this.#serial += 1;
    const instance = {
      ...{ project: "project-1", zone: "europe-west1-b", id: `${9_000_000_000_000_000_000n + BigInt(this.#serial)}` },
      ...{ name: `web-${this.#serial}`, serviceAccount: "agents@project-1.iam.gserviceaccount.com" },
      ...options,
    };
    this.instances.set(`${instance.project}/${instance.zone}/${instance.name}`, instance);
    return instance;
  }

  claims({ project, zone, id, name, serviceAccount }: GcpInstance): Claims {
    const now = Math.floor(Date.now() / 1000);
    const engine = { project_id: project, project_number: 739419398126, zone, instance_id: id, instance_name: name };
    return {
      ...{ aud: "spire-gcp-node-attestor", azp: "113490780853052076404", email: serviceAccount, email_verified: true },
      ...{ exp: now + HOUR_S, iat: now, iss: "https://accounts.google.com", sub: "113490780853052076404" },
      google: { compute_engine: { ...engine, instance_creation_timestamp: 1_551_894_623 } },
    };
  }

  /** A token of Google's, or with another key or header. */
  token(claims: Claims, { key = this.keys[0] as TokenKey, header = {} as Claims } = {}): string {
    const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${encode({ alg: "RS256", kid: key.id, typ: "JWT", ...header })}.${encode(claims)}`;
    return `${signed}.${sign("sha256", Buffer.from(signed), key.ca.signer.privateKey).toString("base64url")}`;
  }

  evidence(instance: GcpInstance): string {
    return this.token(this.claims(instance));
  }

  #certificates({ url }: CloudRequest): CloudAnswer {
    if (url.pathname !== "/oauth2/v1/certs") return { status: 404, body: "" };
    this.certificatesRead += 1;
    const expires = new Date(Date.now() + HOUR_S * 1000).toUTCString();
    const body = JSON.stringify(Object.fromEntries(this.keys.map(({ id, ca }) => [id, ca.pem])));
    return { headers: { expires }, body };
  }

  /** A service account's own token, verified. RFC 7523. */
  #grant({ body }: CloudRequest): CloudAnswer {
    const form = new URLSearchParams(body);
    if (form.get("grant_type") === "refresh_token") {
      const isGood = form.get("refresh_token") === "refresh" && form.get("client_secret") === "user-secret";
      return isGood ? this.#granted("user") : { status: 400, body: '{"error":"invalid_grant"}' };
    }
    const [header = "", claims = "", signature = ""] = (form.get("assertion") ?? "").split(".");
    const isSigned = verify(
      "sha256",
      Buffer.from(`${header}.${claims}`),
      this.#serverPublic,
      Buffer.from(signature, "base64url"),
    );
    const { iss, aud, scope } = JSON.parse(Buffer.from(claims, "base64url").toString() || "{}");
    const isGood =
      iss === SERVER_EMAIL && aud === "https://oauth2.googleapis.com/token" && String(scope).includes("compute");
    return isSigned && isGood ? this.#granted("account") : { status: 400, body: '{"error":"invalid_grant"}' };
  }

  #granted(how: string): CloudAnswer {
    this.grants.push(how);
    return { body: JSON.stringify({ access_token: "access", expires_in: 3599, token_type: "Bearer" }) };
  }

  #compute({ url, headers }: CloudRequest): CloudAnswer {
    if (headers.authorization !== "Bearer access") return { status: 401, body: "{}" };
    const path = /^\/compute\/v1\/projects\/([^/]+)\/zones\/([^/]+)\/instances\/([^/]+)$/.exec(url.pathname);
    const instance = this.instances.get((path ?? []).slice(1).join("/"));
    if (instance === undefined) return { status: 404, body: "{}" };
    const { id, name, tags, labels, metadata } = instance;
    const found = {
      ...{ kind: "compute#instance", id, name, tags: { items: tags, fingerprint: "x" }, labels },
      metadata: { kind: "compute#metadata", items: metadata },
    };
    return { body: JSON.stringify(this.bend?.(found) ?? found) };
  }

  #metadata({ url, headers }: CloudRequest): CloudAnswer {
    this.metadataRequests.push(url.pathname + url.search);
    if (headers["metadata-flavor"] !== "Google") return { status: 403, body: "" };
    const [, account, what] =
      /^\/computeMetadata\/v1\/instance\/service-accounts\/([^/]+)\/(\w+)$/.exec(url.pathname) ?? [];
    if (what === "token" && account === "default") return this.#granted("instance");
    if (what !== "identity" || this.here === undefined) return { status: 404, body: "" };
    if (url.searchParams.get("format") !== "full") return { status: 400, body: "" };
    return { body: this.token({ ...this.claims(this.here), aud: url.searchParams.get("audience") }) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}
