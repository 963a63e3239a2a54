import * as v from "valibot";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { HttpAnswer, HttpCaller } from "../../../src/runtime/http-call.ts";
import { type AwsKeys, type AwsRequest, signed } from "./sigv4.ts";
import { all, parseXml, textAt, type XmlElement } from "./xml.ts";

type Env = Readonly<Record<string, string | undefined>>;

/** Names of services in endpoints, signatures and `AWS_ENDPOINT_URL_…`. */
const SERVICES = {
  autoscaling: { version: "2011-01-01", variable: "AUTO_SCALING" },
  ec2: { version: "2016-11-15", variable: "EC2" },
  eks: { version: "", variable: "EKS" },
  iam: { version: "2010-05-08", variable: "IAM" },
  organizations: { version: "", variable: "ORGANIZATIONS" },
  sts: { version: "2011-06-15", variable: "STS" },
} as const;
export type AwsService = keyof typeof SERVICES;

/** A group of regions with accounts, names and endpoints of its own. */
interface Partition {
  readonly name: string;
  readonly prefix: string;
  readonly suffix: string;
  /** Regions of the services that a partition has once. */
  readonly iam: { readonly host: string; readonly region: string };
  readonly organizations: string;
}

const COMMERCIAL: Partition = {
  ...{ name: "aws", prefix: "", suffix: "amazonaws.com" },
  ...{ iam: { host: "iam.amazonaws.com", region: "us-east-1" }, organizations: "us-east-1" },
};
const PARTITIONS: readonly Partition[] = [
  {
    ...{ name: "aws-cn", prefix: "cn-", suffix: "amazonaws.com.cn" },
    ...{ iam: { host: "iam.cn-north-1.amazonaws.com.cn", region: "cn-north-1" }, organizations: "cn-northwest-1" },
  },
  {
    ...{ name: "aws-us-gov", prefix: "us-gov-", suffix: "amazonaws.com" },
    ...{ iam: { host: "iam.us-gov.amazonaws.com", region: "us-gov-west-1" }, organizations: "us-gov-west-1" },
  },
  {
    ...{ name: "aws-eusc", prefix: "eusc-", suffix: "amazonaws.eu" },
    ...{ iam: { host: "iam.eusc-de-east-1.amazonaws.eu", region: "eusc-de-east-1" }, organizations: "eusc-de-east-1" },
  },
];

function partitionAt(region: string): Partition {
  return PARTITIONS.find(({ prefix }) => region.startsWith(prefix)) ?? COMMERCIAL;
}

/** Such as `aws` or `aws-cn`. */
export function partitionOf(region: string): string {
  return partitionAt(region).name;
}

interface Place {
  readonly url: URL;
  readonly region: string;
}

/** As AWS's SDKs find it, `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_<service>` included. */
function placeOf(service: AwsService, region: string, env: Env): Place {
  const partition = partitionAt(region);
  const global = { iam: partition.iam.region, organizations: partition.organizations } as const;
  const signedFor = service === "iam" || service === "organizations" ? global[service] : region;
  const host = service === "iam" ? partition.iam.host : `${service}.${signedFor}.${partition.suffix}`;
  const ignored = env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] === "true";
  const own = env[`AWS_ENDPOINT_URL_${SERVICES[service].variable}`] || env["AWS_ENDPOINT_URL"];
  return { url: new URL(own && !ignored ? own : `https://${host}/`), region: signedFor };
}

/** Where a call is made, as whom, and for how long. */
export interface AwsPlace {
  readonly region: string;
  /** None for the calls that need no signature. */
  readonly keys: AwsKeys | undefined;
  readonly signal: AbortSignal;
}

/** Calls AWS's APIs: each request is made here, from parts that were checked, and of nothing that a peer sent (T-N6). */
export class AwsApi {
  readonly #http: HttpCaller;
  readonly #clock: Pick<Clock, "now">;
  readonly #env: Env;

