import type { Call } from "../../src/rpc/caller.ts";
import { selectorsFromProto } from "../../src/rpc/convert.ts";
import type { SubscribeToX509SVIDsRequest__Output } from "../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsRequest.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { followerOf } from "../../src/runtime/task.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import type { TrustBundles } from "../cache/update.ts";
import type { ReferencedWorkload } from "../workload/references.ts";
import { AttestedCall, type AttestedCallOptions, type IdentityFeed, notReady } from "./attested-call.ts";
import type { LocalCaller } from "./caller.ts";
import type { EntitlementFeed } from "./jwt.ts";
import type { JwtTokens } from "./jwt-tokens.ts";

export interface DelegatedIdentityOptions extends AttestedCallOptions {
  readonly identities: IdentityFeed & EntitlementFeed & { readonly bundle: BundleFeed };
  readonly jwtTokens: JwtTokens;
  readonly processes: { open(pid: number, signal: AbortSignal): Promise<ReferencedWorkload> };
  readonly clock: Clock;
  /** Who may ask for other workloads. */
  readonly authorizedDelegates: readonly SpiffeId[];
}

interface BundleFeed {
  watch(signal: AbortSignal): AsyncIterable<TrustBundles>;
}

export type DelegateCall = Call<LocalCaller>;
/** The workload whose identities are wanted. */
export type Target = Pick<SubscribeToX509SVIDsRequest__Output, "selectors" | "pid">;

/** A caller that is an authorized delegate, for as long as its call lasts: the call ends when it no longer is. */
export class Delegate implements AsyncDisposable {
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

/** SPIRE's key, in milliseconds. */
const FIRST_UPDATE = "delegated_identity_api.subscribe_x509_svids.first_update";

/** A delegate, and the workload that it asks for: the call ends with either. */
export class DelegatedTarget implements AsyncDisposable {
  readonly #call: DelegateCall;
  readonly #delegate: Delegate;
  readonly #workload: ReferencedWorkload;
  readonly #clock: Clock;
  /** When the call began; undefined once it has been given an SVID. */
  #began: number | undefined;

  private constructor(
    { call, clock, began }: { readonly call: DelegateCall; readonly clock: Clock; readonly began: number },
    delegate: Delegate,
    workload: ReferencedWorkload,
  ) {
    this.#clock = clock;
    this.#began = began;
    this.#call = call;
    this.#delegate = delegate;
    this.#workload = workload;
  }

  static async open(options: DelegatedIdentityOptions, target: Target, call: DelegateCall): Promise<DelegatedTarget> {
    const { clock } = options;
    const began = clock.monotonic();
    await using scope = new AsyncDisposableStack();
    const delegate = scope.use(await Delegate.open(options, call));
    const workload = await openTarget(options, target, call);
    scope.move();
    void workload.ended(delegate.life).then(
      (error) => call.abort(attestationFailed(call, error)),
      () => {},
    );
    return new DelegatedTarget({ call, clock, began }, delegate, workload);
  }

  get selectors(): readonly Selector[] {
    return this.#workload.selectors;
  }

  /** Aborted when the call ends, or the work on it does. */
  get life(): AbortSignal {
    return this.#delegate.life;
  }

  /** Tells of so many X.509-SVIDs that are sent. */
  sending(count: number): void {
    const { log } = this.#call.auth;
    log.debug("Fetched X.509 SVIDs for delegated identity", { count });
    if (count === 0 || this.#began === undefined) return;
    log.metrics.observe(FIRST_UPDATE, this.#clock.monotonic() - this.#began);
    this.#began = undefined;
  }

  /** Throws unless the delegate may still ask, and the workload is still the one that was attested. */
  async check(): Promise<void> {
    await this.#delegate.check();
    await this.#workload.verify().catch((error) => failed(this.#call, error));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#workload[Symbol.dispose]();
    await this.#delegate[Symbol.asyncDispose]();
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

function failed(call: DelegateCall, error: unknown): never {
  throw attestationFailed(call, error);
}

function attestationFailed(call: DelegateCall, cause: unknown): Fault {
  if (call.signal.aborted) return Fault.from(call.signal.reason);
  call.auth.log.error("Workload attestation failed", { error: Fault.from(cause).message });
  return new Fault("unavailable", "workload attestation failed", { code: "workload-attestation-failed", cause });
}

/** What to throw when there is nothing for the caller, or for the workload that it asks for; logged. */
export function noIdentity(call: DelegateCall): Fault {
  call.auth.log.error("No identity issued");
  return new Fault("denied", "no identity issued", { code: "no-identity-issued" });
}
