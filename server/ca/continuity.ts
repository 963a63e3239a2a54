import { parseCertificate } from "../../src/crypto/certificate.ts";
import { jwsHolds, parseJws } from "../../src/crypto/jws.ts";
import { checkPublicKey } from "../../src/crypto/public-key.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { type BundleLink, LINK_GRACE_MS, signBundleLink } from "../../src/spiffe/bundle-link.ts";
import type { BundleLinkStore } from "../store/store.ts";
import type { X509SigningAuthority } from "./slots.ts";

type Links = ReadonlyMap<string, BundleLink>;

/** Strangers ask: the store is read no more often than this, whoever asks and however often. */
const CACHE_MS = 5_000;

/**
 * What the authorities of the trust domain said of the bundle that came after them: see `src/spiffe/bundle-link.ts`.
 * Beside certificates, this is all that an X.509 authority's key signs.
 */
export class BundleLinks {
  readonly #store: BundleLinkStore;
  readonly #clock: Clock;
  #held: { readonly at: number; readonly links: Promise<Links> } | undefined;

  constructor(store: BundleLinkStore, clock: Clock) {
    this.#store = store;
    this.#clock = clock;
  }

  /**
   * The outgoing authority says which bundle comes next, while its key is at hand; also when it has ended meanwhile. One
   * that is tainted, or no longer in the bundle without having ended, says nothing. Throws `precondition` when the key is
   * another one.
   */
  async vouch({ id, key, certificate, notAfter }: X509SigningAuthority, bundle: Bundle): Promise<void> {
    const now = this.#clock.now();
    const standing = bundle.x509Authorities.find(({ asn1 }) => Buffer.compare(asn1, certificate.raw) === 0);
    if (standing?.tainted === true || (standing === undefined && now <= notAfter)) return;
    const link = await signBundleLink(bundle, { id, key }, now);
    // The key of one that goes may have been replaced already; what was said before stays then.
    if (!(await jwsHolds(parseJws(link.statement), checkPublicKey(certificate.publicKey))))
      throw new Fault("precondition", "the authority's key is not at hand any more", { code: "bundle-link-key" });
    const authorityIds = link.x509Authorities.map((der) => parseCertificate(der).subjectKeyId);
    const expiresAt = new Date(notAfter.getTime() + LINK_GRACE_MS);
    await this.#store.save({ signerId: id, ...link, authorityIds, expiresAt });
    this.#held = undefined;
  }

  /** Nobody is to believe this authority any more, nor to be led to it. */
  async withdraw(authorityId: string): Promise<void> {
    await this.#store.delete(authorityId);
    this.#held = undefined;
  }

  /** What these authorities said. */
  async of(authorityIds: readonly string[]): Promise<readonly BundleLink[]> {
    const links = await this.#links();
    return authorityIds.flatMap((id) => links.get(id) ?? []);
  }

  #links(): Promise<Links> {
    const now = this.#clock.monotonic();
    if (this.#held !== undefined && now - this.#held.at < CACHE_MS) return this.#held.links;
    const links = this.#store.list().then((all) => new Map(all.map((link) => [link.signerId, link])));
    const held = { at: now, links };
    this.#held = held;
    return links;
  }
}
