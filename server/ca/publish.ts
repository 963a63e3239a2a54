import type { Log } from "../../src/runtime/log.ts";
import type { Bundle, TokenAuthority } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import {
  type BundleAccess,
  type BundleContent,
  TOKEN_FIELD,
  type TokenKind,
  withTokenAuthorities,
} from "./bundle-edits.ts";
import type { UpstreamAuthority } from "./upstream.ts";

export interface TokenPublisherOptions {
  readonly trustDomain: TrustDomain;
  readonly bundles: BundleAccess;
  /** Undefined for the topmost server of the trust domain. */
  readonly upstream: Pick<UpstreamAuthority, "name" | "publishToken"> | undefined;
  readonly log: Log;
}

/** Brings keys that sign tokens into the bundle: those of this server, and those of servers below it. */
export class TokenPublisher {
  readonly #options: TokenPublisherOptions;
  readonly #warned = new Set<TokenKind>();

  constructor(options: TokenPublisherOptions) {
    this.#options = options;
  }

  /**
   * Resolves with the stored bundle, in which the key stands. `checkRoom` sees a bundle that grows, and may throw. Throws
   * `invalid` when its id is another key's.
   */
  async publish(
    kind: TokenKind,
    authority: TokenAuthority,
    checkRoom: (next: BundleContent) => void = () => {},
  ): Promise<Bundle> {
    const { bundles, trustDomain, upstream } = this.#options;
    const above = await upstream?.publishToken(kind, authority);
    if (upstream !== undefined && above === undefined) this.#warn(kind, upstream.name);
    const own = above?.find(({ keyId }) => keyId === authority.keyId) ?? authority;
    return bundles.change(trustDomain, (current) => {
      // What others publish above is no reason to go without this one.
      const next = withTokenAuthorities(withTokenAuthorities(current, kind, [own]), kind, above ?? [], () => {});
      if (next[TOKEN_FIELD[kind]].length > (current?.[TOKEN_FIELD[kind]].length ?? 0)) checkRoom(next);
      return next;
    });
  }

  /** Once. */
  #warn(kind: TokenKind, upstream: string): void {
    if (this.#warned.has(kind)) return;
    this.#warned.add(kind);
    const name = kind.toUpperCase();
    this.#options.log.warn(
      `UpstreamAuthority plugin does not support ${name}-SVIDs. Workloads managed by this server may have trouble communicating with workloads outside this cluster when using ${name}-SVIDs.`,
      { plugin_name: upstream },
    );
  }
}
