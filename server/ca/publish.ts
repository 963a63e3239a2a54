import type { Bundle, TokenAuthority } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { type BundleAccess, type TokenKind, withTokenAuthorities } from "./bundle-edits.ts";

export interface TokenPublisherOptions {
  readonly trustDomain: TrustDomain;
  readonly bundles: BundleAccess;
}

/** Brings keys that sign tokens into the bundle: those of this server, and those of servers below it. */
export class TokenPublisher {
  readonly #options: TokenPublisherOptions;

  constructor(options: TokenPublisherOptions) {
    this.#options = options;
  }

  /** Resolves with the stored bundle, in which the key stands. Throws `invalid` when its id is another key's. */
  publish(kind: TokenKind, authority: TokenAuthority): Promise<Bundle> {
    const { bundles, trustDomain } = this.#options;
    return bundles.change(trustDomain, (current) => withTokenAuthorities(current, kind, [authority]));
  }
}
