import { createPublicKey, generateKeyPairSync, type KeyObject, randomUUID, sign } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { contextTag } from "../../src/crypto/der.ts";
import { encodeAscii, encodeOid, sequence } from "../../src/crypto/der-writer.ts";
import { EXTENSION } from "../../src/crypto/extensions.ts";
import { type CloudAnswer, CloudNet, type CloudRequest, serveHttp } from "./cloud-net.ts";
import { cmsSigner, signedData, signerInfo } from "./cms.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "./pki.ts";
import { temporaryDirectory } from "./workload.ts";

export const TENANT = { id: "11111111-aaaa-4bbb-8ccc-000000000001", domain: "example.onmicrosoft.com" };
export const SUBSCRIPTION = "22222222-aaaa-4bbb-8ccc-000000000002";
export const APP = { app_id: "server-app", app_secret: "app-secret" };
export const FEDERATED = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln";

export interface AzureNic {
  readonly group?: { readonly resourceGroup: string; readonly name: string };
  readonly subnets: readonly { readonly resourceGroup: string; readonly network: string; readonly name: string }[];
}

export interface AzureMachine {
  readonly vmId: string;
  readonly principalId: string;
  readonly subscription: string;
  readonly resourceGroup: string;
  readonly name: string;
  tags: Readonly<Record<string, string>>;
  nics: readonly AzureNic[];
  scaleSet?: string;
}

type Json = Readonly<Record<string, unknown>>;

const HOUR_S = 3600;
/** Under its two names. */
const MANAGEMENT = /^https:\/\/management\.(azure\.com|core\.windows\.net\/)\/\.default( |$)/;
const ISSUER = "/pkiops/certs/Test%20Issuing%20CA%2001.crt";
const ISSUER_URL = `http://www.microsoft.com${ISSUER}`;

/** The wires of Azure that node attestation needs. */
export class AzureDouble implements AsyncDisposable {
  readonly net: CloudNet;
  /** URL of the metadata service. */
  readonly metadata: string;
  /** Root of what signs documents, in a file. */
  readonly rootPath: string;
  readonly root: TestCa;
  readonly issuing: TestCa;
  /** Signs documents. */
  readonly signer: Issued;
  readonly machines = new Map<string, AzureMachine>();
  /** Changes what the resource manager answers. */
  bend: ((body: Json) => Json) | undefined;
  /** The machine that the metadata service is on. */
  here: AzureMachine | undefined;
  /** Ways in which access tokens were had. */
  readonly grants: string[] = [];
  /** Where the keys of tokens are. */
  jwksUri = "https://login.microsoftonline.com/common/discovery/keys";
  keysRead = 0;
  readonly tokenKey: KeyObject = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
  readonly #resources: AsyncDisposableStack;
  #serial = 0;

  private constructor(
    parts: Pick<AzureDouble, "net" | "metadata" | "rootPath" | "root" | "issuing" | "signer">,
    resources: AsyncDisposableStack,
  ) {
    const { net, metadata, rootPath, root, issuing, signer } = parts;
    this.net = net;
    this.metadata = metadata;
    this.rootPath = rootPath;
    this.root = root;
    this.issuing = issuing;
    this.signer = signer;
    this.#resources = resources;
  }

