import type { FetchJWTSVIDsRequest__Output } from "../../src/rpc/gen/steeple/api/agent/delegatedidentity/v1/FetchJWTSVIDsRequest.ts";
import type { FetchJWTSVIDsResponse } from "../../src/rpc/gen/steeple/api/agent/delegatedidentity/v1/FetchJWTSVIDsResponse.ts";
import type { SubscribeToX509SVIDsRequest__Output } from "../../src/rpc/gen/steeple/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsRequest.ts";
import type { SubscribeToX509SVIDsResponse } from "../../src/rpc/gen/steeple/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsResponse.ts";
import { DelegatedIdentityPartsApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, serverStream, service } from "../../src/rpc/service.ts";
import { trustDomainId } from "../../src/spiffe/id.ts";
import type { WorkloadUpdate, X509Identity } from "../cache/update.ts";
import type { LocalCaller } from "./caller.ts";
import { type DelegateCall, type DelegatedIdentityOptions, DelegatedTarget, noIdentity } from "./delegate.ts";
import { jwtSvid, sizeOf, svidWithKey } from "./delegated-answers.ts";
import { audienceOf, fetchToken } from "./jwt-tokens.ts";
import { ordinaryEntitlement, ordinaryUpdate } from "./ordinary.ts";

/** Far below what any client takes, so that a part is soon on its way. */
const PART_BYTES = 512 * 1024;
const TOKENS_AT_ONCE = 100;

/** Identities of other workloads in parts, however many they are, and then only what changes of them. */
export function delegatedPartsApi(options: DelegatedIdentityOptions): ServiceImplementation<LocalCaller> {
  return service<NonNullable<(typeof DelegatedIdentityPartsApi)["types"]>, LocalCaller>(DelegatedIdentityPartsApi, {
    SubscribeToX509SVIDs: serverStream((request, call) => subscribeToSvids(options, request, call)),
    FetchJWTSVIDs: serverStream((request, call) => fetchJwtSvids(options, request, call)),
  });
}

async function* subscribeToSvids(
  options: DelegatedIdentityOptions,
  request: SubscribeToX509SVIDsRequest__Output,
  call: DelegateCall,
): AsyncGenerator<SubscribeToX509SVIDsResponse, void, undefined> {
  await using target = await DelegatedTarget.open(options, request, call);
  const client = new ClientState();
  for await (const update of options.identities.subscribe(target.selectors, target.life)) {
    for (const part of client.become(ordinaryUpdate(update))) {
      await target.check();
      target.sending(part.changed?.length ?? 0);
      yield part;
    }
  }
}

/** What one client has been sent. */
class ClientState {
  #held: ReadonlyMap<string, X509Identity> | undefined;
  #federatesWith: readonly string[] = [];

  /** The parts that bring the client from what it holds to this; none when that is the same. */
  become({ identities, federatedBundles }: WorkloadUpdate): readonly SubscribeToX509SVIDsResponse[] {
    const isFirst = this.#held === undefined;
    const held = this.#held ?? new Map<string, X509Identity>();
    const next = new Map(identities.map((identity) => [identity.entry.id, identity]));
    const changed = identities.filter((identity) => !isSame(identity, held.get(identity.entry.id)));
    const removed = [...held.keys()].filter((id) => !next.has(id));
    const federatesWith = [...federatedBundles.keys()].map(trustDomainId);
    const isSameDomains = federatesWith.join() === this.#federatesWith.join();
    this.#held = next;
    this.#federatesWith = federatesWith;
    if (!isFirst && changed.length + removed.length === 0 && isSameDomains) return [];
    const parts = inParts(changed);
    return parts.map((part, at) =>
      at < parts.length - 1 ? { changed: part, more: true } : { changed: part, removed, federates_with: federatesWith },
    );
  }
}

function isSame(a: X509Identity, b: X509Identity | undefined): boolean {
  return a.chain === b?.chain && a.entry.hint === b.entry.hint;
}

/** At least one part, also of nothing. */
function inParts(identities: readonly X509Identity[]) {
  const parts: ReturnType<typeof svidOf>[][] = [[]];
  let bytes = 0;
  for (const identity of identities) {
    const size = sizeOf(identity) + identity.entry.id.length;
    if (bytes > 0 && bytes + size > PART_BYTES) {
      parts.push([]);
      bytes = 0;
    }
    bytes += size;
    parts.at(-1)?.push(svidOf(identity));
  }
  return parts;
}

function svidOf(identity: X509Identity) {
  return { entry_id: identity.entry.id, ...svidWithKey(identity) };
}

async function* fetchJwtSvids(
  options: DelegatedIdentityOptions,
  request: FetchJWTSVIDsRequest__Output,
  call: DelegateCall,
): AsyncGenerator<FetchJWTSVIDsResponse, void, undefined> {
  const audience = audienceOf(request.audience, call.auth.log);
  await using target = await DelegatedTarget.open(options, request, call);
  const { entries } = ordinaryEntitlement(options.identities.entitlement(target.selectors));
  if (entries.length === 0) throw noIdentity(call);
  for (let at = 0; at < entries.length; at += TOKENS_AT_ONCE) {
    const some = entries.slice(at, at + TOKENS_AT_ONCE);
    const svids = await Promise.all(
      some.map(async (entry) => jwtSvid(entry, await fetchToken(options.jwtTokens, { entry, audience }, call))),
    );
    await target.check();
    yield { svids };
  }
}
