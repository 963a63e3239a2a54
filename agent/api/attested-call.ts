import type { Call } from "../../src/rpc/caller.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { formatSelector, type Selector } from "../../src/spiffe/selector.ts";
import type { WorkloadUpdate } from "../cache/update.ts";
import type { LocalCaller } from "./caller.ts";
import type { CallRates } from "./rate-limit.ts";

/** What the local APIs ask of attestation. */
export interface CallerAttestor {
  /** Never empty. Throws when nothing is known of the caller. */
  attest(peer: PeerProcess, signal: AbortSignal): Promise<readonly Selector[]>;
  /** Throws when the process is no longer the one that connected. */
  verify(peer: PeerProcess): Promise<void>;
}

/** What the local APIs ask of the cache: the full state at once, and again after each change. */
export interface IdentityFeed {
  /** False while nobody's entitlement is known. */
  readonly ready: { readonly value: boolean };
  subscribe(selectors: readonly Selector[], signal: AbortSignal): AsyncIterable<WorkloadUpdate>;
}

export interface AttestedCallOptions {
  readonly attestor: CallerAttestor;
  /** Selectors equal to one of these, or below it, may appear in the log. */
  readonly logSelectors: readonly string[];
  /** Throws when callers like this one have called the method too often. Default: they never have. */
  readonly rates?: Pick<CallRates, "take">;
  /**
   * Asks the server once more when nothing is held for these selectors, so that what was registered a moment ago is
   * found. Resolves when its answer is in the cache, or when there is none. Default: what is held is all there is.
   */
  readonly pull?: (selectors: readonly Selector[], signal: AbortSignal) => Promise<void>;
}

/** One call of a local process, attested once, when it begins, and looked at again before it is given anything. */
export class AttestedCall {
  readonly selectors: readonly Selector[];
  readonly #options: AttestedCallOptions;
  readonly #call: Call<LocalCaller>;

  private constructor(options: AttestedCallOptions, call: Call<LocalCaller>, selectors: readonly Selector[]) {
    this.#options = options;
    this.#call = call;
    this.selectors = selectors;
  }

  /** Throws `unavailable`, without the reason, when the caller cannot be attested. */
  static async open(options: AttestedCallOptions, call: Call<LocalCaller>): Promise<AttestedCall> {
    const { process, log, isAgent } = call.auth;
    const selectors = await options.attestor.attest(process, call.signal).catch((error: unknown) => {
      throw attestationFailed(call, error);
    });
    const attested = new AttestedCall(options, call, selectors);
    if (isAgent) return attested;
    options.rates?.take(call.method, selectors, log.metrics);
    log.debug("PID attested to have selectors", attested.#loggable());
    await options.pull?.(selectors, call.signal);
    return attested;
  }

  /** Keys go to the process that was attested, not to whoever holds its socket by now. Throws `unavailable`. T-W1. */
  async verifyAgain(): Promise<void> {
    try {
      await this.#options.attestor.verify(this.#call.auth.process);
    } catch (error) {
      throw attestationFailed(this.#call, error);
    }
  }

  /** What to throw at a caller who has no identity; logged. */
  noIdentity(): Fault {
    const { log, isAgent } = this.#call.auth;
    if (!isAgent) log.error("No identity issued", { registered: false, ...this.#loggable() });
    return new Fault("denied", "no identity issued", {
      code: "no-identity-issued",
      hint: "create a registration entry whose selectors this process has, below this agent; if there is one, see the agent's log",
    });
  }

  #loggable(): { readonly selectors?: string } {
    const permitted = this.selectors
      .map(formatSelector)
      .filter((text) => this.#options.logSelectors.some((prefix) => text === prefix || text.startsWith(`${prefix}:`)));
    return permitted.length === 0 ? {} : { selectors: permitted.join(",") };
  }
}

/** What to throw while nobody's entitlement is known. SPIFFE Workload Endpoint, section 6. */
export function notReady(): Fault {
  return new Fault("unavailable", "the agent has not received its entries from the server yet", {
    code: "agent-not-ready",
    hint: "ask again in a moment; the log of the agent says what it is waiting for",
  });
}

function attestationFailed(call: Call<LocalCaller>, error: unknown): Fault {
  if (call.signal.aborted) return Fault.from(call.signal.reason);
  call.auth.log.error("Workload attestation failed", { error: Fault.from(error).message });
  return new Fault("unavailable", "workload attestation failed", {
    code: "workload-attestation-failed",
    cause: error,
  });
}
