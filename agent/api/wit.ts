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

/** What a stream has been given of one entry. */
interface Sent {
  readonly entry: CachedEntry;
  readonly held: HeldWit;
}

/**
 * Tokens and keys for all identities of the caller, or for the one it asks for; again when one is renewed, or an
 * identity comes or goes. What goes does so at once, however long a new one takes. SPIFFE Workload API, section 7.2.1.
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
  let sent: readonly Sent[] = [];
  for (;;) {
    const seen = identities.changes.value;
    const { entries } = identities.entitlement(caller.selectors);
    const chosen = entries.filter(({ spiffeId }) => wanted === undefined || spiffeId === wanted);
    if (chosen.length === 0) throw caller.noIdentity();
    const left = sent.filter(({ entry }) => chosen.some(({ id }) => id === entry.id));
    if (left.length > 0 && left.length < sent.length) {
      await caller.verifyAgain();
      sent = left;
      yield answerOf(sent);
    }
    const until = (ticks: number): boolean => ticks !== seen;
    const fetching = fetchAll(witTokens, chosen, { call, isFirst: sent.length === 0 });
    const held = await unlessChanged(fetching, identities.changes.until(until, call.signal));
    if (held === "changed") continue;
    if (held !== undefined && !isDeepStrictEqual(held, sent)) {
      await caller.verifyAgain();
      sent = held;
      yield answerOf(sent);
    }
    const due = Math.min(LONGEST_WAIT_MS, ...(held ?? []).map((each) => msUntilDue(each.held.rotation, clock)));
    await wait({ clock, feed: identities.changes, until, ms: Math.max(LEAST_WAIT_MS, due) }, call.signal);
  }
}

function answerOf(sent: readonly Sent[]): WITSVIDResponse {
  return {
    svids: sent.map(({ entry: { spiffeId, hint }, held: { token, privateJwk } }) => ({
      ...{ spiffe_id: spiffeId, wit_svid: token, wit_svid_key: privateJwk, hint },
    })),
  };
}

/** What is being fetched goes on, and is there for whoever asks next. */
async function unlessChanged<T>(fetching: Promise<T>, changed: Promise<unknown>): Promise<T | "changed"> {
  changed.catch(() => undefined);
  fetching.catch(() => undefined);
  return Promise.race([fetching, changed.then(() => "changed" as const)]);
}

/** Undefined, with a line in the log, when the server is away and the caller has an answer already. */
async function fetchAll(
  witTokens: WitTokens,
  entries: readonly CachedEntry[],
  { call, isFirst }: { readonly call: LocalCall; readonly isFirst: boolean },
): Promise<readonly Sent[] | undefined> {
  try {
    return await Promise.all(
      entries.map(async (entry) => ({ entry, held: await witTokens.fetch(entry, call.signal) })),
    );
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
