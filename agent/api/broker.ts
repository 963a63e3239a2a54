import type { Call } from "../../src/rpc/caller.ts";
import type { FetchJWTSVIDRequest__Output } from "../../src/rpc/gen/spiffe/broker/FetchJWTSVIDRequest.ts";
import type { FetchJWTSVIDResponse } from "../../src/rpc/gen/spiffe/broker/FetchJWTSVIDResponse.ts";
import type { SubscribeToX509SVIDResponse } from "../../src/rpc/gen/spiffe/broker/SubscribeToX509SVIDResponse.ts";
import type { WorkloadReference__Output } from "../../src/rpc/gen/spiffe/broker/WorkloadReference.ts";
import { BrokerApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, serverStream, service, unary } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { followerOf } from "../../src/runtime/task.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import type { Entitlement } from "../cache/entries.ts";
import type { WorkloadUpdate } from "../cache/update.ts";
import type { ReferencedWorkload } from "../workload/references.ts";
import { type IdentityFeed, notReady } from "./attested-call.ts";
import { authorizeReference, type BrokerCaller } from "./broker-caller.ts";
import { notEntitled, resolutionFailed } from "./broker-errors.ts";
import { type ReferenceResolvers, readReference } from "./broker-reference.ts";
import type { EntitlementFeed } from "./jwt.ts";
import { jwtBundleMap, sharedByBundles } from "./jwt-answers.ts";
import { audienceOf, fetchToken, type JwtTokens } from "./jwt-tokens.ts";
import { ordinaryEntitlement, ordinaryUpdate } from "./ordinary.ts";
import { changedAnswers, shared } from "./shared-answers.ts";
import { x509Bundles, x509SvidAnswer } from "./x509-answers.ts";

export interface BrokerApiOptions {
  readonly identities: IdentityFeed & EntitlementFeed;
  readonly jwtTokens: JwtTokens;
  readonly resolvers: ReferenceResolvers;
  /** As the Workload API's: asks the server once more when nothing is held for these selectors. */
  readonly pull?: ((selectors: readonly Selector[], signal: AbortSignal) => Promise<void>) | undefined;
}

type BrokerCall = Call<BrokerCaller>;

/**
 * The SPIFFE Broker API: what a referenced workload would get from the Workload API, for a broker that serves it, and
 * for no longer than it lives. Never identities that may act on the server (T-W7).
 */
export function brokerApi(options: BrokerApiOptions): ServiceImplementation<BrokerCaller> {
  return service<NonNullable<(typeof BrokerApi)["types"]>, BrokerCaller>(BrokerApi, {
    SubscribeToX509SVID: serverStream(({ reference }, call) => x509Svids(options, reference, call)),
    SubscribeToX509Bundles: serverStream(({ reference }, call) =>
      entitledAnswers(options, { reference, call }, x509BundlesOf),
    ),
    FetchJWTSVID: unary((request, call) => fetchJwtSvids(options, request, call)),
    SubscribeToJWTBundles: serverStream(({ reference }, call) =>
      entitledAnswers(options, { reference, call }, jwtBundlesOf),
    ),
  });
}

const x509SvidsOf = shared((update: WorkloadUpdate) => x509SvidAnswer(ordinaryUpdate(update)));
const x509BundlesOf = sharedByBundles((bundles) => ({ bundles: x509Bundles(bundles) }));
const jwtBundlesOf = sharedByBundles((bundles) => ({ bundles: jwtBundleMap(bundles) }));

async function* x509Svids(
  options: BrokerApiOptions,
  reference: WorkloadReference__Output | null,
  call: BrokerCall,
): AsyncGenerator<SubscribeToX509SVIDResponse, void, undefined> {
  await using target = await Target.open(options, reference, call);
  yield* changedAnswers({
    updates: options.identities.subscribe(target.selectors, target.life),
    compose: (update) => {
      target.entitlement();
      return x509SvidsOf(update);
    },
    check: async (_, { svids = [] }) => {
      await target.verify();
      call.auth.log.debug("Fetched X.509 SVID for broker", { count: svids.length });
    },
  });
}

