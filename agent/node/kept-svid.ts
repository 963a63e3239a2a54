import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import * as events from "../events.ts";
import type { AgentIdentity } from "./credentials.ts";
import type { AgentState } from "./state.ts";
import { findKey, readSvid, type SvidContext } from "./svid.ts";

export interface KeptSvidOptions extends SvidContext {
  readonly state: AgentState;
  readonly clock: Clock;
  readonly log: Log;
}

export interface KeptSvid {
  /** Undefined when there is none that can still be used. */
  readonly kept: AgentIdentity | undefined;
  /** Where its key lives, usable or not. */
  readonly keyId: string | undefined;
}

/** As SPIRE: what expires within the second is no good any more. */
const EXPIRY_SKEW_MS = 1_000;

export function isExpired({ leaf }: AgentIdentity, clock: Clock): boolean {
  return clock.now().getTime() + EXPIRY_SKEW_MS >= leaf.notAfter.getTime();
}

/** The SVID of an earlier run. Throws `precondition` for one that is not this agent's. */
export async function loadKeptSvid(options: KeptSvidOptions): Promise<KeptSvid> {
  const { state, keys, clock, log } = options;
  const all = await keys.list();
  const key = findKey(all, state.data.svid);
  if (state.data.svid.length === 0) {
    // An attestation that has begun has its key already.
    if (all.length > 0 && state.data.attestingKey === undefined)
      events.svidUnusable(log, "Keys recovered, but no SVID found");
    return { kept: undefined, keyId: undefined };
  }
  if (key === undefined) {
    const message = all.length === 0 ? "SVID recovered, but no keys found" : "SVID recovered, but no SVID key found";
    events.svidUnusable(log, message);
    return { kept: undefined, keyId: undefined };
  }
  const kept = await readSvid({ ...state.data, key, from: "disk" }, options).catch((error: unknown) => {
    throw unusable(options, error);
  });
  if (!isExpired(kept, clock)) return { kept, keyId: key.id };
  events.svidUnusable(log, "SVID key recovered, but SVID is expired", { expiry: events.rfc3339(kept.leaf.notAfter) });
  return { kept: undefined, keyId: key.id };
}

function unusable({ trustDomain }: KeptSvidOptions, cause: unknown): Fault {
  return new Fault("precondition", `the kept SVID cannot be used: ${messageOf(cause)}`, {
    code: "kept-svid-unusable",
    hint: `use a data_dir of its own for trust domain ${trustDomain}, or remove agent-data.json from this one`,
    cause,
  });
}
