import type { Call } from "../../src/rpc/caller.ts";
import { idToProto, selectorsFromProto } from "../../src/rpc/convert.ts";
import type { FetchJWTSVIDsRequest__Output } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/FetchJWTSVIDsRequest.ts";
import type { FetchJWTSVIDsResponse } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/FetchJWTSVIDsResponse.ts";
import type { SubscribeToX509SVIDsRequest__Output } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsRequest.ts";
import type { SubscribeToX509SVIDsResponse } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsResponse.ts";
import type { JWTSVID } from "../../src/rpc/gen/spire/api/types/JWTSVID.ts";
import { DelegatedIdentityApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, serverStream, service, unary } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { followerOf } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { type SpiffeId, trustDomainId } from "../../src/spiffe/id.ts";
import type { CachedEntry } from "../cache/entry.ts";
import type { HeldJwt } from "../cache/jwt.ts";
import type { TrustBundles, WorkloadUpdate, X509Identity } from "../cache/update.ts";
import type { ReferencedWorkload } from "../workload/references.ts";
import { AttestedCall, type AttestedCallOptions, type IdentityFeed, notReady } from "./attested-call.ts";
import type { LocalCaller } from "./caller.ts";
import type { EntitlementFeed } from "./jwt.ts";
import { jwtBundleMap } from "./jwt-answers.ts";
import { audienceOf, fetchToken, type JwtTokens } from "./jwt-tokens.ts";
import { ordinaryEntitlement, ordinaryUpdate } from "./ordinary.ts";
import { type Compose, changedAnswers, shared } from "./shared-answers.ts";
import { x509Bundles } from "./x509-answers.ts";

export interface DelegatedIdentityOptions extends AttestedCallOptions {
  readonly identities: IdentityFeed & EntitlementFeed & { readonly bundle: BundleFeed };
  readonly jwtTokens: JwtTokens;
  readonly processes: { open(pid: number, signal: AbortSignal): Promise<ReferencedWorkload> };
  /** Who may ask for other workloads. */
  readonly authorizedDelegates: readonly SpiffeId[];
}

interface BundleFeed {
  watch(signal: AbortSignal): AsyncIterable<TrustBundles>;
}

type DelegateCall = Call<LocalCaller>;
type Target = Pick<SubscribeToX509SVIDsRequest__Output, "selectors" | "pid">;

/**
 * SPIRE's Delegated Identity API: identities of other workloads, for callers whose own identity is one of the authorized
 * delegates. Never those that may act on the server.
 */
export function delegatedIdentityApi(options: DelegatedIdentityOptions): ServiceImplementation<LocalCaller> {
  const svids = shared(svidsAnswer);
  const x509BundlesOf = shared((bundles: TrustBundles) => ({ ca_certificates: x509Bundles(all(bundles)) }));
  const jwtBundlesOf = shared((bundles: TrustBundles) => ({ bundles: jwtBundleMap(all(bundles)) }));
  return service<NonNullable<(typeof DelegatedIdentityApi)["types"]>, LocalCaller>(DelegatedIdentityApi, {
    SubscribeToX509SVIDs: serverStream((request, call) => subscribeToSvids(options, svids, { request, call })),
    SubscribeToX509Bundles: serverStream((_request, call) => subscribeToBundles(options, call, x509BundlesOf)),
    FetchJWTSVIDs: unary((request, call) => fetchJwtSvids(options, request, call)),
    SubscribeToJWTBundles: serverStream((_request, call) => subscribeToBundles(options, call, jwtBundlesOf)),
  });
}

async function* subscribeToSvids(
  options: DelegatedIdentityOptions,
  compose: Compose<WorkloadUpdate, SubscribeToX509SVIDsResponse>,
  { request, call }: { readonly request: SubscribeToX509SVIDsRequest__Output; readonly call: DelegateCall },
): AsyncGenerator<SubscribeToX509SVIDsResponse, void, undefined> {
  await using delegate = await Delegate.open(options, call);
  using target = await openTarget(options, request, call);
  void target.ended(delegate.life).then(
    (error) => call.abort(attestationFailed(call, error)),
    () => {},
  );
  yield* changedAnswers({
    updates: options.identities.subscribe(target.selectors, delegate.life),
    compose,
    check: async (_, { x509_svids = [] }) => {
      await delegate.check();
      await verified(target, call);
      call.auth.log.debug("Fetched X.509 SVIDs for delegated identity", { count: x509_svids.length });
    },
  });
}

async function* subscribeToBundles<T extends object>(
  options: DelegatedIdentityOptions,
  call: DelegateCall,
  compose: Compose<TrustBundles, T>,
): AsyncGenerator<T, void, undefined> {
  await using delegate = await Delegate.open(options, call);
  const updates = options.identities.bundle.watch(delegate.life);
  yield* changedAnswers({ updates, compose, check: () => delegate.check() });
}

async function fetchJwtSvids(
  options: DelegatedIdentityOptions,
  request: FetchJWTSVIDsRequest__Output,
  call: DelegateCall,
): Promise<FetchJWTSVIDsResponse> {
  const audience = audienceOf(request.audience, call.auth.log);
  await using delegate = await Delegate.open(options, call);
  using target = await openTarget(options, request, call);
  const { entries } = ordinaryEntitlement(options.identities.entitlement(target.selectors));
  const svids = await Promise.all(
    entries.map(async (entry) => jwtSvid(entry, await fetchToken(options.jwtTokens, { entry, audience }, call))),
  );
  if (svids.length === 0) throw noIdentity(call);
  await delegate.check();
  await verified(target, call);
  return { svids };
}