async function* entitledAnswers<T extends object>(
  options: BrokerApiOptions,
  { reference, call }: { readonly reference: WorkloadReference__Output | null; readonly call: BrokerCall },
  compose: (entitlement: Entitlement) => T,
): AsyncGenerator<T, void, undefined> {
  await using target = await Target.open(options, reference, call);
  yield* changedAnswers({
    updates: options.identities.changes.watch(target.life),
    compose: () => compose(target.entitlement()),
    check: () => target.verify(),
  });
}

async function fetchJwtSvids(
  options: BrokerApiOptions,
  request: FetchJWTSVIDRequest__Output,
  call: BrokerCall,
): Promise<FetchJWTSVIDResponse> {
  const audience = audienceOf(request.audience, call.auth.log);
  await using target = await Target.open(options, request.reference, call);
  const wanted = request.spiffe_id;
  const entries = target.entitlement().entries.filter(({ spiffeId }) => wanted === "" || spiffeId === wanted);
  if (entries.length === 0) throw notEntitled();
  const svids = await Promise.all(
    entries.map(async (entry) => {
      const { token } = await fetchToken(options.jwtTokens, { entry, audience }, call);
      return { spiffe_id: entry.spiffeId, svid: token, hint: entry.hint };
    }),
  );
  await target.verify();
  return { svids };
}

/** The workload behind a reference, for as long as it and the call last: the call ends when it does. */
class Target implements AsyncDisposable {
  readonly #options: BrokerApiOptions;
  readonly #call: BrokerCall;
  readonly #workload: ReferencedWorkload;
  readonly #life: AbortController;

  private constructor(options: BrokerApiOptions, call: BrokerCall, workload: ReferencedWorkload) {
    this.#options = options;
    this.#call = call;
    this.#workload = workload;
    this.#life = followerOf(call.signal);
  }

  /** The reference is looked at before anything else is done for the request (BRK-49). */
  static async open(
    options: BrokerApiOptions,
    message: WorkloadReference__Output | null,
    call: BrokerCall,
  ): Promise<Target> {
    const { resolvers, identities, pull } = options;
    const reference = readReference(message, resolvers);
    authorizeReference(call.auth, reference.type);
    if (!identities.ready.value) throw notReady();
    const asking = { broker: call.auth.id, signal: call.signal };
    const workload = await reference.open(asking).catch((error) => failed(call, error));
    await using scope = new AsyncDisposableStack();
    const target = scope.use(new Target(options, call, workload));
    await pull?.(workload.selectors, call.signal);
    scope.move();
    void target.#watch();
    return target;
  }

  get selectors(): readonly Selector[] {
    return this.#workload.selectors;
  }

  /** Aborted when the call ends, or the work on it does. */
  get life(): AbortSignal {
    return this.#life.signal;
  }

  /** Throws `denied` when there is nothing that the workload may have. */
  entitlement(): Entitlement {
    const ordinary = ordinaryEntitlement(this.#options.identities.entitlement(this.selectors));
    if (ordinary.entries.length === 0) throw notEntitled();
    return ordinary;
  }

  /** Throws `not_found` once the workload is gone. */
  async verify(): Promise<void> {
    await this.#workload.verify().catch((error) => failed(this.#call, error));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#life.abort();
    this.#workload[Symbol.dispose]();
  }

  async #watch(): Promise<void> {
    try {
      const error = await this.#workload.ended(this.life);
      this.#call.abort(resolutionFailed(error));
    } catch {
      // The call has ended first.
    }
  }
}

function failed(call: BrokerCall, error: unknown): never {
  if (call.signal.aborted) throw Fault.from(call.signal.reason);
  call.auth.log.error("Workload attestation failed", { error: Fault.from(error).message });
  throw resolutionFailed(error);
}
