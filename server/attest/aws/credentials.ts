import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Ec2Metadata, ec2MetadataEndpoint } from "../../../src/runtime/ec2-metadata.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";
import { type AwsApi, partitionOf } from "./client.ts";
import type { AwsKeys } from "./sigv4.ts";
import { textAt, type XmlElement } from "./xml.ts";

export interface AwsCredentials extends AwsKeys {
  /** Undefined for those that do not end. */
  readonly expiresAt?: Date;
}

export interface AwsAccess {
  /** Those of the configuration. */
  readonly keys: AwsKeys | undefined;
  /** `AWS_…` and `HOME`. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface AwsCredentialsOptions extends AwsAccess {
  readonly api: AwsApi;
  /** Without proxies: for what is on this machine. */
  readonly local: HttpCaller;
  readonly clock: Pick<Clock, "now">;
}

/** Credentials are replaced so long before they end. */
const SPARE_MS = 5 * 60_000;
const SESSION_NAME = "steeple-server";
/** Shared by all that wait for it: it ends by the deadlines of its own calls. */
const NEVER = new AbortController().signal;
/** The only hosts that may be asked for credentials without TLS, besides loopback: those of ECS and EKS. */
const CONTAINER_HOSTS: ReadonlySet<string> = new Set(["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"]);
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

interface Held {
  readonly flight: Promise<AwsCredentials>;
  settled?: AwsCredentials;
}

/**
 * Who the server is at AWS: keys of the configuration or of the environment, a web identity, the shared credentials
 * file, the container, the instance, in this order; and the roles that it takes on. What is kept of a role is kept under
 * its whole ARN, partition and account included, and region (T-N7).
 */
export class AwsCredentialStore {
  readonly #options: AwsCredentialsOptions;
  readonly #held = new Map<string, Held>();

  constructor(options: AwsCredentialsOptions) {
    this.#options = options;
  }

  /** Throws `unavailable`. */
  own(region: string): Promise<AwsCredentials> {
    return this.#kept(`own@${region}`, () => ownCredentials(this.#options, region));
  }

  /** Of a role such as `arn:aws:iam::123456789012:role/server`. Throws `unavailable`. */
  async role(arn: string, region: string): Promise<AwsCredentials> {
    const partition = arn.split(":")[1];
    if (partition !== partitionOf(region))
      throw new Fault("denied", `region ${region} is not in partition "${partition}"`, {
        code: "aws-iid-refused",
        hint: "set partition to that of the nodes' regions",
      });
    return this.#kept(`${arn}@${region}`, async () => {
      const keys = await this.own(region);
      const parameters = { Action: "AssumeRole", RoleArn: arn, RoleSessionName: SESSION_NAME };
      const answer = await this.#options.api.query("sts", { region, keys, signal: NEVER }, parameters);
      return stsCredentials(answer, "AssumeRoleResult");
    });
  }

  async #kept(key: string, take: () => Promise<AwsCredentials>): Promise<AwsCredentials> {
    const held = this.#held.get(key);
    if (held !== undefined && (held.settled === undefined || this.#isGood(held.settled))) return held.flight;
    const next: Held = { flight: take() };
    this.#held.set(key, next);
    try {
      next.settled = await next.flight;
      return next.settled;
    } catch (error) {
      this.#held.delete(key);
      throw error;
    }
  }

  #isGood({ expiresAt }: AwsCredentials): boolean {
    return expiresAt === undefined || expiresAt.getTime() - SPARE_MS > this.#options.clock.now().getTime();
  }
}

async function ownCredentials(options: AwsCredentialsOptions, region: string): Promise<AwsCredentials> {
  const { keys, env } = options;
  if (keys !== undefined) return keys;
  const [tokenFile, roleArn] = [env["AWS_WEB_IDENTITY_TOKEN_FILE"] ?? "", env["AWS_ROLE_ARN"] ?? ""];
  if (tokenFile !== "" && roleArn !== "") return webIdentity(options, region, { tokenFile, roleArn });
  const shared = await sharedFile(env);
  if (shared !== undefined) return shared;
  const container = containerUrl(env);
  if (container !== undefined) return containerCredentials(options, container);
  if (env["AWS_EC2_METADATA_DISABLED"]?.toLowerCase() === "true") throw nowhere("none are configured");
  return instanceCredentials(options);
}

