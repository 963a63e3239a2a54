import type { FetchJWTSVIDsRequest__Output } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/FetchJWTSVIDsRequest.ts";
import type { FetchJWTSVIDsResponse } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/FetchJWTSVIDsResponse.ts";
import type { SubscribeToX509SVIDsRequest__Output } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsRequest.ts";
import type { SubscribeToX509SVIDsResponse } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsResponse.ts";
import { DelegatedIdentityApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, serverStream, service, unary } from "../../src/rpc/service.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { trustDomainId } from "../../src/spiffe/id.ts";
import type { TrustBundles, WorkloadUpdate } from "../cache/update.ts";
import type { LocalCaller } from "./caller.ts";
import { Delegate, type DelegateCall, type DelegatedIdentityOptions, DelegatedTarget, noIdentity } from "./delegate.ts";
import { jwtSvid, sizeOf, svidWithKey } from "./delegated-answers.ts";
import { jwtBundleMap } from "./jwt-answers.ts";
import { audienceOf, fetchToken } from "./jwt-tokens.ts";
import { ordinaryEntitlement, ordinaryUpdate } from "./ordinary.ts";
import { type Compose, changedAnswers, shared } from "./shared-answers.ts";
import { x509Bundles } from "./x509-answers.ts";

/** What a gRPC client takes in one message unless it is told to take more. */
const USUAL_MESSAGE_BYTES = 4 * 1024 * 1024;

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
  await using target = await DelegatedTarget.open(options, request, call);
  const { log } = call.auth;
  let isTold = false;
  yield* changedAnswers({
    updates: options.identities.subscribe(target.selectors, target.life),
    compose,
    check: async ({ identities }, { x509_svids = [] }) => {
      await target.check();
      const count = x509_svids.length;
      const bytes = isTold ? 0 : identities.reduce((sum, each) => sum + sizeOf(each), 0);
      if (bytes > USUAL_MESSAGE_BYTES) {
        isTold = true;
        log.warn("X.509 SVIDs for delegated identity are more than gRPC clients take by default", { count, bytes });
      }
      target.sending(count);
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
  await using target = await DelegatedTarget.open(options, request, call);
  const { entries } = ordinaryEntitlement(options.identities.entitlement(target.selectors));
  const svids = await Promise.all(
    entries.map(async (entry) => jwtSvid(entry, await fetchToken(options.jwtTokens, { entry, audience }, call))),
  );
  if (svids.length === 0) throw noIdentity(call);
  await target.check();
  return { svids };
}

/**
 * One message, however large: clients of SPIRE take each for the whole state, so it cannot be split, and those with many
 * identities have raised their limit. For the others there is the service that sends parts.
 */
function svidsAnswer(update: WorkloadUpdate): SubscribeToX509SVIDsResponse {
  const { identities, federatedBundles } = ordinaryUpdate(update);
  return {
    x509_svids: identities.map(svidWithKey),
    federates_with: [...federatedBundles.keys()].map(trustDomainId),
  };
}

function all({ own, federated }: TrustBundles): readonly Bundle[] {
  return [own, ...federated.values()];
}
