import { createHash, createHmac, randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { writeEvidence } from "../../src/evidence/aws-iid.ts";
import { type CloudAnswer, CloudNet, type CloudRequest, serveHttp } from "./cloud-net.ts";
import { opensslSigned } from "./cms.ts";
import { createCa, type Issued } from "./pki.ts";
import { temporaryDirectory } from "./workload.ts";

/** Regions whose documents the double signs. */
const REGIONS = ["us-test-1", "eu-test-1"] as const;
type Region = (typeof REGIONS)[number];

export interface AwsInstance {
  readonly id: string;
  readonly account: string;
  readonly region: Region;
  tags: Record<string, string>;
  groups: { id: string; name: string }[];
  profileArn?: string;
  rootDeviceType: string;
  rootDeviceName: string;
  /** When the root volume came; undefined for none. */
  rootAttached?: Date;
  interfaceAttached?: Date;
  state: string;
}

/** Who may call, in which account. */
interface AwsKey {
  readonly secret: string;
  readonly token?: string;
  readonly account: string;
}

export const SERVER_ACCOUNT = "111111111111";
export const NODE_ACCOUNT = "222222222222";
export const OTHER_ACCOUNT = "333333333333";
const SECOND_MS = 1000;

/** The wires of AWS that node attestation needs, requests verified by their signatures. */
export class AwsDouble implements AsyncDisposable {
  readonly net: CloudNet;
  /** Certificates of the regions in PEM files, as `regions` of the configuration. */
  readonly regions: Readonly<Record<string, { readonly certificate_path: string }>>;
  readonly signers: ReadonlyMap<string, Issued>;
  /** Of EC2's metadata service. */
  readonly metadata: string;
  readonly keys = new Map<string, AwsKey>([["AKIASERVER", { secret: "server-secret", account: SERVER_ACCOUNT }]]);
  readonly instances = new Map<string, AwsInstance>();
  /** Roles that the server's account may take on, by ARN. */
  readonly roles = new Set<string>();
  /** ARNs of instance profiles, and of their roles. */
  readonly profiles = new Map<string, readonly string[]>();
  organization: { id: string; status: string }[] = [];
  readonly clusters = new Map<string, readonly string[]>();
  /** Service, action and access key of each call whose signature held. */
  readonly calls: string[] = [];
  /** Changes what EC2 and IAM answer. */
  bend: ((xml: string) => string) | undefined;
  /** The instance that the metadata service is on. */
  here: AwsInstance | undefined;
  /** Whether the metadata service has tokens. */
  hasTokens = true;
  readonly metadataRequests: string[] = [];
  /** Sessions last so long. */
  sessionSeconds = 3600;
  readonly #resources: AsyncDisposableStack;
  #serial = 0;

  private constructor(
    parts: Pick<AwsDouble, "net" | "regions" | "signers">,
    metadata: string,
    resources: AsyncDisposableStack,
  ) {
    this.net = parts.net;
    this.regions = parts.regions;
    this.signers = parts.signers;
    this.metadata = metadata;
    this.#resources = resources;
  }

  static async open(shared?: CloudNet): Promise<AwsDouble> {
    await using scope = new AsyncDisposableStack();
    const { path } = scope.use(await temporaryDirectory());
    const hosts = [
      ...REGIONS.flatMap((region) =>
        ["ec2", "sts", "eks", "autoscaling"].map((name) => `${name}.${region}.amazonaws.com`),
      ),
      ...["iam.amazonaws.com", "organizations.us-east-1.amazonaws.com"],
    ];
    const net = shared ?? scope.use(await CloudNet.open());
    const signers = new Map<string, Issued>();
    const regions: Record<string, { certificate_path: string }> = {};
    for (const region of REGIONS) {
      const signer = await createCa({
        uris: [],
        keyType: "rsa-2048",
        subject: { organization: ["Amazon Web Services LLC"] },
      });
      const file = join(path, `${region}.pem`);
      await writeFile(file, signer.pem);
      signers.set(region, signer);
      regions[region] = { certificate_path: file };
    }
    let double: AwsDouble | undefined;
    const metadata = await serveHttp(scope, (request) => (double as AwsDouble).#metadata(request));
    double = new AwsDouble({ net, regions, signers }, metadata, scope.move());
    for (const host of hosts) net.on(host, (request) => (double as AwsDouble).#answer(request));
    return double;
  }

  /** The environment of a server that calls here. */
  get env(): Readonly<Record<string, string>> {
    return { ...this.net.env, HOME: "/nonexistent", AWS_EC2_METADATA_SERVICE_ENDPOINT: this.metadata };
  }

  launch(options: Partial<AwsInstance> = {}): AwsInstance {
    this.#serial += 1;
    const now = new Date(Date.now() - 60 * SECOND_MS);
    const instance: AwsInstance = {
      ...{ id: `i-${this.#serial.toString(16).padStart(17, "0")}`, account: NODE_ACCOUNT, region: "us-test-1" },
      ...{ tags: {}, groups: [], rootDeviceType: "ebs", rootDeviceName: "/dev/xvda", state: "running" },
      ...{ rootAttached: new Date(now.getTime() + SECOND_MS), interfaceAttached: now },
      ...options,
    };
    this.instances.set(instance.id, instance);
    return instance;
  }

  /** What the metadata service shows, in the form that Amazon has it. */
  document({ id, account, region }: AwsInstance, changes: object = {}): string {
    const fields = {
      ...{ accountId: account, architecture: "x86_64", availabilityZone: `${region}a`, billingProducts: null },
      ...{ devpayProductCodes: null, marketplaceProductCodes: null, imageId: "ami-5fb8c835", instanceId: id },
      ...{ instanceType: "t3.micro", kernelId: null, pendingTime: "2026-01-02T03:04:05Z", privateIp: "10.158.112.84" },
      ...{ ramdiskId: null, region, version: "2017-09-30" },
      ...changes,
    };
    return JSON.stringify(fields, undefined, 2).replaceAll('":', '" :');
  }

  async sign(document: string, signer: string | Issued, ...options: readonly string[]): Promise<string> {
    const who = typeof signer === "string" ? this.signers.get(signer) : signer;
    const der = await opensslSigned(who as Issued, Buffer.from(document), "-stream", "-nocerts", ...options);
    return inLines(der);
  }

  /** What an honest agent sends. */
  async evidence(instance: AwsInstance): Promise<Uint8Array> {
    const document = this.document(instance);
    return writeEvidence({ document, signature: "c2lnbmVk", rsa2048: await this.sign(document, instance.region) });
  }

  async #metadata({ method, url, headers }: CloudRequest): Promise<CloudAnswer> {
    this.metadataRequests.push(`${method} ${url.pathname}`);
    if (method === "PUT") {
      if (!this.hasTokens) return { status: 404, body: "" };
      const ttl = Number(headers["x-aws-ec2-metadata-token-ttl-seconds"]);
      if (!(ttl >= 1 && ttl <= 21_600)) return { status: 400, body: "" };
      return { headers: { "x-aws-ec2-metadata-token-ttl-seconds": String(ttl) }, body: "metadata-token" };
    }
    if (this.hasTokens && headers["x-aws-ec2-metadata-token"] !== "metadata-token") return { status: 401, body: "" };
    const role = "meta-data/iam/security-credentials/";
    const path = url.pathname.replace("/latest/", "");
    if (path === role) return { body: "server-role" };
    if (path === `${role}server-role`) return { body: JSON.stringify(this.#session(SERVER_ACCOUNT)) };
    if (this.here === undefined) return { status: 404, body: "" };
    const document = this.document(this.here);
    if (path === "dynamic/instance-identity/document") return { body: document };
    if (path === "dynamic/instance-identity/signature") return { body: "c2lnbmVk" };
    if (path === "dynamic/instance-identity/rsa2048") return { body: await this.sign(document, this.here.region) };
    return { status: 404, body: "" };
  }

  /** New temporary keys of the account. */
  #session(account: string): Readonly<Record<string, string>> {
    const [id, secret, token] = [
      `ASIA${randomBytes(8).toString("hex").toUpperCase()}`,
      randomBytes(20).toString("hex"),
      randomBytes(30).toString("base64"),
    ];
    this.keys.set(id as string, { secret: secret as string, token: token as string, account });
    const Expiration = new Date(Date.now() + this.sessionSeconds * SECOND_MS).toISOString();
    return {
      Code: "Success",
      AccessKeyId: id as string,
      SecretAccessKey: secret as string,
      Token: token as string,
      Expiration,
    };
  }

  #answer(request: CloudRequest): CloudAnswer {
    const { host } = request.url;
    const service = host.split(".")[0] ?? "";
    const region = host.split(".").length > 3 ? (host.split(".")[1] ?? "") : "us-east-1";
    const form = new URLSearchParams(request.body);
    const action = form.get("Action") ?? String(request.headers["x-amz-target"] ?? request.url.pathname);
    if (action === "AssumeRoleWithWebIdentity") return this.#webIdentity(form);
    const key = this.#caller(request, service, region);
    if (key === undefined) return failure(403, "SignatureDoesNotMatch");
    this.calls.push(`${service} ${region} ${action} ${key.account}`);
    if (action === "AssumeRole") return this.#assumeRole(form, key);
    if (action === "DescribeInstances") return this.#describe(form, key, region);
    if (action === "GetInstanceProfile") return this.#profile(form, key);
    if (action === "DescribeAutoScalingGroups") return this.#groups(form);
    if (action.endsWith(".ListAccounts")) return this.#accounts(request, key);
    if (service === "eks") return this.#nodegroups(request.url);
    return failure(400, "InvalidAction");
  }

  /** Whose signature it is, over what came; undefined when it does not hold. */
  #caller({ method, url, headers, body }: CloudRequest, service: string, region: string): AwsKey | undefined {
    const parts =
      /^AWS4-HMAC-SHA256 Credential=(\w+)\/(\d{8})\/([\w-]+)\/(\w+)\/aws4_request, SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})$/.exec(
        headers.authorization ?? "",
      );
    const [, id = "", date = "", inRegion, forService, names = "", signature] = parts ?? [];
    const key = this.keys.get(id);
    const signedHeaders = names.split(";");
    const time = String(headers["x-amz-date"]);
    if (key === undefined || inRegion !== region || forService !== service || !time.startsWith(date)) return undefined;
    if (headers["x-amz-security-token"] !== key.token || !signedHeaders.includes("host")) return undefined;
    const query = url.search.replace("?", "").split("&").sort().join("&");
    const hash = (text: string): string => createHash("sha256").update(text).digest("hex");
    const lines = signedHeaders.map((name) => `${name}:${String(headers[name]).trim()}\n`).join("");
    const canonical = `${method}\n${url.pathname}\n${query}\n${lines}\n${names}\n${hash(body)}`;
    const mac = (by: Buffer | string, text: string): Buffer => createHmac("sha256", by).update(text).digest();
    const signing = mac(mac(mac(mac(`AWS4${key.secret}`, date), region), service), "aws4_request");
    const text = `AWS4-HMAC-SHA256\n${time}\n${date}/${region}/${service}/aws4_request\n${hash(canonical)}`;
    return mac(signing, text).toString("hex") === signature ? key : undefined;
  }

  #webIdentity(form: URLSearchParams): CloudAnswer {
    if (form.get("WebIdentityToken") !== "web-token") return failure(400, "InvalidIdentityToken");
    const account = form.get("RoleArn")?.split(":")[4] ?? "";
    return xml("AssumeRoleWithWebIdentity", sessionXml("AssumeRoleWithWebIdentity", this.#session(account)));
  }

  #assumeRole(form: URLSearchParams, key: AwsKey): CloudAnswer {
    const arn = form.get("RoleArn") ?? "";
    if (key.account !== SERVER_ACCOUNT || !this.roles.has(arn)) return failure(403, "AccessDenied");
    return xml("AssumeRole", sessionXml("AssumeRole", this.#session(arn.split(":")[4] ?? "")));
  }

  #describe(form: URLSearchParams, key: AwsKey, region: string): CloudAnswer {
    const instance = this.instances.get(form.get("InstanceId.1") ?? "");
    if (instance === undefined || instance.account !== key.account || instance.region !== region)
      return failure(400, "InvalidInstanceID.NotFound");
    const states = [form.get("Filter.1.Value.1"), form.get("Filter.1.Value.2")];
    const found = form.get("Filter.1.Name") === "instance-state-name" && states.includes(instance.state);
    const set = found
      ? `<item><reservationId>r-1</reservationId><ownerId>${instance.account}</ownerId><groupSet/><instancesSet><item>${instanceXml(instance)}</item></instancesSet></item>`
      : "";
    return xml("DescribeInstances", `<requestId>x</requestId><reservationSet>${set}</reservationSet>`, this.bend);
  }

  /** By name, in the caller's account, as IAM does. */
  #profile(form: URLSearchParams, key: AwsKey): CloudAnswer {
    const name = form.get("InstanceProfileName") ?? "";
    const arn = [...this.profiles.keys()].find(
      (each) => each.split(":")[4] === key.account && each.split("/").at(-1) === name,
    );
    if (arn === undefined) return failure(404, "NoSuchEntity");
    const roles = (this.profiles.get(arn) ?? []).map((role) => `<member><Path>/</Path><Arn>${role}</Arn></member>`);
    const profile = `<InstanceProfile><InstanceProfileName>${name}</InstanceProfileName><Arn>${arn}</Arn><Roles>${roles.join("")}</Roles></InstanceProfile>`;
    return xml("GetInstanceProfile", `<GetInstanceProfileResult>${profile}</GetInstanceProfileResult>`, this.bend);
  }

  #accounts({ body }: CloudRequest, key: AwsKey): CloudAnswer {
    if (key.account !== OTHER_ACCOUNT) return { status: 400, body: '{"__type":"AccessDeniedException"}' };
    const from = Number(JSON.parse(body).NextToken ?? 0);
    const page = this.organization.slice(from, from + 2).map(({ id, status }) => ({ Id: id, Status: status }));
    const next = from + 2 < this.organization.length ? { NextToken: String(from + 2) } : {};
    return { body: JSON.stringify({ Accounts: page, ...next }) };
  }

  /** Each instance of a cluster has a group of its own, so that there are pages. */
  #nodegroups(url: URL): CloudAnswer {
    const [, , cluster = "", , group] = url.pathname.split("/");
    const nodes = this.clusters.get(cluster);
    if (nodes === undefined) return { status: 404, body: '{"code":"ResourceNotFoundException"}' };
    if (group !== undefined) {
      const resources = { autoScalingGroups: [{ name: `asg=${group}` }] };
      return { body: JSON.stringify({ nodegroup: { nodegroupName: group, resources } }) };
    }
    const from = Number(url.searchParams.get("nextToken")?.split("=")[1] ?? 0);
    const next = from + 1 < nodes.length ? `page=${from + 1}` : null;
    return { body: JSON.stringify({ nodegroups: nodes.slice(from, from + 1), nextToken: next }) };
  }

  #groups(form: URLSearchParams): CloudAnswer {
    const instance = (form.get("AutoScalingGroupNames.member.1") ?? "").split("=")[1];
    const group = `<member><Instances><member><InstanceId>${instance}</InstanceId></member></Instances></member>`;
    const result = `<DescribeAutoScalingGroupsResult><AutoScalingGroups>${group}</AutoScalingGroups></DescribeAutoScalingGroupsResult>`;
    return xml("DescribeAutoScalingGroups", result);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

