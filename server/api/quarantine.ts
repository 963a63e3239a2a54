import { idToProto } from "../../src/rpc/convert.ts";
import type { QuarantinedAgent } from "../../src/rpc/gen/steeple/api/server/quarantine/v1/QuarantinedAgent.ts";
import type { QuarantineApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import * as events from "../events.ts";
import type { AttestedNode, NodeStore } from "../store/store.ts";
import { attempt, failure } from "./fail.ts";
import { CONTROL, requestedAgent } from "./ids.ts";
import { nodeBytes, readPage } from "./pages.ts";
import type { HandlersOf } from "./shapes.ts";

export interface QuarantineServiceParts {
  readonly trustDomain: TrustDomain;
  readonly nodes: Pick<NodeStore, "quarantine" | "release" | "list">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
  readonly clock: Clock;
}

const MAX_REASON_BYTES = 1024;

/** Agents that keep their record and get nothing: see `Directory` for what that means. */
export function quarantineService(parts: QuarantineServiceParts): HandlersOf<typeof QuarantineApi> {
  const { trustDomain, nodes, caughtUp, clock } = parts;
  return {
    QuarantineAgent: unary(async ({ id, reason }, { auth: { log } }) => {
      const agent = requestedAgent(log, trustDomain, id);
      checkReason(log, reason);
      const words = { not_found: "agent not found", otherwise: "failed to quarantine agent" };
      const node = await attempt(log, words, () => nodes.quarantine(agent, { since: clock.now(), reason }));
      events.agentQuarantined(log, { id: agent, reason });
      await caughtUp(log);
      return { agent: quarantinedAgent(node) };
    }),
    ReleaseAgent: unary(async ({ id, x509svid_serial_number: serial }, { auth: { log } }) => {
      const agent = requestedAgent(log, trustDomain, id);
      const words = { not_found: "agent not found", otherwise: "failed to release agent" };
      await attempt(log, words, () => nodes.release(agent, serial === "" ? undefined : serial));
      events.agentReleased(log, agent);
      await caughtUp(log);
      return {};
    }),
    ListQuarantinedAgents: unary(async ({ page_size, page_token }, { auth: { log } }) => {
      const read = (page: { size: number; token: string }) => nodes.list({ quarantined: true }, page);
      const { items, nextPageToken } = await attempt(log, "failed to list quarantined agents", () =>
        readPage(page_size, page_token, { read, sizeOf: (node) => nodeBytes(node) + MAX_REASON_BYTES }),
      );
      return { agents: items.map(quarantinedAgent), next_page_token: nextPageToken };
    }),
  };
}

function checkReason(log: Log, reason: string): void {
  if (Buffer.byteLength(reason) > MAX_REASON_BYTES)
    throw failure(log, "invalid", `reason is too long (max ${MAX_REASON_BYTES} bytes)`);
  if (CONTROL.test(reason)) throw failure(log, "invalid", "reason contains control characters");
}

function quarantinedAgent({ id, quarantine }: AttestedNode): QuarantinedAgent {
  const since = Math.floor((quarantine?.since.getTime() ?? 0) / 1000);
  return { id: idToProto(id), since, reason: quarantine?.reason ?? "" };
}
