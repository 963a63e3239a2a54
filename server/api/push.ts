import type { Call } from "../../src/rpc/caller.ts";
import type { PushApi } from "../../src/rpc/protos.ts";
import { bidi, unary } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import { failure } from "./fail.ts";
import { PushStream } from "./push-stream.ts";
import { agentOf, type HandlersOf } from "./shapes.ts";

export interface PushServiceParts {
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "watchAuthorized" | "authorizedEntry" | "bundles" | "node" | "counts">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
  readonly clock: Clock;
  /** Aborted when the server is about to end: agents are told to come back. */
  readonly closing: AbortSignal;
}

const MOST_AWAITED = 1000;
/** Of one agent, which needs one: so that a stolen SVID does not fill the memory. */
const MOST_STREAMS = 2_000;
/** Entries that one agent may say it holds, while it says so: it can have been told of no more than there are, or were. */
const LEAST_CLAIM = 100_000;
const CLAIM_PER_ENTRY = 2;
/** Of a server that ends: no other one gets more of them in a second than it can greet, and a restart is over by then. */
const DRAINED_PER_SECOND = 500;
const LEAST_DRAIN_SPREAD_MS = 3_000;

/** Of one agent. */
interface Held {
  readonly calls: Set<Pick<Call, "abort">>;
  /** Revisions that its streams keep until it has sent them all. */
  claimed: number;
}

/** What agents hold, told as it changes. */
export function pushService(parts: PushServiceParts): HandlersOf<typeof PushApi> {
  const { trustDomain, directory, caughtUp, clock, closing } = parts;
  const streams = new Set<PushStream>();
  const held = new Map<SpiffeId, Held>();
  let drained: number | undefined;
  const drainSpreadMs = (): number => {
    drained ??= streams.size;
    return Math.max(LEAST_DRAIN_SPREAD_MS, (drained / DRAINED_PER_SECOND) * 1000);
  };
  const progress = new Feed(0);
  const progressed = (): void => progress.set(progress.value + 1);
  const hasAll = (stream: PushStream, ids: readonly string[]): boolean =>
    ids.every((id) => stream.holds(id, directory.authorizedEntry(stream.agent, id)));

  return {
    WatchAuthorizedEntries: bidi(async function* (requests, call) {
      const { id: agent } = agentOf(call);
      const own = held.get(agent) ?? { calls: new Set(), claimed: 0 };
      held.set(agent, own);
      const claim = (count: number): void => {
        own.claimed += count;
        if (count > 0 && own.claimed > Math.max(LEAST_CLAIM, directory.counts.entries * CLAIM_PER_ENTRY))
          throw new Fault("exhausted", "too many entry revisions", { code: "too-many-revisions" });
      };
      const stream = new PushStream({
        agent,
        trustDomain,
        directory,
        clock,
        closing,
        drainSpreadMs,
        progressed,
        claim,
      });
      streams.add(stream);
      own.calls.add(call);
      if (own.calls.size > MOST_STREAMS) oldest(own.calls)?.abort(tooManyStreams());
      try {
        yield* stream.run(requests, call.signal);
      } finally {
        streams.delete(stream);
        own.calls.delete(call);
        if (own.calls.size === 0) held.delete(agent);
        progressed();
      }
    }),
    AwaitEntries: unary(async ({ ids }, { auth: { log }, signal }) => {
      if (ids.length === 0) throw failure(log, "invalid", "no entry IDs");
      if (ids.length > MOST_AWAITED) throw failure(log, "invalid", `more than ${MOST_AWAITED} entry IDs`);
      await caughtUp(log);
      await progress.until(() => [...streams].every((stream) => hasAll(stream, ids)), signal);
      const authorized = [...streams].filter(({ agent }) => ids.some((id) => directory.authorizedEntry(agent, id)));
      return { agents: new Set(authorized.map(({ agent }) => agent)).size };
    }),
  };
}

function oldest<T>(items: Iterable<T>): T | undefined {
  for (const item of items) return item;
  return undefined;
}

function tooManyStreams(): Fault {
  return new Fault("exhausted", `an agent has more than ${MOST_STREAMS} streams`, { code: "too-many-streams" });
}