export function inLines(der: Uint8Array): string {
  return (
    Buffer.from(der)
      .toString("base64")
      .match(/.{1,64}/g) ?? []
  ).join("\n");
}

function instanceXml(instance: AwsInstance): string {
  const { id, tags, groups, profileArn, rootDeviceType, rootDeviceName, rootAttached, interfaceAttached, state } =
    instance;
  const item = (inner: string): string => `<item>${inner}</item>`;
  const device = (at: Date): string =>
    item(
      `<deviceName>/dev/xvda</deviceName><ebs><volumeId>vol-1</volumeId><attachTime>${at.toISOString()}</attachTime></ebs>`,
    );
  const network = (at: Date): string =>
    item(`<attachment><deviceIndex>0</deviceIndex><attachTime>${at.toISOString()}</attachTime></attachment>`);
  return [
    `<instanceId>${id}</instanceId><instanceState><code>16</code><name>${state}</name></instanceState>`,
    `<groupSet>${groups.map((g) => item(`<groupId>${g.id}</groupId><groupName>${escaped(g.name)}</groupName>`)).join("")}</groupSet>`,
    `<tagSet>${Object.entries(tags)
      .map(([key, value]) => item(`<key>${escaped(key)}</key><value>${escaped(value)}</value>`))
      .join("")}</tagSet>`,
    profileArn === undefined ? "" : `<iamInstanceProfile><arn>${profileArn}</arn><id>AIPA</id></iamInstanceProfile>`,
    `<rootDeviceType>${rootDeviceType}</rootDeviceType><rootDeviceName>${rootDeviceName}</rootDeviceName>`,
    `<blockDeviceMapping>${rootAttached === undefined ? "" : device(rootAttached)}</blockDeviceMapping>`,
    `<networkInterfaceSet>${interfaceAttached === undefined ? "" : network(interfaceAttached)}</networkInterfaceSet>`,
  ].join("");
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}

function sessionXml(action: string, session: Readonly<Record<string, string>>): string {
  const { AccessKeyId, SecretAccessKey, Token, Expiration } = session;
  const keys = `<AccessKeyId>${AccessKeyId}</AccessKeyId><SecretAccessKey>${SecretAccessKey}</SecretAccessKey>`;
  const rest = `<SessionToken>${Token}</SessionToken><Expiration>${Expiration}</Expiration>`;
  return `<${action}Result><Credentials>${keys}${rest}</Credentials></${action}Result>`;
}

function xml(action: string, inner: string, bend: (text: string) => string = (text) => text): CloudAnswer {
  const body = `<?xml version="1.0" encoding="UTF-8"?>\n<${action}Response xmlns="http://aws.test/doc/">\n    ${inner}\n</${action}Response>`;
  return { headers: { "content-type": "text/xml" }, body: bend(body) };
}

function failure(status: number, code: string): CloudAnswer {
  return {
    status,
    body: `<ErrorResponse><Error><Type>Sender</Type><Code>${code}</Code><Message>secret</Message></Error></ErrorResponse>`,
  };
}
