import type { Call } from "../../src/rpc/caller.ts";
import type { DeltaDiscoveryRequest__Output } from "../../src/rpc/gen/envoy/service/discovery/v3/DeltaDiscoveryRequest.ts";
import type { DeltaDiscoveryResponse } from "../../src/rpc/gen/envoy/service/discovery/v3/DeltaDiscoveryResponse.ts";
import type { DiscoveryRequest__Output } from "../../src/rpc/gen/envoy/service/discovery/v3/DiscoveryRequest.ts";
import type { DiscoveryResponse } from "../../src/rpc/gen/envoy/service/discovery/v3/DiscoveryResponse.ts";
import { SecretDiscoveryApi } from "../../src/rpc/protos.ts";
import { bidi, type ServiceImplementation, service, unary } from "../../src/rpc/service.ts";
import { Shares } from "../../src/rpc/shares.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { merge } from "../../src/runtime/merge.ts";
import { followerOf } from "../../src/runtime/task.ts";
import type { WorkloadUpdate } from "../cache/update.ts";
import { AttestedCall, type AttestedCallOptions, type IdentityFeed, notReady } from "./attested-call.ts";
import type { LocalCaller } from "./caller.ts";
import { usesSpiffeValidator } from "./sds-node.ts";
import { SECRET_TYPE, type SecretNames, Secrets } from "./sds-secrets.ts";
import {
  checkType,
  collect,
  DeltaSubscription,
  namesOf,
  type Subscription,
  type SubscriptionOptions,
  WorldSubscription,
} from "./sds-subscriptions.ts";

export interface SdsSettings {
  readonly names: SecretNames;
  /** Roots as plain CA certificates, unless an Envoy's metadata says otherwise. */
  readonly disableSpiffeCertValidation: boolean;
}

export interface SdsApiOptions extends AttestedCallOptions {
  readonly identities: IdentityFeed;
  readonly sds: SdsSettings;
}

type SecretsOf = (update: WorkloadUpdate) => Secrets;

/** Envoy does not close its stream when it is told to go elsewhere. */
const ENDLESS = { endless: true };

/** Characters of names that all streams of one user, and of one control group, ask for: tens of thousands of names. */
const MOST_NAMES = { perUser: 16 * 1024 * 1024, perCgroup: 4 * 1024 * 1024 } as const;

/** Envoy's Secret Discovery Service, version 3. Each call is attested once, when it begins. */
export function sdsApi(options: SdsApiOptions): ServiceImplementation<LocalCaller> {
  const secretsOf = sharedSecrets(options.sds.names);
  const { disableSpiffeCertValidation } = options.sds;
  const names = new Shares(MOST_NAMES, { what: "too many names of secrets", code: "sds-too-many-names" });
  const subscribed = (call: Call<LocalCaller>, held: DisposableStack): SubscriptionOptions => ({
    disableSpiffeCertValidation,
    log: call.auth.log,
    keep: keeping(names, call.auth, held),
  });
  return service<NonNullable<(typeof SecretDiscoveryApi)["types"]>, LocalCaller>(SecretDiscoveryApi, {
    StreamSecrets: bidi(
      (requests, call) =>
        responses<DiscoveryRequest__Output, DiscoveryResponse>(
          { options, secretsOf, call },
          requests,
          (held) => new WorldSubscription(subscribed(call, held)),
        ),
      ENDLESS,
    ),
    DeltaSecrets: bidi(
      (requests, call) =>
        responses<DeltaDiscoveryRequest__Output, DeltaDiscoveryResponse>(
          { options, secretsOf, call },
          requests,
          (held) => new DeltaSubscription(subscribed(call, held)),
        ),
      ENDLESS,
    ),
    FetchSecrets: unary((request, call) => fetchSecrets({ options, secretsOf, call }, request)),
  });
}

/** Counts what one stream keeps as its caller's, in place of what it kept before. */
function keeping(names: Shares, { process }: LocalCaller, held: DisposableStack): (characters: number) => void {
  let giveBack = (): void => undefined;
  held.defer(() => giveBack());
  return (characters) => {
    giveBack();
    giveBack = () => undefined;
    giveBack = names.take(process, characters);
  };
}

/** Callers with the same selectors get the same update, and so the same encoded secrets. */
function sharedSecrets(names: SecretNames): SecretsOf {
  const made = new WeakMap<WorkloadUpdate, Secrets>();
  return (update) => {
    const secrets = made.get(update) ?? new Secrets(update, names);
    made.set(update, secrets);
    return secrets;
  };
}

interface SecretCall {
  readonly options: SdsApiOptions;
  readonly secretsOf: SecretsOf;
  readonly call: Call<LocalCaller>;
}

type Event<Q> =
  | { readonly kind: "request"; readonly request: Q }
  | { readonly kind: "update"; readonly update: WorkloadUpdate };

/** Until the client leaves, or has said all it had to say and been answered. */
async function* responses<Q, R>(
  { options, secretsOf, call }: SecretCall,
  requests: AsyncIterable<Q>,
  open: (held: DisposableStack) => Subscription<Q, R>,
): AsyncGenerator<R, void, undefined> {
  if (!options.identities.ready.value) throw notReady();
  using held = new DisposableStack();
  const subscription = open(held);
  const caller = await AttestedCall.open(options, call);
  const life = followerOf(call.signal);
  const answered = Promise.withResolvers<void>();
  const updates = options.identities.subscribe(caller.selectors, life.signal);
  try {
    for await (const event of merge<Event<Q>>([asRequests(requests, answered.promise), asUpdates(updates)])) {
      const next =
        event.kind === "request" ? subscription.request(event.request) : subscription.update(secretsOf(event.update));
      for (const response of next) {
        await caller.verifyAgain();
        yield response;
      }
      if (event.kind === "update") answered.resolve();
    }
  } finally {
    life.abort();
  }
}

async function* asRequests<Q>(
  requests: AsyncIterable<Q>,
  answered: Promise<void>,
): AsyncGenerator<Event<Q>, void, undefined> {
  for await (const request of requests) yield { kind: "request", request };
  await answered;
}

async function* asUpdates(updates: AsyncIterable<WorkloadUpdate>): AsyncGenerator<Event<never>, void, undefined> {
  for await (const update of updates) yield { kind: "update", update };
}

async function fetchSecrets(
  { options, secretsOf, call }: SecretCall,
  request: DiscoveryRequest__Output,
): Promise<DiscoveryResponse> {
  checkType(request.type_url);
  const names = namesOf(request.resource_names);
  if (!options.identities.ready.value) throw notReady();
  const caller = await AttestedCall.open(options, call);
  const spiffeValidator = usesSpiffeValidator(request.node ?? undefined, options.sds.disableSpiffeCertValidation);
  const life = followerOf(call.signal);
  try {
    for await (const update of options.identities.subscribe(caller.selectors, life.signal)) {
      const found = collect(secretsOf(update), names, spiffeValidator);
      await caller.verifyAgain();
      call.auth.log.debug("Sending FetchSecrets response", { count: found.length });
      return { type_url: SECRET_TYPE, resources: found.map(({ resource }) => resource) };
    }
  } finally {
    life.abort();
  }
  throw new Fault("cancelled", "the client has left");
}
