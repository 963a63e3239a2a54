import { randomBytes } from "node:crypto";
import type { Node__Output } from "../../src/rpc/gen/envoy/config/core/v3/Node.ts";
import type { DeltaDiscoveryRequest__Output } from "../../src/rpc/gen/envoy/service/discovery/v3/DeltaDiscoveryRequest.ts";
import type { DeltaDiscoveryResponse } from "../../src/rpc/gen/envoy/service/discovery/v3/DeltaDiscoveryResponse.ts";
import type { DiscoveryRequest__Output } from "../../src/rpc/gen/envoy/service/discovery/v3/DiscoveryRequest.ts";
import type { DiscoveryResponse } from "../../src/rpc/gen/envoy/service/discovery/v3/DiscoveryResponse.ts";
import type { Status__Output } from "../../src/rpc/gen/google/rpc/Status.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { usesSpiffeValidator } from "./sds-node.ts";
import { SECRET_TYPE, type SecretResource, type Secrets } from "./sds-secrets.ts";

/** What one stream of xDS has asked for and been sent. Every method returns what is to be sent now, in order. */
export interface Subscription<Q, R> {
  /** Throws `invalid` when the request cannot be answered: the stream ends. */
  request(request: Q): readonly R[];
  update(secrets: Secrets): readonly R[];
}

export interface SubscriptionOptions {
  readonly disableSpiffeCertValidation: boolean;
  /** Told how many characters of the client's the subscription keeps. Throws `exhausted` for too many of all its streams. */
  readonly keep: (characters: number) => void;
  readonly log: Log;
}

/** Names of one stream, altogether. */
const MAX_NAME_BYTES = 256 * 1024;
const MAX_LOGGED_CHARACTERS = 1024;
/** What is larger is sent in parts: clients take no message above 4 MiB. */
const MAX_RESPONSE_BYTES = 512 * 1024;
const WILDCARD = "*";

/** `StreamSecrets`: each response has everything that was asked for. */
export class WorldSubscription implements Subscription<DiscoveryRequest__Output, DiscoveryResponse> {
  readonly #options: SubscriptionOptions;
  #secrets: Secrets | undefined;
  #names: ReadonlySet<string> | undefined;
  #spiffeValidator: boolean;
  #version = 0;
  #nonce = "";
  #sent: readonly SecretResource[] = [];

  constructor(options: SubscriptionOptions) {
    this.#options = options;
    this.#spiffeValidator = validatorOf(undefined, options);
  }

