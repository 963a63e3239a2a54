import { type KeyObject, X509Certificate } from "node:crypto";
import * as v from "valibot";
import { checkPublicKey } from "../../../src/crypto/public-key.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";

/** Certificates by key ID. Google's own tokens alone are signed by them; keys of customers stand elsewhere. */
const GOOGLE_CERTIFICATES = new URL("https://www.googleapis.com/oauth2/v1/certs");
const LEAST_MS = 60_000;
const MOST_MS = 24 * 3_600_000;

/** The keys that Google signs identity tokens with, as long as it says; for an unknown key they are read again. */
export class GoogleKeys {
  readonly #http: HttpCaller;
  readonly #clock: Clock;
  #keys: ReadonlyMap<string, KeyObject> = new Map();
  #until = Number.NEGATIVE_INFINITY;
  #read = Number.NEGATIVE_INFINITY;
  #flight: Promise<void> | undefined;

  constructor(http: HttpCaller, clock: Clock) {
    this.#http = http;
    this.#clock = clock;
  }

  /** Undefined when Google has no such key. Throws `unavailable` when it does not say. */
  async find(id: string): Promise<KeyObject | undefined> {
    const now = this.#clock.monotonic();
    const isUnknown = !this.#keys.has(id) && now - this.#read >= LEAST_MS;
    if (now >= this.#until || isUnknown) {
      this.#flight ??= this.#refresh().finally(() => {
        this.#flight = undefined;
      });
      await this.#flight;
    }
    return this.#keys.get(id);
  }

  async #refresh(): Promise<void> {
    const { host } = GOOGLE_CERTIFICATES;
    const answer = await this.#http.call({ url: GOOGLE_CERTIFICATES }, new AbortController().signal);
    if (answer.status !== 200) throw this.#http.fault(`${host} answered with status ${answer.status}`);
    const certificates = this.#http.read(v.record(v.string(), v.string()), answer.body, host);
    const now = this.#clock.now();
    this.#keys = new Map(
      Object.entries(certificates).flatMap(([id, pem]) => {
        const key = keyOf(pem, now);
        return key === undefined ? [] : [[id, key] as const];
      }),
    );
    const expires = new Date(answer.headers.expires ?? "").getTime() - now.getTime();
    this.#read = this.#clock.monotonic();
    this.#until = this.#read + Math.min(MOST_MS, Math.max(LEAST_MS, Number.isNaN(expires) ? 0 : expires));
  }
}

/** Undefined for what is no certificate of these days with a sound key. */
function keyOf(pem: string, at: Date): KeyObject | undefined {
  try {
    const { publicKey, validFrom, validTo } = new X509Certificate(pem);
    if (at < new Date(validFrom) || at > new Date(validTo)) return undefined;
    return checkPublicKey(publicKey.export({ type: "spki", format: "der" }));
  } catch {
    return undefined;
  }
}
