import * as v from "valibot";
import type { AzureCloud } from "../../../src/evidence/azure-cloud.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";
import type { AzureCredentials } from "./credentials.ts";

const MAX_PAGES = 100;
const GRAPH = "/providers/Microsoft.ResourceGraph/resources?api-version=2021-03-01";

/** What can stand between slashes of a resource's ID. */
const SEGMENT = "(?!\\.+(?:/|$))[A-Za-z0-9_().-]{1,128}";

/** The resource group and the names in the ID of a resource, such as those of `virtualNetworks/subnets`. */
export function partsOf(id: string, provider: string, ...types: readonly string[]): ResourceParts | undefined {
  const names = types.map((type) => `/${type}/(${SEGMENT})`).join("");
  const pattern = `^/subscriptions/([0-9a-f-]{36})/resourceGroups/(${SEGMENT})/providers/${provider}${names}$`;
  const match = new RegExp(pattern, "i").exec(id);
  if (match === null) return undefined;
  const [, subscriptionId = "", resourceGroup = "", ...rest] = match;
  return { subscriptionId, resourceGroup, names: rest };
}

export interface ResourceParts {
  readonly subscriptionId: string;
  readonly resourceGroup: string;
  readonly names: readonly string[];
}

/** The security group and the subnets of a network interface. */
export interface NetworkInterface {
  readonly securityGroup: ResourceParts | undefined;
  readonly subnets: readonly ResourceParts[];
}

const Id = v.nullish(v.object({ id: v.nullish(v.string()) }));

/** Of a network interface, and of its configuration in a scale set. */
export const InterfaceProperties = v.object({
  networkSecurityGroup: Id,
  ipConfigurations: v.nullish(v.array(v.object({ properties: v.nullish(v.object({ subnet: Id })) }))),
});

/** Throws `unavailable` for IDs of another form. */
export function interfaceOf(
  properties: v.InferOutput<typeof InterfaceProperties> | null | undefined,
): NetworkInterface {
  const group = properties?.networkSecurityGroup?.id;
  const subnets = (properties?.ipConfigurations ?? []).flatMap((each) => each.properties?.subnet?.id ?? []);
  return {
    securityGroup: group ? known(partsOf(group, "Microsoft.Network", "networkSecurityGroups"), group) : undefined,
    subnets: subnets.map((id) => known(partsOf(id, "Microsoft.Network", "virtualNetworks", "subnets"), id)),
  };
}

export function known<T>(value: T | undefined, id: string): T {
  if (value !== undefined) return value;
  throw new Fault("unavailable", `malformed resource ID ${JSON.stringify(id.slice(0, 256))}`, { code: "azure-api" });
}

/** Azure's resource manager, as one principal. Requests are made of checked parts, and go to no other host (T-N6). */
export class AzureResources {
  readonly #http: HttpCaller;
  readonly #cloud: AzureCloud;
  readonly #credentials: AzureCredentials;

  constructor(http: HttpCaller, cloud: AzureCloud, credentials: AzureCredentials) {
    this.#http = http;
    this.#cloud = cloud;
    this.#credentials = credentials;
  }

  /** Throws `unavailable`. */
  async get<S extends v.GenericSchema>(schema: S, path: string, signal: AbortSignal): Promise<v.InferOutput<S>> {
    const headers = { authorization: `Bearer ${await this.#credentials.token()}` };
    return this.#http.json(schema, { url: new URL(path, this.#cloud.management), headers }, signal);
  }

  /** The items of all pages. */
  async list<S extends v.GenericSchema>(item: S, path: string, signal: AbortSignal): Promise<v.InferOutput<S>[]> {
    const schema = v.object({ value: v.array(item), nextLink: v.nullish(v.string()) });
    const items: v.InferOutput<S>[] = [];
    let next = path;
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const { value, nextLink } = await this.get(schema, next, signal);
      items.push(...value);
      if (!nextLink) return items;
      const url = URL.canParse(nextLink) ? new URL(nextLink) : undefined;
      if (url?.origin !== this.#cloud.management) throw this.#http.fault("the next page is on another host");
      next = url.pathname + url.search;
    }
    throw this.#http.fault("the list does not end");
  }

  /** Rows of a query of the Resource Graph in one subscription. */
  async query<S extends v.GenericSchema>(
    row: S,
    { query, subscriptionId }: { readonly query: string; readonly subscriptionId: string },
    signal: AbortSignal,
  ): Promise<v.InferOutput<S>[]> {
    const headers = {
      authorization: `Bearer ${await this.#credentials.token()}`,
      "content-type": "application/json",
    };
    const body = JSON.stringify({ query, subscriptions: [subscriptionId], options: { resultFormat: "objectArray" } });
    const url = new URL(GRAPH, this.#cloud.management);
    const { data } = await this.#http.json(
      v.object({ data: v.array(row) }),
      { url, method: "POST", headers, body },
      signal,
    );
    return data;
  }
}