  request(request: DiscoveryRequest__Output): readonly DiscoveryResponse[] {
    const { log } = this.#options;
    const { version_info, response_nonce, error_detail } = request;
    const names = namesOf(request.resource_names);
    log.debug("Received StreamSecrets request", { ...named(names), version_info, nonce: response_nonce });
    checkType(request.type_url);
    logRejection(log, error_detail, names);
    if (this.#nonce !== "") {
      if (response_nonce !== this.#nonce) {
        log.warn("Received unexpected nonce; ignoring request", { nonce: response_nonce, expect: this.#nonce });
        return [];
      }
      if (version_info !== this.#versionInfo)
        log.error("Client rejected expected version and rolled back", { version_info, expect: this.#versionInfo });
    }
    if (request.node !== null) this.#spiffeValidator = validatorOf(request.node, this.#options);
    this.#options.keep(charactersOf(names));
    const isNew = this.#names === undefined || !sameNames(names, this.#names);
    this.#names = names;
    return isNew && this.#secrets !== undefined ? [this.#respond(this.#collect(this.#secrets, names))] : [];
  }

  update(secrets: Secrets): readonly DiscoveryResponse[] {
    const isFirst = this.#secrets === undefined;
    this.#secrets = secrets;
    if (this.#names === undefined) {
      this.#version += 1;
      return [];
    }
    const found = this.#collect(secrets, this.#names);
    if (!isFirst && sameResources(found, this.#sent)) return [];
    this.#version += 1;
    return [this.#respond(found)];
  }

  get #versionInfo(): string {
    return String(this.#version);
  }

  #collect(secrets: Secrets, names: ReadonlySet<string>): readonly SecretResource[] {
    return collect(secrets, names, this.#spiffeValidator);
  }

  #respond(found: readonly SecretResource[]): DiscoveryResponse {
    this.#sent = found;
    this.#nonce = nextNonce();
    const fields = { version_info: this.#versionInfo, nonce: this.#nonce };
    this.#options.log.debug("Sending StreamSecrets response", { ...fields, count: found.length });
    return { ...fields, type_url: SECRET_TYPE, resources: found.map(({ resource }) => resource) };
  }
}

/** `DeltaSecrets`: each response has what changed, and the names of what is there no more. */
export class DeltaSubscription implements Subscription<DeltaDiscoveryRequest__Output, DeltaDiscoveryResponse> {
  readonly #options: SubscriptionOptions;
  #secrets: Secrets | undefined;
  #names: ReadonlySet<string> = new Set();
  #wildcard = false;
  #isFirst = true;
  #spiffeValidator: boolean;
  #version = 0;
  #lastNonce = "";
  /** Versions that the client has, or has been sent; undefined for a name that it was told not to exist. */
  readonly #known = new Map<string, string | undefined>();

  constructor(options: SubscriptionOptions) {
    this.#options = options;
    this.#spiffeValidator = validatorOf(undefined, options);
  }

  request(request: DeltaDiscoveryRequest__Output): readonly DeltaDiscoveryResponse[] {
    const { log } = this.#options;
    const { response_nonce, error_detail, resource_names_subscribe, resource_names_unsubscribe } = request;
    log.debug("Received DeltaSecrets request", {
      ...named(resource_names_subscribe),
      unsubscribed: namesText(resource_names_unsubscribe),
      nonce: response_nonce,
    });
    checkType(request.type_url);
    logRejection(log, error_detail, this.#names);
    if (response_nonce !== "" && response_nonce !== this.#lastNonce)
      log.debug("Received the answer to an earlier response", { nonce: response_nonce, expect: this.#lastNonce });
    if (request.node !== null) this.#spiffeValidator = validatorOf(request.node, this.#options);
    this.#subscribe(request);
    return this.#secrets === undefined ? [] : this.#changes(this.#secrets);
  }

  update(secrets: Secrets): readonly DeltaDiscoveryResponse[] {
    this.#secrets = secrets;
    this.#version += 1;
    return this.#isFirst ? [] : this.#changes(secrets);
  }

  /** A name that is asked for again is sent again. */
  #subscribe(request: DeltaDiscoveryRequest__Output): void {
    const wanted = request.resource_names_subscribe.filter((name) => name !== "");
    const unwanted = new Set(request.resource_names_unsubscribe);
    if (wanted.includes(WILDCARD) || (this.#isFirst && wanted.length === 0)) this.#wildcard = true;
    if (unwanted.has(WILDCARD)) this.#wildcard = false;
    const named = wanted.filter((name) => name !== WILDCARD);
    for (const name of [...named, ...unwanted]) this.#known.delete(name);
    this.#names = namesOf([...[...this.#names].filter((name) => !unwanted.has(name)), ...named]);
    const had = this.#isFirst ? Object.entries(request.initial_resource_versions) : [];
    this.#options.keep(charactersOf(this.#names) + charactersOf(namesOf(had.flat())));
    for (const [name, version] of had) this.#known.set(name, version);
    this.#isFirst = false;
  }

  #changes(secrets: Secrets): readonly DeltaDiscoveryResponse[] {
    const wanted = new Set([...this.#names, ...(this.#wildcard ? secrets.allNames() : [])]);
    const changed: SecretResource[] = [];
    const removed: string[] = [];
    for (const name of wanted) {
      const found = secrets.find(name, this.#spiffeValidator);
      if (this.#known.has(name) && this.#known.get(name) === found?.version) continue;
      this.#known.set(name, found?.version);
      if (found === undefined) removed.push(name);
      else changed.push(found);
    }
    for (const name of [...this.#known.keys()].filter((each) => !wanted.has(each))) {
      if (this.#known.get(name) !== undefined && this.#wildcard) removed.push(name);
      this.#known.delete(name);
    }
    if (removed.length > 0) this.#options.log.warn("Secrets are not available to the workload", named(removed));
    return this.#respond(changed, removed);
  }

  #respond(changed: readonly SecretResource[], removed: readonly string[]): readonly DeltaDiscoveryResponse[] {
    if (changed.length + removed.length === 0) return [];
    const parts = inParts(changed);
    return parts.map((part, at) => {
      this.#lastNonce = nextNonce();
      const fields = { nonce: this.#lastNonce, system_version_info: String(this.#version) };
      this.#options.log.debug("Sending DeltaSecrets response", { ...fields, count: part.length });
      const removed_resources = at === parts.length - 1 ? [...removed] : [];
      return { ...fields, type_url: SECRET_TYPE, resources: part, removed_resources };
    });
  }
}

/** The resources of these names; of all when there are none. Throws `invalid` when one is not the caller's to have. */
export function collect(
  secrets: Secrets,
  names: ReadonlySet<string>,
  spiffeValidator: boolean,
): readonly SecretResource[] {
  const wanted = names.size === 0 ? secrets.allNames() : names;
  const found = [...wanted].map((name) => [name, secrets.find(name, spiffeValidator)] as const);
  const missing = found.filter(([, resource]) => resource === undefined).map(([name]) => JSON.stringify(name));
  if (missing.length === 0) return found.flatMap(([, resource]) => resource ?? []);
  const list = missing.sort().join(" ");
  throw new Fault("invalid", `workload is not authorized for the requested identities [${list}]`, {
    code: "sds-not-authorized",
    hint: "create entries that give these identities to the workload, or that federate with these trust domains",
  });
}

/** The names in a request. Throws `invalid` for more than any proxy needs. */
export function namesOf(names: readonly string[]): ReadonlySet<string> {
  const distinct = new Set(names.filter((name) => name !== ""));
  if (charactersOf(distinct) <= MAX_NAME_BYTES) return distinct;
  throw new Fault("invalid", `the names of the requested secrets take more than ${MAX_NAME_BYTES} bytes`, {
    code: "sds-too-many-names",
    hint: "ask for fewer secrets on one stream, or for all of them by naming none",
  });
}

function charactersOf(names: ReadonlySet<string>): number {
  return [...names].reduce((sum, name) => sum + name.length, 0);
}

/** Of what an Envoy says of itself this alone is kept. */
function validatorOf(node: Node__Output | undefined, options: SubscriptionOptions): boolean {
  return usesSpiffeValidator(node, options.disableSpiffeCertValidation);
}

/** Throws `invalid` for another type than secrets. None at all is taken as that type. */
export function checkType(typeUrl: string): void {
  if (typeUrl === "" || typeUrl === SECRET_TYPE) return;
  throw new Fault("invalid", `resources of type ${JSON.stringify(typeUrl)} are not served`, {
    code: "sds-type-unknown",
    hint: `ask for ${SECRET_TYPE}`,
  });
}

function logRejection(log: Log, detail: Status__Output | null, names: Iterable<string>): void {
  if (detail === null) return;
  const error = detail.message.slice(0, MAX_LOGGED_CHARACTERS);
  log.error("Envoy reported errors applying secrets", { ...named(names), error });
}

function named(names: Iterable<string>): { readonly resource_names: string } {
  return { resource_names: namesText(names) };
}

function namesText(names: Iterable<string>): string {
  return [...names].join(",").slice(0, MAX_LOGGED_CHARACTERS);
}

function sameNames(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  return a.size === b.size && a.isSubsetOf(b);
}

function sameResources(a: readonly SecretResource[], b: readonly SecretResource[]): boolean {
  return a.length === b.length && a.every(({ name, version }, at) => name === b[at]?.name && version === b[at].version);
}

/** At least one part, also of nothing. */
function inParts(resources: readonly SecretResource[]): SecretResource[][] {
  const parts: SecretResource[][] = [[]];
  let bytes = 0;
  for (const each of resources) {
    bytes += each.resource.value.length;
    if (bytes > MAX_RESPONSE_BYTES && parts.at(-1)?.length !== 0) {
      parts.push([]);
      bytes = each.resource.value.length;
    }
    parts.at(-1)?.push(each);
  }
  return parts;
}

function nextNonce(): string {
  return randomBytes(4).toString("hex");
}
