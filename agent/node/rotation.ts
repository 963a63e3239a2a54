import type { Clock } from "../../src/runtime/clock.ts";
import { renewAt } from "../../src/spiffe/lifetime.ts";

/** A new SVID is used for so long before the next, at least and at most: a third of its life between. */
const HOLD_MS = { least: 1_000, most: 5_000 } as const;
/** For an SVID that is expired as it comes: the clocks disagree, and asking again at once would not help. */
const WRONG_CLOCK_MS = 30_000;
/** What an availability target leaves of the lifetime must exceed this. */
const TARGET_SLACK_MS = 12 * 3_600_000;
const TARGET_JITTER_MS = 10 * 60_000;

export interface RotationPolicy {
  readonly clock: Clock;
  /** Renew when no more than this is left, if the lifetime allows; otherwise at half of it. */
  readonly availabilityTargetMs?: number | undefined;
}

export interface Validity {
  readonly notBefore: Date;
  readonly notAfter: Date;
}

/**
 * When an SVID is to be renewed. The certificate's times are the wall clock's, which may be set at any moment; so the
 * time that has passed since the SVID came counts as well, and whichever comes first decides (T-F7). Immutable.
 */
export interface Rotation {
  readonly renewAt: Date;
  /** By the monotonic clock, as the next one. */
  readonly soonest: number;
  readonly latest: number;
}

/** Due at once, whatever the certificate says. */
export const OVERDUE: Rotation = { renewAt: new Date(0), soonest: 0, latest: 0 };

/** For an SVID that has just been received. */
export function rotationOfNew(validity: Validity, policy: RotationPolicy): Rotation {
  const { clock } = policy;
  const left = validity.notAfter.getTime() - clock.now().getTime();
  // The start is dated back, so that a very short-lived SVID would be due the moment it comes.
  const hold = left <= 0 ? WRONG_CLOCK_MS : Math.min(Math.max(HOLD_MS.least, left / 3), HOLD_MS.most);
  return { ...rotationOfKept(validity, policy), soonest: clock.monotonic() + hold };
}

/** For an SVID from an earlier run. */
export function rotationOfKept(validity: Validity, policy: RotationPolicy): Rotation {
  const { clock } = policy;
  const renewAt = wallTime(validity, policy);
  const wait = renewAt.getTime() - Math.max(clock.now().getTime(), validity.notBefore.getTime());
  return { renewAt, soonest: clock.monotonic(), latest: clock.monotonic() + wait };
}

/** Due after `refreshMs` at the latest, for a node that can and has to attest more often than its SVID asks for. */
export function refreshedBy(
  { rotation, reattestable }: { readonly rotation: Rotation; readonly reattestable: boolean },
  refreshMs: number | undefined,
  clock: Clock,
): Rotation {
  if (refreshMs === undefined || !reattestable) return rotation;
  const latest = Math.min(rotation.latest, clock.monotonic() + refreshMs);
  return { ...rotation, latest, soonest: Math.min(rotation.soonest, latest) };
}

/** Zero or less when it is due. */
export function msUntilDue({ renewAt, soonest, latest }: Rotation, clock: Clock): number {
  const passed = clock.monotonic();
  return Math.max(soonest - passed, Math.min(renewAt.getTime() - clock.now().getTime(), latest - passed));
}

/** An availability target needs a lifetime that exceeds it by more than twelve hours. */
export function fitsTarget({ notBefore, notAfter }: Validity, targetMs: number | undefined): targetMs is number {
  return targetMs !== undefined && notAfter.getTime() - notBefore.getTime() - targetMs > TARGET_SLACK_MS;
}

function wallTime(validity: Validity, { clock, availabilityTargetMs }: RotationPolicy): Date {
  const { notBefore, notAfter } = validity;
  const half = renewAt(notBefore, notAfter, clock.random());
  if (!fitsTarget(validity, availabilityTargetMs)) return half;
  const target = notAfter.getTime() - availabilityTargetMs - clock.random() * TARGET_JITTER_MS;
  return new Date(Math.min(half.getTime(), target));
}
