import { createHash } from "node:crypto";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Metrics } from "../../src/runtime/metrics.ts";
import { formatSelector, type Selector } from "../../src/spiffe/selector.ts";

/** The keys of `experimental.ratelimit`, and the methods that they are for. */
export const LIMITED_METHODS = {
  fetch_x509_svid: "/SpiffeWorkloadAPI/FetchX509SVID",
  fetch_jwt_svid: "/SpiffeWorkloadAPI/FetchJWTSVID",
  fetch_x509_bundles: "/SpiffeWorkloadAPI/FetchX509Bundles",
  fetch_jwt_bundles: "/SpiffeWorkloadAPI/FetchJWTBundles",
  stream_secrets: "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
  fetch_secrets: "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
} as const;

/** Calls per second, and at once, of callers with the same selectors; 0 is no limit. */
export type RateLimits = Readonly<Record<keyof typeof LIMITED_METHODS, number>>;

interface Bucket {
  tokens: number;
  filledAt: number;
}

/** A bucket is full again after this long, whatever its rate: then it need not be remembered. */
const FULL_AFTER_MS = 1_000;
const MANY = 1_024;

/** Token buckets by method and set of selectors. */
export class CallRates {
  readonly #clock: Clock;
  readonly #limits: ReadonlyMap<string, number>;
  readonly #buckets = new Map<string, Bucket>();

  constructor(clock: Clock, limits: RateLimits) {
    this.#clock = clock;
    const methods = Object.entries(LIMITED_METHODS) as [keyof RateLimits, string][];
    this.#limits = new Map(methods.flatMap(([key, method]) => (limits[key] > 0 ? [[method, limits[key]]] : [])));
  }

  /** Those that are limited. */
  get limits(): ReadonlyMap<string, number> {
    return this.#limits;
  }

  /** Throws `unavailable` for a call too many. */
  take(method: string, selectors: readonly Selector[], metrics: Metrics): void {
    const limit = this.#limits.get(method);
    if (limit === undefined) return;
    const bucket = this.#bucket(`${method} ${keyOf(selectors)}`, limit);
    if (bucket.tokens >= 1) {
      bucket.tokens -= 1;
      return;
    }
    metrics.increment("workload_api.rate_limit_exceeded", { method });
    throw new Fault("unavailable", `rate limit exceeded for ${method}`, {
      code: "rate-limit",
      hint: `workloads like this one may call it ${limit} times a second`,
    });
  }

  #bucket(key: string, limit: number): Bucket {
    const now = this.#clock.monotonic();
    if (this.#buckets.size >= MANY) this.#forget(now);
    const bucket = this.#buckets.get(key) ?? { tokens: limit, filledAt: now };
    this.#buckets.set(key, bucket);
    bucket.tokens = Math.min(limit, bucket.tokens + ((now - bucket.filledAt) / 1000) * limit);
    bucket.filledAt = now;
    return bucket;
  }

  #forget(now: number): void {
    for (const [key, { filledAt }] of this.#buckets) if (now - filledAt >= FULL_AFTER_MS) this.#buckets.delete(key);
  }
}

function keyOf(selectors: readonly Selector[]): string {
  const texts = selectors.map(formatSelector).sort();
  return createHash("sha256").update(JSON.stringify(texts)).digest("base64");
}