async function webIdentity(
  { api, env }: AwsCredentialsOptions,
  region: string,
  { tokenFile, roleArn }: { readonly tokenFile: string; readonly roleArn: string },
): Promise<AwsCredentials> {
  const token = (await readText(tokenFile)).trim();
  const answer = await api.query(
    "sts",
    { region, keys: undefined, signal: NEVER },
    {
      Action: "AssumeRoleWithWebIdentity",
      RoleArn: roleArn,
      RoleSessionName: env["AWS_ROLE_SESSION_NAME"] || SESSION_NAME,
      WebIdentityToken: token,
    },
  );
  return stsCredentials(answer, "AssumeRoleWithWebIdentityResult");
}

function stsCredentials(answer: XmlElement, result: string): AwsCredentials {
  const at = (name: string): string => textAt(answer, result, "Credentials", name) ?? "";
  return checked({
    AccessKeyId: at("AccessKeyId"),
    SecretAccessKey: at("SecretAccessKey"),
    Token: at("SessionToken"),
    Expiration: at("Expiration"),
  });
}

/** Undefined when there is no file, or no keys of the profile in it. */
async function sharedFile(env: AwsAccess["env"]): Promise<AwsCredentials | undefined> {
  const path = env["AWS_SHARED_CREDENTIALS_FILE"] || join(env["HOME"] || homedir(), ".aws", "credentials");
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "EACCES") return "";
    throw nowhere(messageOf(error));
  });
  const values = profileIn(text, env["AWS_PROFILE"] || "default");
  const [accessKeyId, secretAccessKey] = [values.get("aws_access_key_id"), values.get("aws_secret_access_key")];
  if (accessKeyId === undefined || secretAccessKey === undefined) return undefined;
  const sessionToken = values.get("aws_session_token");
  return { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) };
}

function profileIn(text: string, profile: string): ReadonlyMap<string, string> {
  const values = new Map<string, string>();
  let current = "";
  for (const line of text.split(/\r?\n/)) {
    const section = /^\s*\[\s*(?:profile\s+)?([^\]]*?)\s*\]/.exec(line);
    const pair = /^\s*([a-z_]+)\s*=\s*(.*?)\s*$/.exec(line);
    if (section !== null) current = section[1] ?? "";
    else if (pair !== null && current === profile) values.set(pair[1] ?? "", pair[2] ?? "");
  }
  return values;
}

function containerUrl(env: AwsAccess["env"]): URL | undefined {
  const relative = env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] ?? "";
  if (relative !== "") return new URL(relative, "http://169.254.170.2");
  const full = env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] ?? "";
  if (full === "") return undefined;
  const url = URL.canParse(full) ? new URL(full) : undefined;
  const isLocal = url !== undefined && (CONTAINER_HOSTS.has(url.hostname) || LOOPBACK.test(url.hostname));
  if (url === undefined || (url.protocol !== "https:" && !isLocal))
    throw nowhere("AWS_CONTAINER_CREDENTIALS_FULL_URI names a host that may not be asked");
  return url;
}

const Temporary = v.object({
  AccessKeyId: v.string(),
  SecretAccessKey: v.string(),
  Token: v.string(),
  Expiration: v.string(),
});

async function containerCredentials({ env, local }: AwsCredentialsOptions, url: URL): Promise<AwsCredentials> {
  const file = env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] ?? "";
  const token = file === "" ? (env["AWS_CONTAINER_AUTHORIZATION_TOKEN"] ?? "") : (await readText(file)).trim();
  const headers: Readonly<Record<string, string>> = token === "" ? {} : { authorization: token };
  return checked(await local.json(Temporary, { url, headers }, NEVER));
}

async function instanceCredentials({ env, local }: AwsCredentialsOptions): Promise<AwsCredentials> {
  const read = await new Ec2Metadata(local, ec2MetadataEndpoint("", env)).open(NEVER);
  const path = "meta-data/iam/security-credentials/";
  const role = (await read(path)).split("\n")[0]?.trim() ?? "";
  if (!/^[\w+=,.@-]{1,64}$/.test(role)) throw nowhere("the instance has no role");
  return checked(local.read(Temporary, Buffer.from(await read(path + role)), "the metadata service"));
}

function checked({ AccessKeyId, SecretAccessKey, Token, Expiration }: v.InferOutput<typeof Temporary>): AwsCredentials {
  const expiresAt = new Date(Expiration);
  if (AccessKeyId === "" || SecretAccessKey === "" || Token === "" || Number.isNaN(expiresAt.getTime()))
    throw nowhere("the answer does not hold them");
  return { accessKeyId: AccessKeyId, secretAccessKey: SecretAccessKey, sessionToken: Token, expiresAt };
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw nowhere(messageOf(error));
  }
}

function nowhere(reason: string): Fault {
  return new Fault("unavailable", `the server has no AWS credentials: ${reason}`, {
    code: "aws-credentials",
    hint: "give it a role, or set access_key_id and secret_access_key",
  });
}