  static async open(shared?: CloudNet): Promise<AzureDouble> {
    await using scope = new AsyncDisposableStack();
    const { path } = scope.use(await temporaryDirectory());
    const net = shared ?? scope.use(await CloudNet.open());
    const root = await createCa({ uris: [], subject: { commonName: "Test Root" } });
    const issuing = await root.intermediate({ uris: [], subject: { commonName: "Test Issuing CA 01" } });
    const signer = await issueSigner(issuing);
    const rootPath = join(path, "azure-root.pem");
    await writeFile(rootPath, root.pem);
    let double: AzureDouble | undefined;
    const metadata = await serveHttp(scope, (request) => (double as AzureDouble).#metadata(request));
    double = new AzureDouble({ net, metadata, rootPath, root, issuing, signer }, scope.move());
    const own = double;
    net.on("login.microsoftonline.com", (request) => own.#login(request));
    net.on("management.azure.com", (request) => own.#manage(request));
    net.on("www.microsoft.com", ({ url }) =>
      url.pathname === ISSUER ? { body: own.issuing.der } : { status: 404, body: "" },
    );
    return own;
  }

  get env(): Readonly<Record<string, string>> {
    return { ...this.net.env, AZURE_POD_IDENTITY_AUTHORITY_HOST: this.metadata };
  }

  launch(options: Partial<AzureMachine> = {}): AzureMachine {
    this.#serial += 1;
    const machine: AzureMachine = {
      ...{ vmId: randomUUID(), principalId: randomUUID(), subscription: SUBSCRIPTION, resourceGroup: "Web-RG" },
      ...{ name: `web-${this.#serial}`, tags: {}, nics: [] },
      ...options,
    };
    this.machines.set(machine.vmId, machine);
    return machine;
  }

  /** What the metadata service has signed, in its own form. */
  document({ vmId, subscription }: AzureMachine, nonce: string, changes: object = {}): Buffer {
    const timeStamp = { createdOn: "11/28/26 00:16:17 -0000", expiresOn: "11/28/26 06:16:17 -0000" };
    const plan = { name: "", product: "", publisher: "" };
    const about = { licenseType: "", nonce, plan, sku: "22_04-lts", subscriptionId: subscription, timeStamp, vmId };
    return Buffer.from(JSON.stringify({ ...about, ...changes }));
  }

  /** Signed as Azure does: without signed attributes, the certificate in the message. */
  sign(content: Uint8Array, signer: Issued = this.signer): string {
    const signers = [signerInfo(cmsSigner(signer), content, { attributes: null, digestOid: "1.2.840.113549.1.1.11" })];
    return signedData({ content, certificates: [signer.der], signers }).toString("base64");
  }

  answer(signature: string, metadata: object = { agentDomain: TENANT.domain, vmssName: null }): string {
    return JSON.stringify({ document: { encoding: "pkcs7", signature }, metadata });
  }

  claims({ principalId }: AzureMachine, audience: string): Json {
    const now = Math.floor(Date.now() / 1000);
    return {
      ...{ aud: audience, iss: `https://sts.windows.net/${TENANT.id}/`, iat: now, nbf: now, exp: now + HOUR_S },
      ...{ appid: randomUUID(), idp: "x", oid: principalId, sub: principalId, tid: TENANT.id, ver: "1.0" },
    };
  }

  token(claims: Json, { key = this.tokenKey, header = {} as Json } = {}): string {
    const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${encode({ alg: "RS256", kid: "key-1", typ: "JWT", ...header })}.${encode(claims)}`;
    return `${signed}.${sign("sha256", Buffer.from(signed), key).toString("base64url")}`;
  }

  #metadata({ url, headers }: CloudRequest): CloudAnswer {
    if (headers["metadata"] !== "true") return { status: 400, body: "" };
    const query = url.searchParams;
    if (url.pathname === "/metadata/identity/oauth2/token") {
      const audience = query.get("resource") ?? "";
      this.grants.push("identity");
      const held = this.here === undefined ? "access" : this.token(this.claims(this.here, audience));
      const ends = { expires_in: "86399", expires_on: String(Math.floor(Date.now() / 1000) + 86_399) };
      return { body: JSON.stringify({ access_token: held, ...ends, resource: audience, token_type: "Bearer" }) };
    }
    if (url.pathname === "/metadata/instance") {
      const { name = "server", subscription = SUBSCRIPTION, resourceGroup = "rg", scaleSet = "" } = this.here ?? {};
      const compute = {
        name,
        subscriptionId: subscription,
        resourceGroupName: resourceGroup,
        vmScaleSetName: scaleSet,
      };
      return { body: JSON.stringify({ compute, network: {} }) };
    }
    if (url.pathname !== "/metadata/attested/document" || this.here === undefined) return { status: 404, body: "" };
    const signature = this.sign(this.document(this.here, query.get("nonce") ?? ""));
    return { body: JSON.stringify({ encoding: "pkcs7", signature }) };
  }

  #login({ url, body }: CloudRequest): CloudAnswer {
    const [, tenant = "", ...rest] = url.pathname.split("/");
    const path = rest.join("/");
    if (path === ".well-known/openid-configuration") {
      const issuer = `https://sts.windows.net/${tenant === TENANT.domain ? TENANT.id : "{tenantid}"}/`;
      return { body: JSON.stringify({ issuer, jwks_uri: this.jwksUri }) };
    }
    if (path === "v2.0/.well-known/openid-configuration") {
      const base = `https://login.microsoftonline.com/${tenant}`;
      const [token_endpoint, authorization_endpoint] = ["token", "authorize"].map(
        (name) => `${base}/oauth2/v2.0/${name}`,
      );
      const endpoints = { token_endpoint, authorization_endpoint, jwks_uri: this.jwksUri };
      return { body: JSON.stringify({ issuer: `${base}/v2.0`, ...endpoints }) };
    }
    if (path === "discovery/keys") {
      this.keysRead += 1;
      const jwk = createPublicKey(this.tokenKey).export({ format: "jwk" });
      return { body: JSON.stringify({ keys: [{ ...jwk, kid: "key-1", use: "sig" }] }) };
    }
    const form = new URLSearchParams(body);
    const isBySecret = form.get("client_secret") === APP.app_secret;
    const isFor = MANAGEMENT.test(form.get("scope") ?? "");
    const isKnown = tenant === TENANT.id && form.get("client_id") === APP.app_id && isFor;
    if (path !== "oauth2/v2.0/token" || !isKnown || !(isBySecret || form.get("client_assertion") === FEDERATED))
      return { status: 401, body: '{"error":"invalid_client"}' };
    this.grants.push(isBySecret ? "secret" : "assertion");
    return { body: JSON.stringify({ token_type: "Bearer", expires_in: 3599, access_token: "access" }) };
  }

  #manage(request: CloudRequest): CloudAnswer {
    const { url, headers } = request;
    // A machine's own token is as good as an application's, if it is for this.
    const isOwn = headers.authorization?.startsWith("Bearer eyJ") === true;
    if (headers.authorization !== "Bearer access" && !isOwn) return { status: 401, body: "{}" };
    const found = url.pathname.endsWith("/Microsoft.ResourceGraph/resources")
      ? this.#graph(request)
      : this.#resource(url);
    if (found === undefined) return { status: 404, body: "{}" };
    return { body: JSON.stringify(this.bend?.(found) ?? found) };
  }

  /** The three questions that attestors ask of the Resource Graph. */
  #graph({ body }: CloudRequest): Json {
    const { query, subscriptions } = JSON.parse(body) as { query: string; subscriptions: string[] };
    const all = [...this.machines.values()].filter(({ subscription }) => subscriptions.includes(subscription));
    const literals = [...query.matchAll(/=[~=]\s*(?:tolower\()?['"]([^'"]+)['"]/g)].map(([, text]) =>
      text?.toLowerCase(),
    );
    const [kind, wanted] = literals;
    const data: Json[] = [];
    for (const machine of all) {
      const { name, vmId, resourceGroup, tags, scaleSet, nics } = machine;
      const row = { id: idOf(machine), name, location: "eastus", resourceGroup: resourceGroup.toLowerCase() };
      if (kind === "microsoft.compute/virtualmachines" && scaleSet === undefined && vmId === wanted)
        data.push({ ...row, tags, vmId });
      const isSet = kind === "microsoft.compute/virtualmachinescalesets" && scaleSet?.toLowerCase() === wanted;
      if (isSet && data.length === 0)
        data.push({
          ...row,
          id: idOf(machine, "virtualMachineScaleSets", scaleSet),
          name: scaleSet,
          subscriptionId: machine.subscription,
        });
      if (kind === "microsoft.network/networkinterfaces" && idOf(machine).toLowerCase() === wanted)
        data.push(
          ...nics.map((nic) => ({
            name: "nic",
            resourceGroup,
            properties: nicProperties(machine, nic),
            ...projected(nic),
          })),
        );
    }
    return { totalRecords: data.length, count: data.length, data, facets: [], resultTruncated: "false" };
  }

  #resource(url: URL): Json | undefined {
    const path = decodeURIComponent(url.pathname);
    const all = [...this.machines.values()];
    const principal = /identity\/principalId eq '([^']+)'/.exec(url.searchParams.get("$filter") ?? "")?.[1];
    if (path === `/subscriptions/${SUBSCRIPTION}/resources`) {
      const value = all.filter(({ principalId }) => principalId === principal);
      return { value: value.map((machine) => ({ id: idOf(machine), name: machine.name })) };
    }
    const set = /\/virtualMachineScaleSets\/([^/]+)\/virtualMachines$/.exec(path)?.[1];
    if (set !== undefined) return this.#members(set, url);
    for (const machine of all) {
      if (path === idOf(machine)) return machineResource(machine);
      const nic = machine.nics.findIndex((_, index) => path === nicId(machine, index));
      const found = machine.nics[nic];
      if (found !== undefined) return { id: path, properties: nicProperties(machine, found) };
    }
    return undefined;
  }

  /** A page for each. */
  #members(set: string, url: URL): Json {
    const members = [...this.machines.values()].filter(({ scaleSet }) => scaleSet === set);
    const at = Number(url.searchParams.get("$skiptoken") ?? 0);
    const value = members.slice(at, at + 1).map((machine) => ({
      ...{ id: idOf(machine), name: machine.name, location: "eastus", tags: machine.tags },
      properties: {
        vmId: machine.vmId,
        networkProfileConfiguration: {
          networkInterfaceConfigurations: machine.nics.map((nic) => ({
            name: "nic",
            properties: nicProperties(machine, nic),
          })),
        },
      },
    }));
    const next = `${url.origin}${url.pathname}?api-version=2024-07-01&$skiptoken=${at + 1}`;
    return { value, ...(at + 1 < members.length ? { nextLink: next } : {}) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

/** A certificate of the form of those that sign documents. */
export function issueSigner(ca: TestCa, options: CertificateOptions = {}, url = ISSUER_URL): Promise<Issued> {
  const access = sequence(encodeOid("1.3.6.1.5.5.7.48.2"), encodeAscii(contextTag(6), url));
  const extensions = [{ oid: EXTENSION.authorityInfoAccess, value: sequence(access) }];
  return ca.issue({ uris: [], keyType: "rsa-2048", dnsNames: ["eastus.metadata.azure.com"], extensions, ...options });
}

function idOf({ subscription, resourceGroup, name }: AzureMachine, type = "virtualMachines", of = name): string {
  return `/subscriptions/${subscription}/resourceGroups/${resourceGroup}/providers/Microsoft.Compute/${type}/${of}`;
}

function nicId({ subscription, resourceGroup, name }: AzureMachine, index: number): string {
  const place = `/subscriptions/${subscription}/resourceGroups/${resourceGroup}`;
  return `${place}/providers/Microsoft.Network/networkInterfaces/${name}-${index}`;
}

function machineResource(machine: AzureMachine): Json {
  const networkInterfaces = machine.nics.map((_, index) => ({ id: nicId(machine, index) }));
  return {
    ...{ id: idOf(machine), name: machine.name, location: "eastus" },
    identity: { type: "SystemAssigned", principalId: machine.principalId, tenantId: TENANT.id },
    properties: { vmId: machine.vmId, networkProfile: { networkInterfaces } },
  };
}

function nicProperties({ subscription }: AzureMachine, { group, subnets }: AzureNic): Json {
  const at = (resourceGroup: string): string => `/subscriptions/${subscription}/resourceGroups/${resourceGroup}`;
  const network = "providers/Microsoft.Network";
  return {
    ...(group && {
      networkSecurityGroup: { id: `${at(group.resourceGroup)}/${network}/networkSecurityGroups/${group.name}` },
    }),
    ipConfigurations: subnets.map((subnet) => ({
      name: "ipconfig",
      properties: {
        subnet: {
          id: `${at(subnet.resourceGroup)}/${network}/virtualNetworks/${subnet.network}/subnets/${subnet.name}`,
        },
      },
    })),
  };
}

/** As SPIRE's server asks for it. */
function projected({ group, subnets }: AzureNic): Json {
  return { securityGroup: group ?? {}, subnets: subnets.map(({ network, name }) => ({ vnet: network, name })) };
}
