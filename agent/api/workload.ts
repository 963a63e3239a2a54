import type { Call } from "../../src/rpc/caller.ts";
import type { X509BundlesResponse } from "../../src/rpc/gen/X509BundlesResponse.ts";
import type { X509SVIDResponse } from "../../src/rpc/gen/X509SVIDResponse.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, serverStream, service, unary } from "../../src/rpc/service.ts";
import type { WorkloadUpdate } from "../cache/update.ts";
import { AttestedCall, type IdentityFeed, notReady } from "./attested-call.ts";
import type { LocalCaller } from "./caller.ts";
import { type EntitlementFeed, fetchJwtBundles, fetchJwtSvid, validateJwt } from "./jwt.ts";
import { type Compose, changedAnswers, shared } from "./shared-answers.ts";
import { fetchWitBundles, fetchWitSvid, type WitApiOptions } from "./wit.ts";
import { x509BundlesAnswer, x509SvidAnswer } from "./x509-answers.ts";

export interface WorkloadApiOptions extends WitApiOptions {
  readonly identities: IdentityFeed & EntitlementFeed;
}

/** The SPIFFE Workload API. Each stream is attested once, when it opens. */
export function workloadApi(options: WorkloadApiOptions): ServiceImplementation<LocalCaller> {
  const svids = shared(x509SvidAnswer);
  const bundles = shared(x509BundlesAnswer);
  return service<NonNullable<(typeof WorkloadApi)["types"]>, LocalCaller>(WorkloadApi, {
    FetchX509SVID: serverStream((_request, call) => new X509Stream(options, call).svids(svids)),
    FetchX509Bundles: serverStream((_request, call) => new X509Stream(options, call).bundles(bundles)),
    FetchJWTSVID: unary((request, call) => fetchJwtSvid(options, request, call)),
    FetchJWTBundles: serverStream((_request, call) => fetchJwtBundles(options, call)),
    ValidateJWTSVID: unary((request, call) => validateJwt(options, request, call)),
    FetchWITSVID: serverStream((request, call) => fetchWitSvid(options, request, call)),
    FetchWITBundles: serverStream((_request, call) => fetchWitBundles(options, call)),
  });
}

/** One open stream of one caller. */
class X509Stream {
  readonly #options: WorkloadApiOptions;
  readonly #call: Call<LocalCaller>;

  constructor(options: WorkloadApiOptions, call: Call<LocalCaller>) {
    this.#options = options;
    this.#call = call;
  }

  svids(compose: Compose<WorkloadUpdate, X509SVIDResponse>): AsyncIterable<X509SVIDResponse> {
    return this.#answers(compose, { toAnyone: false, sending: (update) => this.#logIssued(update) });
  }

  bundles(compose: Compose<WorkloadUpdate, X509BundlesResponse>): AsyncIterable<X509BundlesResponse> {
    return this.#answers(compose, { toAnyone: this.#options.allowUnauthenticatedVerifiers });
  }

  /** Ends with `denied` when the caller has, or keeps, no identity. */
  async *#answers<T extends object>(
    compose: Compose<WorkloadUpdate, T>,
    { toAnyone, sending }: { readonly toAnyone: boolean; readonly sending?: (update: WorkloadUpdate) => void },
  ): AsyncGenerator<T, void, undefined> {
    const { identities } = this.#options;
    if (!identities.ready.value) throw notReady();
    const caller = await AttestedCall.open(this.#options, this.#call);
    yield* changedAnswers({
      updates: identities.subscribe(caller.selectors, this.#call.signal),
      compose: (update) => {
        if (!update.entitled && !toAnyone) throw caller.noIdentity();
        return compose(update);
      },
      check: async (update) => {
        await caller.verifyAgain();
        sending?.(update);
      },
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
}
