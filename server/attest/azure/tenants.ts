import * as v from "valibot";
import { type AzureCloud, issuersOf } from "../../../src/evidence/azure-cloud.ts";
import { uuid } from "../../../src/evidence/azure-imds.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";

const Discovery = v.object({ issuer: v.string() });

/** IDs of tenants by their domains, as the cloud says; they stay. */
export class AzureTenants {
  readonly #http: HttpCaller;
  readonly #cloud: AzureCloud;
  readonly #ids = new Map<string, Promise<string>>();

  constructor(http: HttpCaller, cloud: AzureCloud) {
    this.#http = http;
    this.#cloud = cloud;
  }

  /** Throws `unavailable`. The domain is one of the configuration. */
  async idOf(domain: string): Promise<string> {
    if (v.is(uuid, domain)) return domain;
    const id = this.#ids.get(domain) ?? this.#look(domain);
    this.#ids.set(domain, id);
    try {
      return await id;
    } catch (error) {
      this.#ids.delete(domain);
      throw error;
    }
  }

  async #look(domain: string): Promise<string> {
    const url = new URL(`/${encodeURIComponent(domain)}/.well-known/openid-configuration`, this.#cloud.authority);
    const { issuer } = await this.#http.json(Discovery, { url }, new AbortController().signal);
    const id = /^https:\/\/[^/]+\/([0-9a-fA-F-]{36})\//.exec(issuer)?.[1];
    if (v.is(uuid, id) && issuersOf(this.#cloud, id).includes(issuer)) return id;
    throw this.#http.fault(`tenant "${domain}" has an issuer of another form`);
  }
}
