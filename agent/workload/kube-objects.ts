import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { type KubeApi, METADATA_LIST, METADATA_ONLY } from "./kube-api.ts";
import { listOf, type Owner, objectOf, ownersOf, textEntries, textOf } from "./pods.ts";
import type { KubernetesObject } from "./references.ts";

/** A type of objects, as the API server serves it. */
export interface Resource {
  readonly plural: string;
  /** `core` for the one without a name. */
  readonly group: string;
  readonly version: string;
  readonly kind: string;
  readonly namespaced: boolean;
}

/** Name and namespace of an object; the namespace is empty for what stands in none. */
export interface ObjectName {
  readonly namespace: string;
  readonly name: string;
}

interface ObjectMeta extends ObjectName {
  readonly uid: string;
  readonly labels: readonly (readonly [key: string, value: string])[];
  readonly owners: readonly Owner[];
}

const PAGE = 500;
const DISCOVERED_FOR_MS = 60_000;
const DNS_NAME = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/;
export const PODS: Resource = { plural: "pods", group: "core", version: "v1", kind: "Pod", namespaced: true };

/** Objects of the cluster by reference, from its API server. */
export class KubeObjects {
  readonly #api: KubeApi;
  readonly #clock: Clock;
  readonly #known = new Map<string, { readonly resource: Resource; readonly until: number }>();

  constructor(api: KubeApi, clock: Clock) {
    this.#api = api;
    this.#clock = clock;
  }

  /** Throws `invalid` for a type that the cluster does not have. */
  async resource({ plural, group }: Pick<Resource, "plural" | "group">, signal: AbortSignal): Promise<Resource> {
    const name = `${plural}/${group}`;
    if (!DNS_NAME.test(plural) || !DNS_NAME.test(group)) throw unknownType(name);
    const known = this.#known.get(name);
    if (known !== undefined && this.#clock.monotonic() < known.until) return known.resource;
    for (const version of await this.#versions(group, signal)) {
      const list = await this.#discovered(basePath(group, version), signal);
      const found = listOf(list?.["resources"]).find((each) => each["name"] === plural);
      if (found === undefined) continue;
      const resource = {
        plural,
        group,
        version,
        kind: textOf(found["kind"]),
        namespaced: found["namespaced"] === true,
      };
      this.#known.set(name, { resource, until: this.#clock.monotonic() + DISCOVERED_FOR_MS });
      return resource;
    }
    throw unknownType(name);
  }

  /** Metadata of the one object. Throws `not_found` when it is not there, or has another UID. */
  async find(resource: Resource, { key, uid }: KubernetesObject, signal: AbortSignal): Promise<ObjectMeta> {
    const name = key ?? (await this.#nameOf(resource, uid ?? "", signal));
    const found = metaOf(await this.get(resource, name, { accept: METADATA_ONLY, signal }));
    if (uid !== undefined && found.uid !== uid) throw new Fault("not_found", `the object has the UID ${found.uid}`);
    return found;
  }

  /** The object as it is served. Throws `not_found` when it is not there. */
  get(
    resource: Resource,
    { namespace, name }: ObjectName,
    options: { readonly accept?: string; readonly signal: AbortSignal },
  ): Promise<Readonly<Record<string, unknown>>> {
    const { group, version, plural, namespaced } = resource;
    const within = namespaced ? `/namespaces/${segment(namespace)}` : "";
    return this.#api.ask({ path: `${basePath(group, version)}${within}/${plural}/${segment(name)}`, ...options });
  }

  /** The API server cannot look for UIDs, so all objects of the type are looked through. */
  async #nameOf({ group, version, plural }: Resource, uid: string, signal: AbortSignal): Promise<ObjectName> {
    const found: ObjectName[] = [];
    let next = "";
    do {
      const query = new URLSearchParams({ limit: String(PAGE), ...(next === "" ? {} : { continue: next }) });
      const path = `${basePath(group, version)}/${plural}?${query}`;
      const page = await this.#api.ask({ path, accept: METADATA_LIST, signal });
      found.push(
        ...listOf(page["items"])
          .map(metaOf)
          .filter((each) => each.uid === uid),
      );
      next = textOf(objectOf(page["metadata"])["continue"]);
    } while (next !== "");
    return onlyOne(found);
  }

  /** The preferred one first. */
  async #versions(group: string, signal: AbortSignal): Promise<readonly string[]> {
    if (group === "core") return ["v1"];
    const found = await this.#discovered(`/apis/${group}`, signal);
    const preferred = objectOf(found?.["preferredVersion"])["version"];
    const versions = [preferred, ...listOf(found?.["versions"]).map(({ version }) => version)].map(textOf);
    return [...new Set(versions)].filter((version) => DNS_NAME.test(version));
  }

  async #discovered(path: string, signal: AbortSignal): Promise<Readonly<Record<string, unknown>> | undefined> {
    try {
      return await this.#api.ask({ path, signal });
    } catch (error) {
      if (isFault(error, "not_found")) return undefined;
      throw error;
    }
  }
}

/** Never one of several. BRK-07. */
export function onlyOne<T>(found: readonly T[]): T {
  const [first, second] = found;
  if (first === undefined) throw new Fault("not_found", "there is no such object");
  if (second !== undefined) throw new Fault("invalid", "the reference names more than one object");
  return first;
}

/** Values of the selectors of an object. */
export function objectSelectors(resource: Resource, object: ObjectMeta): readonly string[] {
  const { plural, group, version, kind } = resource;
  const { uid, namespace, name, labels, owners } = object;
  return [
    ...[`uid:${uid}`, `resource:${plural}.${group}`, `plural:${plural}`, `group:${group}`, `version:${version}`],
    `apiVersion:${group === "core" ? version : `${group}/${version}`}`,
    ...[`kind:${kind}`, `name:${name}`],
    ...(namespace === "" ? [`key:${name}`] : [`namespace:${namespace}`, `key:${namespace}/${name}`]),
    ...labels.map(([key, value]) => `label:${key}:${value}`),
    ...owners.flatMap((owner) => ownerSelectors("owner", owner)),
    ...owners.filter(({ controller }) => controller).flatMap((owner) => ownerSelectors("controller", owner)),
  ];
}

/** An owner is who it is in whatever version of its type. */
function ownerSelectors(role: string, { apiVersion, kind, name, uid }: Owner): readonly string[] {
  const type = `${apiVersion.includes("/") ? apiVersion.split("/")[0] : "core"}/${kind}`;
  return [`${role}-key:${type}/${name}`, `${role}-uid:${type}/${uid}`];
}

function metaOf(object: Readonly<Record<string, unknown>>): ObjectMeta {
  const metadata = objectOf(object["metadata"]);
  return {
    uid: textOf(metadata["uid"]).toLowerCase(),
    namespace: textOf(metadata["namespace"]),
    name: textOf(metadata["name"]),
    labels: textEntries(metadata["labels"]),
    owners: ownersOf(metadata["ownerReferences"]),
  };
}

function basePath(group: string, version: string): string {
  return group === "core" ? `/api/${version}` : `/apis/${group}/${version}`;
}

/** Throws `invalid` for what Kubernetes takes for no name, and a server might for another path. */
function segment(name: string): string {
  if (name === "." || name === ".." || /[/%]/.test(name)) throw new Fault("invalid", "this is no name of an object");
  return encodeURIComponent(name);
}

function unknownType(name: string): Fault {
  return new Fault("invalid", `unknown Kubernetes resource ${JSON.stringify(name)}`);
}
