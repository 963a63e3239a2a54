import { parseCertificate } from "../../src/crypto/certificate.ts";
import { verifyChain } from "../../src/crypto/chain.ts";
import { nameText } from "../../src/crypto/name.ts";
import { idToProto } from "../../src/rpc/convert.ts";
import type {
  _spire_agent_debug_v1_GetInfoResponse_Cert as CertMessage,
  GetInfoResponse,
} from "../../src/rpc/gen/spire/agent/debug/v1/GetInfoResponse.ts";
import { loggerAsked, loggerToProto, logLevelFromProto, logLevelReset, logLevelSet } from "../../src/rpc/log-level.ts";
import { AgentDebugApi, AgentLoggerApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, service, unary } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { LogHandle } from "../../src/runtime/log.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { isSpiffeId, parseSpiffeId } from "../../src/spiffe/id.ts";
import type { LocalCaller } from "./caller.ts";

export interface AdminApiOptions {
  /** Of the whole program; a new level takes effect at once. */
  readonly logger: Pick<LogHandle, "level">;
  readonly agent: AgentView;
  readonly clock: Clock;
}

/** What the agent knows of itself, as of now. */
export interface AgentView {
  /** DER, leaf first; empty while the agent is not attested. */
  readonly chain: readonly Uint8Array[];
  readonly bundle: Bundle;
  /** When it and the server last agreed, confirmed anew when that is long ago. */
  lastSync(signal: AbortSignal): Promise<Date | undefined>;
  readonly x509Svids: number;
  readonly jwtSvids: number;
}

const CACHE_MS = 5_000;

/** State of the agent, for a person; looked at no more than once in five seconds. */
export function debugApi({ agent, clock }: AdminApiOptions): ServiceImplementation<LocalCaller> {
  const startedAt = clock.monotonic();
  let held: { readonly at: number; readonly info: GetInfoResponse } | undefined;
  return service<NonNullable<(typeof AgentDebugApi)["types"]>, LocalCaller>(AgentDebugApi, {
    GetInfo: unary(async (_request, call) => {
      const now = clock.monotonic();
      if (held !== undefined && now - held.at < CACHE_MS) return held.info;
      const lastSync = await agent.lastSync(call.signal);
      const uptime = Math.floor((now - startedAt) / 1000);
      held = { at: now, info: infoOf(agent, { uptime, lastSync, chain: chainOf(agent, call.auth, clock) }) };
      return held.info;
    }),
  });
}

interface Moment {
  readonly uptime: number;
  readonly lastSync: Date | undefined;
  readonly chain: CertMessage[];
}

function infoOf(agent: AgentView, { uptime, lastSync, chain }: Moment): GetInfoResponse {
  return {
    svid_chain: chain,
    uptime,
    svids_count: agent.x509Svids,
    cached_x509_svids_count: agent.x509Svids,
    cached_jwt_svids_count: agent.jwtSvids,
    cached_svidstore_x509_svids_count: 0,
    last_sync_success: lastSync === undefined ? 0 : Math.floor(lastSync.getTime() / 1000),
  };
}

/** From the agent's SVID to the root in the bundle. */
function chainOf({ chain, bundle }: AgentView, { log }: LocalCaller, clock: Clock): CertMessage[] {
  if (chain.length === 0) return [];
  try {
    const roots = bundle.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
    const path = verifyChain({ chain: chain.map(parseCertificate), roots, at: clock.now() });
    return path.map(({ uris: [uri = ""], notAfter, subject }) => ({
      id: isSpiffeId(uri) ? idToProto(parseSpiffeId(uri)) : null,
      expires_at: Math.floor(notAfter.getTime() / 1000),
      subject: nameText(subject),
    }));
  } catch (error) {
    const { message } = Fault.from(error);
    log.error("Failed to verify agent SVID", { error: message });
    throw new Fault("internal", `failed to verify agent SVID: ${message}`, { code: "agent-svid-unusable" });
  }
}

/** The log level of the running agent. What it is now counts as the level at start. */
export function loggerApi({ logger }: AdminApiOptions): ServiceImplementation<LocalCaller> {
  const launch = logger.level;
  return service<NonNullable<(typeof AgentLoggerApi)["types"]>, LocalCaller>(AgentLoggerApi, {
    GetLogger: unary(async (_request, { auth }) => {
      loggerAsked(auth.log);
      return loggerToProto(logger.level, launch);
    }),
    SetLogLevel: unary(async ({ new_level }, { auth }) => {
      const level = logLevelFromProto(new_level);
      logLevelSet(auth.log, level);
      logger.level = level;
      return loggerToProto(level, launch);
    }),
    ResetLogLevel: unary(async (_request, { auth }) => {
      logLevelReset(auth.log, launch);
      logger.level = launch;
      return loggerToProto(launch, launch);
    }),
  });
}
