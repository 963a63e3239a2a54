import { isDeepStrictEqual } from "node:util";
import type { Call } from "../../src/rpc/caller.ts";
import type { X509BundlesResponse } from "../../src/rpc/gen/X509BundlesResponse.ts";
import type { X509SVIDResponse } from "../../src/rpc/gen/X509SVIDResponse.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, serverStream, service, unary } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { formatSelector, type Selector } from "../../src/spiffe/selector.ts";
import type { WorkloadUpdate } from "../cache/update.ts";
import type { LocalCaller } from "./caller.ts";
import { x509BundlesAnswer, x509SvidAnswer } from "./x509-answers.ts";

/** What the Workload API asks of attestation. */
interface CallerAttestor {
  /** Never empty. Throws when nothing is known of the caller. */
  attest(peer: PeerProcess, signal: AbortSignal): Promise<readonly Selector[]>;
  /** Throws when the process is no longer the one that connected. */
  verify(peer: PeerProcess): Promise<void>;
}

/** What the Workload API asks of the cache: the full state at once, and again after each change. */
interface IdentityFeed {
  /** False while nobody's entitlement is known. */
  readonly ready: { readonly value: boolean };
  subscribe(selectors: readonly Selector[], signal: AbortSignal): AsyncIterable<WorkloadUpdate>;
}

export interface WorkloadApiOptions {
  readonly attestor: CallerAttestor;
  readonly identities: IdentityFeed;
  /** Gives the own trust domain's bundles to callers without an identity. */
  readonly allowUnauthenticatedVerifiers: boolean;
  /** Selectors equal to one of these, or below it, may appear in the log. */
  readonly logSelectors: readonly string[];
  readonly clock: Clock;
}

/** The SPIFFE Workload API. Each stream is attested once, when it opens. */
export function workloadApi(options: WorkloadApiOptions): ServiceImplementation<LocalCaller> {
  const svids = shared(x509SvidAnswer);
  const bundles = shared(x509BundlesAnswer);
  return service<NonNullable<(typeof WorkloadApi)["types"]>, LocalCaller>(WorkloadApi, {
    FetchX509SVID: serverStream((_request, call) => new X509Stream(options, call).svids(svids)),
    FetchX509Bundles: serverStream((_request, call) => new X509Stream(options, call).bundles(bundles)),
    FetchJWTSVID: unary(() => absent("fetching JWT-SVIDs")),
    FetchJWTBundles: serverStream(() => absentStream("fetching JWT bundles")),
    ValidateJWTSVID: unary(() => absent("validating JWT-SVIDs")),
    FetchWITSVID: serverStream(() => absentStream("fetching WIT-SVIDs")),
    FetchWITBundles: serverStream(() => absentStream("fetching WIT bundles")),
  });
}

type Compose<T> = (update: WorkloadUpdate) => T | undefined;

/** Subscribers with the same selectors get the same update, and so the same answer. */
function shared<T extends object>(compose: Compose<T>): Compose<T> {
  const answers = new WeakMap<WorkloadUpdate, { readonly answer: T | undefined }>();
  return (update) => {
    const held = answers.get(update) ?? { answer: compose(update) };
    answers.set(update, held);
    return held.answer;
  };
}

/** One open stream of one caller. */
class X509Stream {
  readonly #options: WorkloadApiOptions;
  readonly #call: Call<LocalCaller>;

  constructor(options: WorkloadApiOptions, call: Call<LocalCaller>) {
    this.#options = options;
    this.#call = call;
  }

  async *svids(compose: Compose<X509SVIDResponse>): AsyncGenerator<X509SVIDResponse, void, undefined> {
    for await (const { update, answer } of this.#answers(compose, false)) {
      this.#logIssued(update);
      yield answer;
    }
  }

  async *bundles(compose: Compose<X509BundlesResponse>): AsyncGenerator<X509BundlesResponse, void, undefined> {
    for await (const { answer } of this.#answers(compose, this.#options.allowUnauthenticatedVerifiers)) yield answer;
  }

  /** Every answer that differs from the one before. Ends with `denied` when the caller has, or keeps, no identity. */
  async *#answers<T>(compose: Compose<T>, toAnyone: boolean) {
    if (!this.#options.identities.ready.value) throw notReady();
    const selectors = await this.#attest();
    let last: T | undefined;
    for await (const update of this.#options.identities.subscribe(selectors, this.#call.signal)) {
      if (!update.entitled && !toAnyone) throw this.#noIdentity(selectors);
      const answer = compose(update);
      if (answer === undefined || isDeepStrictEqual(answer, last)) continue;
      await this.#verifyAgain();
      last = answer;
      yield { update, answer };
    }
  }

  async #attest(): Promise<readonly Selector[]> {
    const { process, log, isAgent } = this.#call.auth;
    try {
      const selectors = await this.#options.attestor.attest(process, this.#call.signal);
      if (!isAgent) log.debug("PID attested to have selectors", this.#loggable(selectors));
      return selectors;
    } catch (error) {
      throw this.#attestationFailed(error);
    }
  }

  /** Keys go to the process that was attested, not to whoever holds its socket by now. T-W1. */
  async #verifyAgain(): Promise<void> {
    try {
      await this.#options.attestor.verify(this.#call.auth.process);
    } catch (error) {
      throw this.#attestationFailed(error);
    }
  }

  #attestationFailed(error: unknown): Fault {
    if (this.#call.signal.aborted) return Fault.from(this.#call.signal.reason);
    this.#call.auth.log.error("Workload attestation failed", { error: Fault.from(error).message });
    return new Fault("unavailable", "workload attestation failed", {
      code: "workload-attestation-failed",
      cause: error,
    });
  }

  #noIdentity(selectors: readonly Selector[]): Fault {
    const { log, isAgent } = this.#call.auth;
    if (!isAgent) log.error("No identity issued", { registered: false, ...this.#loggable(selectors) });
    return new Fault("denied", "no identity issued", {
      code: "no-identity-issued",
      hint: "create a registration entry whose selectors this process has, below this agent",
    });
  }

  #logIssued(update: WorkloadUpdate): void {
    const { log, isAgent } = this.#call.auth;
    if (isAgent) return;
    const now = this.#options.clock.now().getTime();
    const common = { registered: true, count: update.identities.length };
    for (const { entry, expiresAt } of update.identities) {
      const ttl = (expiresAt.getTime() - now) / 1000;
      log.debug("Fetched X.509 SVID", { ...common, spiffe_id: entry.spiffeId, ttl });
    }
  }

  #loggable(selectors: readonly Selector[]): { readonly selectors?: string } {
    const permitted = selectors
      .map(formatSelector)
      .filter((text) => this.#options.logSelectors.some((prefix) => text === prefix || text.startsWith(`${prefix}:`)));
    return permitted.length === 0 ? {} : { selectors: permitted.join(",") };
  }
}

/** SPIFFE Workload Endpoint, section 6. */
function notReady(): Fault {
  return new Fault("unavailable", "the agent has not received its entries from the server yet", {
    code: "agent-not-ready",
    hint: "ask again in a moment; the log of the agent says what it is waiting for",
  });
}

async function absent(what: string): Promise<never> {
  throw new Fault("unimplemented", `${what} is not implemented`, { code: "profile-not-offered" });
}

// biome-ignore lint/correctness/useYield: a stream that ends before its first message
async function* absentStream(what: string): AsyncGenerator<never, void, undefined> {
  await absent(what);
}
