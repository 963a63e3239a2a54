import type { PushApi } from "../../src/rpc/protos.ts";
import { bidi, unary } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import { failure } from "./fail.ts";
import { PushStream } from "./push-stream.ts";
import { agentOf, type HandlersOf } from "./shapes.ts";

export interface PushServiceParts {
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "watchAuthorized" | "authorizedEntry" | "bundles" | "node">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
  readonly clock: Clock;
  /** Aborted when the server is about to end: agents are told to come back. */
  readonly closing: AbortSignal;
}

const MOST_AWAITED = 1000;
/** Of a server that ends: no other one gets more of them in a second than it can greet, and a restart is over by then. */
const DRAINED_PER_SECOND = 500;
const LEAST_DRAIN_SPREAD_MS = 3_000;

/** What agents hold, told as it changes. */
export function pushService(parts: PushServiceParts): HandlersOf<typeof PushApi> {
  const { trustDomain, directory, caughtUp, clock, closing } = parts;
  const streams = new Set<PushStream>();
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
      const stream = new PushStream({ agent, trustDomain, directory, clock, closing, drainSpreadMs, progressed });
      streams.add(stream);
      try {
        yield* stream.run(requests, call.signal);
      } finally {
        streams.delete(stream);
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
