import type { Certificate } from "../crypto/certificate.ts";
import { type Clock, systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { SpiffeId, TrustDomain } from "../spiffe/id.ts";
import { validateX509Svid } from "../spiffe/x509-svid.ts";
import { checkRevocation } from "./crl.ts";
import { Followed, type SourceOptions, type Watch } from "./followed.ts";
import { watchX509Svids } from "./workload-api.ts";
import type { X509Bundle, X509Context, X509Svid } from "./x509-context.ts";

export interface X509SourceOptions extends SourceOptions {
  /** Refuses peers whose certificate stands on a revocation list from the endpoint. Default: false. */
  readonly enforceRevocation?: boolean;
}

/**
 * The identities and bundles of this process, kept current for as long as the source is open. Every read is of one
 * immutable snapshot. What the endpoint withdraws is gone at once; while it is only out of reach, what was issued is
 * used until it expires.
 */
export class X509Source implements AsyncDisposable {
  readonly #followed: Followed<X509Context>;
  readonly #clock: Clock;
  readonly #enforceRevocation: boolean;

  private constructor(followed: Followed<X509Context>, { clock, enforceRevocation }: X509SourceOptions) {
    this.#followed = followed;
    this.#clock = clock ?? systemClock;
    this.#enforceRevocation = enforceRevocation ?? false;
  }

  /** Resolves with the first update. Throws when the endpoint refuses for good, or the signal is aborted first. */
  static async open(options: X509SourceOptions = {}): Promise<X509Source> {
    return X509Source.over(watchX509Svids, options);
  }

  /** As `open`, with identities that come another way. */
  static async over(watch: Watch<X509Context>, options: X509SourceOptions): Promise<X509Source> {
    return new X509Source(await Followed.open(watch, options), options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#followed[Symbol.asyncDispose]();
  }

  /** The last update whole. Throws `denied` when the identities were withdrawn. */
  get context(): X509Context {
    return this.#followed.value;
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
  watch(signal: AbortSignal): AsyncGenerator<X509Context | undefined, void, undefined> {
    return this.#followed.watch(signal);
  }

  #unexpired(svid: X509Svid): X509Svid {
    if (svid.expiresAt > this.#clock.now()) return svid;
    throw new Fault("unavailable", `the X.509-SVID of ${svid.id} has expired and no newer one was received`, {
      code: "svid-expired",
      hint: "see why the agent cannot be reached or cannot renew",
    });
  }
}