function jwtSvid({ spiffeId, hint }: CachedEntry, { token, issuedAt, expiresAt }: HeldJwt): JWTSVID {
  return { token, id: idToProto(spiffeId), expires_at: unix(expiresAt), issued_at: unix(issuedAt), hint };
}

/** A caller that is an authorized delegate, for as long as its call lasts: the call ends when it no longer is. */
class Delegate implements AsyncDisposable {
  readonly #options: DelegatedIdentityOptions;
  readonly #call: DelegateCall;
  readonly #caller: AttestedCall;
  readonly #life: AbortController;

  private constructor(options: DelegatedIdentityOptions, call: DelegateCall, caller: AttestedCall) {
    this.#options = options;
    this.#call = call;
    this.#caller = caller;
    this.#life = followerOf(call.signal);
  }

  static async open(options: DelegatedIdentityOptions, call: DelegateCall): Promise<Delegate> {
    if (!options.identities.ready.value) throw notReady();
    const delegate = new Delegate(options, call, await AttestedCall.open(options, call));
    delegate.#authorize();
    void delegate.#watch();
    return delegate;
  }

  /** Aborted when the call ends, or the delegate's own work on it does. */
  get life(): AbortSignal {
    return this.#life.signal;
  }

  /** Throws unless it still is the process that connected, and still authorized. */
  async check(): Promise<void> {
    this.#authorize();
    await this.#caller.verifyAgain();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#life.abort();
  }

  #authorize(): void {
    const { identities, authorizedDelegates } = this.#options;
    const { entries } = identities.entitlement(this.#caller.selectors);
    if (entries.length === 0) throw noIdentity(this.#call);
    if (entries.some(({ spiffeId }) => authorizedDelegates.includes(spiffeId))) return;
    this.#call.auth.log.error("Permission denied; caller not configured as an authorized delegate.", {
      num_registered_entries: entries.length,
      default_id: entries[0]?.spiffeId,
    });
    throw new Fault("denied", "caller not configured as an authorized delegate", {
      code: "delegate-not-authorized",
      hint: "name one of the caller's SPIFFE IDs in authorized_delegates of the agent's configuration",
    });
  }

  async #watch(): Promise<void> {
    try {
      for await (const _ of this.#options.identities.changes.watch(this.life)) this.#authorize();
    } catch (error) {
      this.#call.abort(Fault.from(error));
    }
  }
}

/** Selectors are taken as the delegate gives them: it answers for them. A pid is pinned and attested. */
async function openTarget(
  { processes }: DelegatedIdentityOptions,
  { selectors, pid }: Target,
  call: DelegateCall,
): Promise<ReferencedWorkload> {
  if (selectors.length > 0 === (pid !== 0)) {
    const message = "must provide either selectors or non-zero PID, but not both";
    call.auth.log.error(`Invalid argument; ${message}`);
    throw new Fault("invalid", message, { code: "delegate-target" });
  }
  if (selectors.length === 0) return processes.open(pid, call.signal).catch((error) => failed(call, error));
  return {
    selectors: readSelectors(selectors, call),
    verify: async () => {},
    ended: () => new Promise(() => {}),
    [Symbol.dispose]: () => {},
  };
}

function readSelectors(selectors: Target["selectors"], call: DelegateCall): ReturnType<typeof selectorsFromProto> {
  try {
    return selectorsFromProto(selectors);
  } catch (cause) {
    call.auth.log.error("Invalid argument; could not parse provided selectors", { error: Fault.from(cause).message });
    throw new Fault("invalid", "could not parse provided selectors", { code: "selector-malformed", cause });
  }
}

async function verified(target: ReferencedWorkload, call: DelegateCall): Promise<void> {
  await target.verify().catch((error) => failed(call, error));
}

function failed(call: DelegateCall, error: unknown): never {
  throw attestationFailed(call, error);
}

function attestationFailed(call: DelegateCall, cause: unknown): Fault {
  if (call.signal.aborted) return Fault.from(call.signal.reason);
  call.auth.log.error("Workload attestation failed", { error: Fault.from(cause).message });
  return new Fault("unavailable", "workload attestation failed", { code: "workload-attestation-failed", cause });
}

function noIdentity(call: DelegateCall): Fault {
  call.auth.log.error("No identity issued");
  return new Fault("denied", "no identity issued", { code: "no-identity-issued" });
}

/** One message, however large: each is the whole state, so it cannot be split. */
function svidsAnswer(update: WorkloadUpdate): SubscribeToX509SVIDsResponse {
  const { identities, federatedBundles } = ordinaryUpdate(update);
  return {
    x509_svids: identities.map(svidWithKey),
    federates_with: [...federatedBundles.keys()].map(trustDomainId),
  };
}

function svidWithKey({ entry, chain, privateKey, expiresAt }: X509Identity) {
  return {
    x509_svid: {
      id: idToProto(entry.spiffeId),
      cert_chain: chain.map((der) => Buffer.from(der)),
      expires_at: unix(expiresAt),
      hint: entry.hint,
    },
    x509_svid_key: privateKey,
  };
}

function all({ own, federated }: TrustBundles): readonly Bundle[] {
  return [own, ...federated.values()];
}

function unix(time: Date): number {
  return Math.floor(time.getTime() / 1000);
}
