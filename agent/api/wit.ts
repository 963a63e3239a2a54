import { isDeepStrictEqual } from "node:util";
import type { Call } from "../../src/rpc/caller.ts";
import type { WITBundlesResponse } from "../../src/rpc/gen/WITBundlesResponse.ts";
import type { WITSVIDRequest__Output } from "../../src/rpc/gen/WITSVIDRequest.ts";
import type { WITSVIDResponse } from "../../src/rpc/gen/WITSVIDResponse.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { CachedEntry } from "../cache/entry.ts";
import type { HeldWit } from "../cache/wit.ts";
import { msUntilDue } from "../node/rotation.ts";
import { wait } from "../node/wait.ts";
import type { LocalCaller } from "./caller.ts";
import { entitledAnswers, type JwtApiOptions, openCall, requestedId } from "./jwt.ts";
import { jwkSetsOf, sharedByBundles } from "./jwt-answers.ts";

export interface WitTokens {
  fetch(entry: CachedEntry, signal: AbortSignal): Promise<HeldWit>;
}

export interface WitApiOptions extends JwtApiOptions {
  /** Undefined while WIT-SVIDs are switched off. */
  readonly witTokens: WitTokens | undefined;
}

type LocalCall = Call<LocalCaller>;

/** No longer without a look at the clock: it may have been set. */
const LONGEST_WAIT_MS = 5_000;
/** While a renewal does not come. */
const LEAST_WAIT_MS = 1_000;

/**
 * Tokens and keys for all identities of the caller, or for the one it asks for; again when one is renewed, or an
 * identity comes or goes. SPIFFE Workload API, section 7.2.1.
 */
export async function* fetchWitSvid(
  options: WitApiOptions,
  { spiffe_id }: WITSVIDRequest__Output,
  call: LocalCall,
): AsyncGenerator<WITSVIDResponse, void, undefined> {
  const witTokens = switchedOn(options);
  const wanted = spiffe_id === "" ? undefined : requestedId(spiffe_id, call);
  const { identities, clock } = options;
  const caller = await openCall(options, call);
  let last: readonly HeldWit[] = [];
  for (;;) {
    const seen = identities.changes.value;
    const { entries } = identities.entitlement(caller.selectors);
    const chosen = entries.filter(({ spiffeId }) => wanted === undefined || spiffeId === wanted);
    if (chosen.length === 0) throw caller.noIdentity();
    const held = await fetchAll(witTokens, chosen, { call, isFirst: last.length === 0 });
    if (held !== undefined && !isDeepStrictEqual(held, last)) {
      await caller.verifyAgain();
      last = held;
      yield { svids: chosen.map((entry, at) => svidOf(entry, held[at])) };
    }
    const due = Math.min(LONGEST_WAIT_MS, ...(held ?? []).map(({ rotation }) => msUntilDue(rotation, clock)));
    const until = (ticks: number): boolean => ticks !== seen;
    await wait({ clock, feed: identities.changes, until, ms: Math.max(LEAST_WAIT_MS, due) }, call.signal);
  }
}

function svidOf({ spiffeId, hint }: CachedEntry, held: HeldWit | undefined) {
  return { spiffe_id: spiffeId, wit_svid: held?.token ?? "", wit_svid_key: held?.privateJwk ?? "", hint };
}

/** Undefined, with a line in the log, when the server is away and the caller has an answer already. */
async function fetchAll(
  witTokens: WitTokens,
  entries: readonly CachedEntry[],
  { call, isFirst }: { readonly call: LocalCall; readonly isFirst: boolean },
): Promise<readonly HeldWit[] | undefined> {
  try {
    return await Promise.all(entries.map((entry) => witTokens.fetch(entry, call.signal)));
  } catch (error) {
    call.signal.throwIfAborted();
    const { message } = Fault.from(error);
    call.auth.log.error("Could not fetch WIT-SVID", { registered: true, error: message });
    if (!isFirst) return undefined;
    if (isFault(error, "unimplemented")) throw new Fault("unimplemented", message, { code: "profile-not-offered" });
    throw new Fault("unavailable", `could not fetch WIT-SVID: ${message}`, {
      code: "wit-svid-unavailable",
      cause: error,
    });
  }
}

/** The keys that verify WIT-SVIDs, again at each change. SPIFFE Workload API, section 7.2.2. */
export async function* fetchWitBundles(
  options: WitApiOptions,
  call: LocalCall,
): AsyncGenerator<WITBundlesResponse, void, undefined> {
  switchedOn(options);
  yield* entitledAnswers(options, call, witBundles);
}

const witBundles = sharedByBundles(
  (bundles): WITBundlesResponse => ({ bundles: jwkSetsOf(bundles, "witAuthorities") }),
);

/** SPIFFE Workload API, section 7. */
function switchedOn({ witTokens }: WitApiOptions): WitTokens {
  if (witTokens !== undefined) return witTokens;
  throw new Fault("unimplemented", "WIT-SVIDs are switched off", {
    code: "profile-not-offered",
    hint: 'set feature_flags = ["wit-svid"] in the experimental section of the agent, and of the server',
  });
}
