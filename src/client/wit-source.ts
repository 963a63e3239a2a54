import { type Clock, systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { TrustDomain } from "../spiffe/id.ts";
import { Followed, type SourceOptions } from "./followed.ts";
import {
  type ReceivedResponse,
  type ReceivedSignedRequest,
  type SignedRequest,
  type SignRequestOptions,
  type SignResponseOptions,
  signRequest,
  signResponse,
  type VerifiedRequest,
  type VerifyRequestOptions,
  type VerifyResponseOptions,
  verifyRequest,
  verifyResponse,
} from "./message-signature.ts";
import type { TokenBundle, TokenBundles } from "./token-context.ts";
import { type WitContext, type WitSvid, watchWitBundles, watchWitSvids } from "./wit.ts";
import { type ProofHeaders, type ProofOptions, signProof, verifyProof } from "./wit-proof.ts";
import type { ProvenWorkload, ReceivedRequest, TrustContext, VerifyOptions } from "./wit-request.ts";

export type WitSourceOptions = SourceOptions;

/**
 * WIT-SVIDs of this process with their keys, and the keys to check those of others with, kept current for as long as the
 * source is open. Incubating, as the standard is: names and forms may change.
 */
export class WitSource implements AsyncDisposable {
  readonly #svids: Followed<WitContext>;
  readonly #bundles: Followed<TokenBundles>;
  readonly #clock: Clock;

  private constructor(svids: Followed<WitContext>, bundles: Followed<TokenBundles>, clock: Clock) {
    this.#svids = svids;
    this.#bundles = bundles;
    this.#clock = clock;
  }

  /** Resolves with the first update. Throws when the endpoint refuses for good, or the signal is aborted first. */
  static async open(options: WitSourceOptions = {}): Promise<WitSource> {
    await using scope = new AsyncDisposableStack();
    const svids = scope.use(await Followed.open(watchWitSvids, options));
    const bundles = scope.use(await Followed.open(watchWitBundles, options));
    scope.move();
    return new WitSource(svids, bundles, options.clock ?? systemClock);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#svids[Symbol.asyncDispose](), this.#bundles[Symbol.asyncDispose]()]);
  }

  /** The default identity. Throws when there is none any more, or it has expired. */
  get svid(): WitSvid {
    return this.#unexpired(this.#svids.value.svids[0]);
  }

  /** The identity that the operator gave this hint. Throws `not_found`: the default is not a substitute. */
  svidByHint(hint: string): WitSvid {
    const found = this.#svids.value.svids.find((svid) => svid.hint === hint);
    if (found !== undefined) return this.#unexpired(found);
    throw new Fault("not_found", `no WIT-SVID has the hint "${hint}"`, { code: "no-such-hint" });
  }

  /** Undefined for a trust domain that is not trusted. Throws `denied` when the bundles were withdrawn. */
  bundle(trustDomain: TrustDomain): TokenBundle | undefined {
    return this.#bundles.value.bundles.get(trustDomain);
  }

  /** Headers of one request to this address: the token, and a new proof. Throws as `signProof`. */
  headersFor(target: string | URL, options: ProofOptions = {}): Promise<ProofHeaders> {
    return signProof({ svid: this.svid, target, at: this.#clock.now(), ...options });
  }

  /** Who sent the request. Throws as `verifyProof`. */
  verify(request: ReceivedRequest, options: VerifyOptions = {}): Promise<ProvenWorkload> {
    return verifyProof(request, { ...this.#trust(), ...options });
  }

  /** Signs a request whole, as another way to show who sends it. Throws as `signRequest`. */
  signRequest(options: Omit<SignRequestOptions, "svid" | "at">): Promise<SignedRequest> {
    return signRequest({ svid: this.svid, at: this.#clock.now(), ...options });
  }

  /** Who signed the request. Throws as `verifyRequest`. */
  verifyRequest(request: ReceivedSignedRequest, options: VerifyRequestOptions = {}): Promise<VerifiedRequest> {
    return verifyRequest(request, { ...this.#trust(), ...options });
  }

  /** Headers of the answer to a request that `verifyRequest` let in. Throws as `signResponse`. */
  signResponse(options: Omit<SignResponseOptions, "svid" | "at">): Promise<Readonly<Record<string, string>>> {
    return signResponse({ svid: this.svid, at: this.#clock.now(), ...options });
  }

  /** Who signed the answer; undefined for one that is not signed and did not have to be. Throws as `verifyResponse`. */
  verifyResponse(response: ReceivedResponse, options: VerifyResponseOptions): Promise<ProvenWorkload | undefined> {
    return verifyResponse(response, { ...this.#trust(), ...options });
  }

  #trust(): TrustContext {
    const { bundles } = this.#bundles.value;
    return { authorities: (trustDomain) => bundles.get(trustDomain)?.authorities, at: this.#clock.now() };
  }

  #unexpired(svid: WitSvid): WitSvid {
    if (svid.expiresAt > this.#clock.now()) return svid;
    throw new Fault("unavailable", `the WIT-SVID of ${svid.id} has expired and no newer one was received`, {
      code: "svid-expired",
      hint: "see why the agent cannot be reached or cannot renew",
    });
  }
}