  constructor(http: HttpCaller, clock: Pick<Clock, "now">, env: Env) {
    this.#http = http;
    this.#clock = clock;
    this.#env = env;
  }

  /** An action of a query API. Unsigned without keys. Throws `unavailable`, with the code of AWS's error. */
  async query(service: AwsService, at: AwsPlace, parameters: Readonly<Record<string, string>>): Promise<XmlElement> {
    const { version } = SERVICES[service];
    const body = new URLSearchParams({ ...parameters, Version: version }).toString();
    const headers = { "content-type": "application/x-www-form-urlencoded; charset=utf-8" };
    const answer = await this.#send(service, at, { method: "POST", path: "/", headers, body });
    const what = `${service}:${parameters["Action"]}`;
    if (answer.status !== 200) throw failed(what, answer.status, xmlErrorCode(answer.body));
    const element = attempt(() => parseXml(answer.body.toString("utf8")));
    if (element?.name !== `${parameters["Action"]}Response`) throw failed(what, 200, "of another form");
    return element;
  }

  /** A call of a JSON API. */
  async json<S extends v.GenericSchema>(
    schema: S,
    service: AwsService,
    at: AwsPlace,
    call: { readonly method: "GET" | "POST"; readonly path: string; readonly target?: string; readonly body?: string },
  ): Promise<v.InferOutput<S>> {
    const { target, method, path, body = "" } = call;
    const headers: Readonly<Record<string, string>> =
      target === undefined ? {} : { "content-type": "application/x-amz-json-1.1", "x-amz-target": target };
    const answer = await this.#send(service, at, { method, path, headers, body });
    const what = target === undefined ? service : `${service}:${target.split(".").at(-1)}`;
    if (answer.status !== 200) throw failed(what, answer.status, jsonErrorCode(answer));
    const value = attempt(() => v.parse(schema, JSON.parse(answer.body.toString("utf8"))));
    if (value === undefined) throw failed(what, 200, "of another form");
    return value;
  }

  #send(
    service: AwsService,
    { region: inRegion, keys, signal }: AwsPlace,
    { method, path, headers, body }: Pick<AwsRequest, "method" | "headers" | "body"> & { readonly path: string },
  ): Promise<HttpAnswer> {
    const { url: base, region } = placeOf(service, inRegion, this.#env);
    const url = new URL(base.pathname.replace(/\/$/, "") + path, base);
    const request = { method, url, headers, body, service, region };
    const all = keys === undefined ? headers : signed(request, keys, this.#clock.now());
    return this.#http.call({ url, method, headers: all, ...(method === "POST" ? { body } : {}) }, signal);
  }
}

function xmlErrorCode(body: Buffer): string | undefined {
  const root = attempt(() => parseXml(body.toString("utf8")));
  return textAt(root, "Error", "Code") ?? all(root, "Errors", "Error")[0]?.children.find(isCode)?.text;
}

function isCode({ name }: XmlElement): boolean {
  return name === "Code";
}

const JsonError = v.object({ __type: v.optional(v.string()), code: v.optional(v.string()) });

function jsonErrorCode({ headers, body }: HttpAnswer): string | undefined {
  const named = attempt(() => v.parse(JsonError, JSON.parse(body.toString("utf8"))));
  const header = headers["x-amzn-errortype"];
  return (
    named?.__type?.split("#").at(-1) ?? named?.code ?? (typeof header === "string" ? header.split(":")[0] : undefined)
  );
}

function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch {
    return undefined;
  }
}

/** AWS's message may name what only the operator should know; its code does not. */
function failed(what: string, status: number, code: string | undefined): Fault {
  const reason = code !== undefined && /^[A-Za-z. ]{1,64}$/.test(code) ? ` ${code}` : "";
  return new Fault("unavailable", `${what} was answered with ${status}${reason}`, {
    code: "aws-api",
    hint: "see the permissions of the server's credentials, and whether the service is up",
  });
}
