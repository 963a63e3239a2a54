import { parseCertificate } from "../../src/crypto/certificate.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { type BundleLink, followBundleLink, type TrustedAuthorities } from "../../src/spiffe/bundle-link.ts";

export interface ContinuityOptions {
  /** What the agent holds. Its tainted authorities vouch for nobody. */
  readonly held: Bundle;
  readonly now: Date;
  /** What these authorities said, by whoever answers: each answer is checked. */
  readonly ask: (authorityIds: readonly string[]) => Promise<readonly BundleLink[]>;
  /** True when the server proves itself by these authorities. */
  readonly suffices: (authorities: TrustedAuthorities) => boolean;
}

/** More than a trust domain makes in the time for which an authority's word counts. */
const MOST_LINKS = 1000;
/** As many as the server takes; more authorities at once has no trust domain. */
const MOST_IDS = 64;

/**
 * Follows what authorities said of the bundles after them, from the one that is held to one that vouches for the server.
 * Throws `denied` when nothing leads there.
 */
export async function followContinuity(options: ContinuityOptions): Promise<TrustedAuthorities> {
  const { held, suffices } = options;
  let trusted: TrustedAuthorities = {
    trustDomain: held.trustDomain,
    sequenceNumber: held.sequenceNumber,
    x509Authorities: held.x509Authorities.filter(({ tainted }) => !tainted).map(({ asn1 }) => asn1),
  };
  for (let followed = 0; followed < MOST_LINKS; followed += 1) {
    trusted = await step(trusted, options);
    if (suffices(trusted)) return trusted;
  }
  throw broken("it has no end");
}

/** The newest bundle that anyone trusted vouches for. */
async function step(trusted: TrustedAuthorities, { ask, now }: ContinuityOptions): Promise<TrustedAuthorities> {
  const ids = trusted.x509Authorities.map((der) => parseCertificate(der).subjectKeyId).filter((id) => id !== "");
  let newest: TrustedAuthorities | undefined;
  let reason = "the server knows of nothing that they said";
  const links = await ask(ids.slice(-MOST_IDS));
  if (links.length > MOST_IDS) throw broken("the server says more than was asked for");
  for (const link of links) {
    try {
      const next = await followBundleLink(link, trusted, now);
      if (newest === undefined || next.sequenceNumber > newest.sequenceNumber) newest = next;
    } catch (error) {
      reason = messageOf(error);
    }
  }
  if (newest === undefined) throw broken(reason);
  return newest;
}

function broken(reason: string): Fault {
  return new Fault("denied", `no chain leads from the authorities that this agent trusts to the server's: ${reason}`, {
    code: "bundle-chain",
    hint: "check that this is the server of the trust domain; if it is, let the agent fetch its first bundle again",
  });
}
