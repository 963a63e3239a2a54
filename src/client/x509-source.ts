import type { Certificate } from "../crypto/certificate.ts";
import { type Clock, systemClock } from "../runtime/clock.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import { Feed } from "../runtime/feed.ts";
import type { SpiffeId, TrustDomain } from "../spiffe/id.ts";
import { validateX509Svid } from "../spiffe/x509-svid.ts";
import { checkRevocation } from "./crl.ts";
import type { EndpointOptions } from "./endpoint.ts";
import { watchX509Svids } from "./workload-api.ts";
import type { X509Bundle, X509Context, X509Svid } from "./x509-context.ts";

export interface X509SourceOptions extends EndpointOptions {
  /** Gives up waiting for the first update. */
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
  /** Told of every failure that the source lives through. */
  readonly onError?: (fault: Fault) => void;
  /** Refuses peers whose certificate stands on a revocation list from the endpoint. Default: false. */
  readonly enforceRevocation?: boolean;
}

type State =
  | { readonly kind: "waiting" }
  | { readonly kind: "issued"; readonly context: X509Context }
  | { readonly kind: "withdrawn"; readonly fault: Fault }
  | { readonly kind: "ended"; readonly fault: Fault };

/**
 * The identities and bundles of this process, kept current for as long as the source is open. Every read is of one
 * immutable snapshot. What the endpoint withdraws is gone at once; while it is only out of reach, what was issued is
 * used until it expires.
 */
export class X509Source implements AsyncDisposable {
  readonly #state = new Feed<State>({ kind: "waiting" });
  readonly #stop = new AbortController();
  readonly #clock: Clock;
  readonly #enforceRevocation: boolean;
  #following: Promise<void> = Promise.resolve();

  private constructor(options: X509SourceOptions) {
    this.#clock = options.clock ?? systemClock;
    this.#enforceRevocation = options.enforceRevocation ?? false;
  }

  /** Resolves with the first update. Throws when the endpoint refuses for good, or the signal is aborted first. */
  static async open(options: X509SourceOptions = {}): Promise<X509Source> {
    const source = new X509Source(options);
    source.#following = source.#follow(options);
    try {
      const { signal = source.#stop.signal } = options;
      const state = await source.#state.until(({ kind }) => kind === "issued" || kind === "ended", signal);
      if (state.kind === "ended") throw state.fault;
      return source;
    } catch (error) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#following;
  }

  /** The last update whole. Throws `denied` when the identities were withdrawn. */
  get context(): X509Context {
    const state = this.#state.value;
    if (state.kind === "issued") return state.context;
    if (state.kind === "waiting")
      throw new Fault("unavailable", "no update has been received yet", { code: "no-update" });
    throw state.fault;
  }

  /** The default identity. Throws when there is none any more, or it has expired. */
  get svid(): X509Svid {
    return this.#unexpired(this.context.svids[0]);
  }

  /** The identity that the operator gave this hint. Throws `not_found`: the default is not a substitute. */
  svidByHint(hint: string): X509Svid {
    const found = this.context.svids.find((svid) => svid.hint === hint);
    if (found === undefined) {
      throw new Fault("not_found", `no X.509-SVID has the hint "${hint}"`, { code: "no-such-hint" });
    }
    return this.#unexpired(found);
  }

  /** Undefined for a trust domain that is not trusted. */
  bundle(trustDomain: TrustDomain): X509Bundle | undefined {
    return this.context.bundles.get(trustDomain);
  }

  /** The SPIFFE ID that the chain proves, leaf first. Throws `denied` when it proves none. */
  verify(chain: readonly Certificate[]): SpiffeId {
    const { bundles, crls } = this.context;
    const authorities = (trustDomain: TrustDomain) => bundles.get(trustDomain)?.authorities;
    const id = validateX509Svid({ chain, authorities, at: this.#clock.now() });
    if (this.#enforceRevocation) {
      checkRevocation(
        chain,
        [...bundles.values()].flatMap((bundle) => bundle.authorities),
        crls,
      );
    }
    return id;
  }

  /** Undefined while there is no identity. Ends with the signal or the source. */
  async *watch(signal: AbortSignal): AsyncGenerator<X509Context | undefined, void, undefined> {
    for await (const state of this.#state.watch(AbortSignal.any([signal, this.#stop.signal]))) {
      yield state.kind === "issued" ? state.context : undefined;
      if (state.kind === "ended") return;
    }
  }

  #unexpired(svid: X509Svid): X509Svid {
    if (svid.expiresAt > this.#clock.now()) return svid;
    throw new Fault("unavailable", `the X.509-SVID of ${svid.id} has expired and no newer one was received`, {
      code: "svid-expired",
      hint: "see why the agent cannot be reached or cannot renew",
    });
  }

  async #follow(options: X509SourceOptions): Promise<void> {
    const { signal: _opening, ...others } = options;
    const onError = (fault: Fault): void => {
      if (isFault(fault, "denied") && this.#state.value.kind === "issued")
        this.#state.set({ kind: "withdrawn", fault });
      options.onError?.(fault);
    };
    try {
      for await (const context of watchX509Svids({ ...others, signal: this.#stop.signal, onError })) {
        this.#state.set({ kind: "issued", context: Object.freeze(context) });
      }
    } catch (error) {
      this.#state.set({ kind: "ended", fault: Fault.from(error) });
    }
  }
}
