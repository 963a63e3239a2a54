import { parseCertificate } from "../../src/crypto/certificate.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { Authorities } from "./authorities.ts";
import {
  type BundleAccess,
  type BundleContent,
  type NamedAuthority,
  revokeAuthority,
  TOKEN_FIELD,
  taintAuthority,
  withRoots,
  withTokenAuthorities,
} from "./bundle-edits.ts";
import type { X509SigningAuthority } from "./slots.ts";
import type { UpstreamAuthority, UpstreamBundle } from "./upstream.ts";

export interface FollowUpstreamOptions {
  readonly trustDomain: TrustDomain;
  readonly upstream: UpstreamAuthority;
  readonly x509: Pick<Authorities<X509SigningAuthority>, "slots" | "prepare" | "activate">;
  readonly bundles: BundleAccess;
  readonly clock: Clock;
  readonly log: Log;
}

/** Keeps the own bundle in step with the one above, until the signal. Failures are logged and tried again. */
export async function followUpstream(options: FollowUpstreamOptions, signal: AbortSignal): Promise<void> {
  const { upstream, clock, log } = options;
  const backoff = new Backoff(clock, { firstMs: 1000, maxMs: 30_000 });
  for (;;) {
    const bundles = upstream.bundles(signal);
    if (bundles === undefined) return;
    try {
      for await (const bundle of bundles) {
        await takeOver(options, bundle);
        backoff.reset();
      }
    } catch (error) {
      signal.throwIfAborted();
      log.warn("Could not follow the bundle of the upstream authority", { error: Fault.from(error) });
    }
    await clock.sleep(backoff.next(), signal);
  }
}

/**
 * New authorities are added. One that is tainted above is tainted here once nothing is signed under it any more, so
 * that whoever re-keys then gets something better. One that was tainted and is gone above is revoked.
 */
async function takeOver(options: FollowUpstreamOptions, above: UpstreamBundle): Promise<void> {
  const { trustDomain, bundles, log } = options;
  const clash = (keyId: string): void =>
    log.warn("Key of the upstream authority is left out: its ID belongs to another key here", { key_id: keyId });
  const bundle = await bundles.change(trustDomain, (current) => merged(current, above, clash));
  const [here, there] = [standings(bundle), standings(above)];
  for (const [key, { authority, tainted }] of here) {
    const upstream = there.get(key);
    if (!tainted && upstream?.tainted === true) {
      await leave(options, authority);
      await taintAuthority(bundles, { trustDomain, authority });
      log.info(`${NAMES[authority.kind]} authority tainted`, fieldsOf(authority));
    } else if (tainted && upstream === undefined) {
      await revokeAuthority(bundles, { trustDomain, authority }, () => {});
      log.info(`${NAMES[authority.kind]} authority revoked`, fieldsOf(authority));
    }
  }
}

/** A key of above that clashes with one here is left out: that is no reason to go without the roots. */
function merged(current: Bundle | undefined, above: UpstreamBundle, clash: (keyId: string) => void): BundleContent {
  const fresh = above.x509Authorities.filter(({ tainted }) => !tainted);
  const withJwt = withTokenAuthorities(withRoots(current, fresh), "jwt", above.jwtAuthorities, clash);
  return withTokenAuthorities(withJwt, "wit", above.witAuthorities, clash);
}

/** The current authority must not hang on a root that is about to be tainted. */
async function leave({ x509, log }: FollowUpstreamOptions, authority: NamedAuthority): Promise<void> {
  const { current } = x509.slots;
  if (authority.kind !== "x509" || current.state !== "active") return;
  if (current.authority.upstreamAuthorityId !== authority.subjectKeyId) return;
  log.info("Current root CA is signed by a tainted upstream authority, preparing rotation");
  const { id } = await x509.prepare();
  log.info("Server SVID signed using a tainted authority, forcing rotation of the Server SVID");
  await x509.activate(id);
}

const NAMES = { x509: "X.509", jwt: "JWT", wit: "WIT" } as const;

interface Standing {
  readonly authority: NamedAuthority;
  readonly tainted: boolean;
}

function standings(bundle: UpstreamBundle): ReadonlyMap<string, Standing> {
  const found: Standing[] = bundle.x509Authorities.map(({ asn1, tainted }) => ({
    authority: { kind: "x509", subjectKeyId: parseCertificate(asn1).subjectKeyId },
    tainted,
  }));
  for (const kind of ["jwt", "wit"] as const)
    for (const { keyId, tainted } of bundle[TOKEN_FIELD[kind]]) found.push({ authority: { kind, keyId }, tainted });
  return new Map(found.map((one) => [JSON.stringify(one.authority), one]));
}

function fieldsOf(authority: NamedAuthority): Readonly<Record<string, string>> {
  return authority.kind === "x509" ? { subject_key_id: authority.subjectKeyId } : { key_id: authority.keyId };
}
