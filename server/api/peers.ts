import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import type { PeerIdentity } from "../../src/rpc/caller.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { isMember, type SpiffeId, type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";
import { readUnverifiedX509SvidId, validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import type { Directory } from "../directory/authorized.ts";

const WARN_EVERY_MS = 60_000;

export interface PeersParts {
  readonly directory: Pick<Directory, "bundle">;
  readonly trustDomain: TrustDomain;
  readonly adminIds: readonly SpiffeId[];
  readonly clock: Clock;
  readonly log: Log;
}

/** Verifies client certificates against the bundles of this moment: at the handshake, and again when they change. */
export class Peers {
  readonly #parts: PeersParts;
  readonly #authorities = new WeakMap<Bundle, readonly Certificate[]>();
  /** By the chain as it was shown: the bundle against which it was verified last. */
  readonly #verifiedBy = new WeakMap<readonly Certificate[], Bundle | undefined>();
  readonly #compared = new WeakMap<Bundle, WeakMap<Bundle, boolean>>();
  readonly #warnedAt = new Map<TrustDomain, number>();

  constructor(parts: PeersParts) {
    this.#parts = parts;
  }

  /** The caller's ID: of our trust domain, or listed in `admin_ids`. Throws to refuse the handshake (T-C4, T-C6). */
  verify(chain: readonly Certificate[]): SpiffeId {
    const leaf = chain[0];
    if (leaf === undefined) throw new Fault("unauthenticated", "client certificate is missing");
    const claimed = readUnverifiedX509SvidId(leaf);
    if (!isMember(claimed, this.#parts.trustDomain) && !this.#parts.adminIds.includes(claimed)) {
      throw new Fault("denied", `unexpected trust domain in ID "${claimed}"`, { code: "foreign-trust-domain" });
    }
    const bundle = this.#parts.directory.bundle(trustDomainOf(claimed));
    const id = this.validate(chain);
    this.#verifiedBy.set(chain, bundle);
    return id;
  }

  /** The ID of a chain that a bundle held at this moment vouches for, ours or a foreign one. Throws otherwise. */
  validate(chain: readonly Certificate[]): SpiffeId {
    return validateX509Svid({
      chain,
      authorities: (domain) => this.#authoritiesOf(domain),
      at: this.#parts.clock.now(),
    });
  }

  /**
   * Re-evaluates an open connection: the certificate has not ended, and is verified anew when the bundle is another one
   * than before (T-C5). Throws `unauthenticated`.
   */
  recheck({ id, chain }: PeerIdentity): void {
    const leaf = chain[0];
    if (leaf === undefined || this.#parts.clock.now() > leaf.notAfter) {
      throw new Fault("unauthenticated", "client certificate has expired", {
        code: "client-certificate-expired",
        hint: "connect again with the renewed certificate",
      });
    }
    const bundle = this.#parts.directory.bundle(trustDomainOf(id));
    if (this.#verifiedBy.has(chain)) {
      const before = this.#verifiedBy.get(chain);
      if (before === bundle) return;
      if (before !== undefined && bundle !== undefined && this.#keepsAllOf(before, bundle))
        return void this.#verifiedBy.set(chain, bundle);
    }
    try {
      this.verify(chain);
    } catch (cause) {
      throw new Fault("unauthenticated", "client certificate is not trusted any more", {
        code: "client-certificate-untrusted",
        cause,
      });
    }
  }

  /** What was trusted still is: authorities were added, if anything. Looked at once for all whom it concerns. */
  #keepsAllOf(before: Bundle, after: Bundle): boolean {
    const known = this.#compared.get(after)?.get(before);
    if (known !== undefined) return known;
    const held = new Set(after.x509Authorities.map(({ asn1 }) => Buffer.from(asn1).toString("latin1")));
    const keeps = before.x509Authorities.every(({ asn1 }) => held.has(Buffer.from(asn1).toString("latin1")));
    const verdicts = this.#compared.get(after) ?? new WeakMap<Bundle, boolean>();
    this.#compared.set(after, verdicts.set(before, keeps));
    return keeps;
  }

  #authoritiesOf(trustDomain: TrustDomain): readonly Certificate[] | undefined {
    const bundle = this.#parts.directory.bundle(trustDomain);
    if (bundle === undefined) {
      this.#warnMissing(trustDomain);
      return undefined;
    }
    const held = this.#authorities.get(bundle) ?? bundle.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
    this.#authorities.set(bundle, held);
    return held;
  }

  #warnMissing(trustDomain: TrustDomain): void {
    const now = this.#parts.clock.monotonic();
    if (
      trustDomain === this.#parts.trustDomain ||
      now - (this.#warnedAt.get(trustDomain) ?? Number.NEGATIVE_INFINITY) < WARN_EVERY_MS
    )
      return;
    this.#warnedAt.set(trustDomain, now);
    this.#parts.log.warn(
      "No bundle found for foreign admin trust domain; admins from this trust domain will not be able to connect. Make sure this trust domain is correctly federated.",
      { trust_domain: trustDomain },
    );
  }
}
