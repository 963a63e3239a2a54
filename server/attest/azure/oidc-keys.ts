import { createPublicKey, type KeyObject } from "node:crypto";
import * as v from "valibot";
import { checkPublicKey } from "../../../src/crypto/public-key.ts";
import type { AzureCloud } from "../../../src/evidence/azure-cloud.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";

const LEAST_MS = 60_000;
const MOST_MS = 3_600_000;
const NEVER = new AbortController().signal;

const Discovery = v.object({ jwks_uri: v.string() });
const KeySet = v.object({
  keys: v.array(
    v.looseObject({ kty: v.string(), kid: v.optional(v.string(), ""), use: v.optional(v.string(), "sig") }),
  ),
});

/** The keys that the cloud signs all tenants' tokens with, read again each hour, and for an unknown key. */
export class AzureKeys {
  readonly #http: HttpCaller;
  readonly #clock: Clock;
  readonly #cloud: AzureCloud;
  #keys: ReadonlyMap<string, KeyObject> = new Map();
  #read = Number.NEGATIVE_INFINITY;
  #flight: Promise<void> | undefined;

  constructor(http: HttpCaller, clock: Clock, cloud: AzureCloud) {
    this.#http = http;
    this.#clock = clock;
    this.#cloud = cloud;
  }

  /** Undefined when there is no such key. Throws `unavailable` when the cloud does not say. */
  async find(id: string): Promise<KeyObject | undefined> {
    const age = this.#clock.monotonic() - this.#read;
    if (age >= MOST_MS || (age >= LEAST_MS && !this.#keys.has(id))) {
      this.#flight ??= this.#refresh().finally(() => {
        this.#flight = undefined;
      });
      await this.#flight;
    }
    return this.#keys.get(id);
  }

  async #refresh(): Promise<void> {
    const { authority } = this.#cloud;
    const url = new URL("/common/.well-known/openid-configuration", authority);
    const { jwks_uri } = await this.#http.json(Discovery, { url }, NEVER);
    const where = URL.canParse(jwks_uri) ? new URL(jwks_uri) : undefined;
    // T-N9.
    if (where?.origin !== authority) throw this.#http.fault("unable to obtain JWKS: its keys are on another host");
    const { keys } = await this.#http.json(KeySet, { url: where }, NEVER);
    this.#keys = new Map(
      keys.flatMap((jwk) => {
        const key = jwk.kid === "" || jwk.use !== "sig" ? undefined : keyOf(jwk);
        return key === undefined ? [] : [[jwk.kid, key] as const];
      }),
    );
    this.#read = this.#clock.monotonic();
  }
}

function keyOf(jwk: Readonly<Record<string, unknown>>): KeyObject | undefined {
  try {
    const key = createPublicKey({ key: jwk, format: "jwk" });
    return checkPublicKey(key.export({ type: "spki", format: "der" }));
  } catch {
    return undefined;
  }
}
