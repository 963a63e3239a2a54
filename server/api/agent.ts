import { randomUUID } from "node:crypto";
import { idToProto } from "../../src/rpc/convert.ts";
import type { Agent } from "../../src/rpc/gen/spire/api/types/Agent.ts";
import type { AgentMask__Output } from "../../src/rpc/gen/spire/api/types/AgentMask.ts";
import type { AgentApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { agentDenied } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { EntryDraft } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import type { NodeAttestation } from "../attest/attest.ts";
import { joinTokenAgentId } from "../attest/join-token.ts";
import type { Issuer } from "../ca/issue.ts";
import { isBanned } from "../directory/agents.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import type { AttestedNode, NodeStore, TokenStore } from "../store/store.ts";
import type { Authorization } from "./admission.ts";
import { attestAgent } from "./attest-agent.ts";
import { publicKeyOf } from "./csr.ts";
import { attempt, checked, failure, passedOn } from "./fail.ts";
import { nodeFilter } from "./filters.ts";
import { CONTROL, type ProtoId, requestedAgent, workloadId } from "./ids.ts";
import { nodeBytes, readPage } from "./pages.ts";
import { agentOf, type HandlersOf, svidMessage } from "./shapes.ts";

export interface AgentServiceParts {
  readonly trustDomain: TrustDomain;
  readonly nodes: NodeStore;
  readonly directory: Pick<Directory, "node">;
  readonly tokens: Pick<TokenStore, "create">;
  readonly attestation: Pick<NodeAttestation, "attest">;
  readonly issuer: Pick<Issuer, "issueAgent">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
  readonly clock: Clock;
}

/** SPIRE's column. */
const MAX_VERSION_BYTES = 255;

export function agentService(parts: AgentServiceParts): HandlersOf<typeof AgentApi> {
  const { trustDomain, nodes } = parts;
  return {
    CountAgents: unary(async ({ filter }, { auth: { log } }) => {
      const wanted = nodeFilter(log, filter);
      return { count: await attempt(log, "failed to count agents", () => nodes.count(wanted)) };
    }),
    ListAgents: unary(async ({ filter, output_mask, page_size, page_token }, { auth: { log } }) => {
      const wanted = nodeFilter(log, filter);
      const read = { read: (page: { size: number; token: string }) => nodes.list(wanted, page), sizeOf: nodeBytes };
      const { items, nextPageToken } = await attempt(log, "failed to list agents", () =>
        readPage(page_size, page_token, read),
      );
      return { agents: items.map((node) => agentMessage(node, output_mask)), next_page_token: nextPageToken };
    }),
    GetAgent: unary(async ({ id, output_mask }, { auth: { log } }) => {
      const agent = requestedAgent(log, trustDomain, id);
      const node = await attempt(log, "failed to fetch agent", () => nodes.find(agent));
      if (node === undefined) throw failure(log, "not_found", "agent not found");
      return agentMessage(node, output_mask);
    }),
    DeleteAgent: unary(async ({ id }, { auth: { log } }) => {
      const agent = requestedAgent(log, trustDomain, id);
      const node = await attempt(log, "failed to remove agent", () => nodes.delete(agent));
      if (node === undefined) throw failure(log, "not_found", "agent not found");
      events.agentDeleted(log, agent);
      await parts.caughtUp(log);
      return {};
    }),
    BanAgent: unary(async ({ id }, { auth: { log } }) => {
      const agent = requestedAgent(log, trustDomain, id);
      await existing(log, "failed to ban agent", () => nodes.ban(agent));
      events.agentBanned(log, agent);
      await parts.caughtUp(log);
      return {};
    }),
    AttestAgent: attestAgent(parts),
    RenewAgent: unary(async ({ params }, call) => ({ svid: await renew(parts, params, call.auth, agentOf(call)) })),
    PostStatus: unary(async ({ agent_version }, call) => {
      call.auth.note(() => ({ spiffe_id: call.caller.peer?.id }));
      if (agent_version !== "") await postStatus(parts, agent_version, call.auth.log, agentOf(call).id);
      return {};
    }),
    CreateJoinToken: unary((request, { auth: { log } }) => createJoinToken(parts, request, log)),
  };
}

async function existing<T>(log: Log, message: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw isFault(error, "not_found") ? failure(log, "not_found", "agent not found") : passedOn(log, message, error);
  }
}

/** The new certificate goes to the caller's own record, and only while its serial is still accepted there (T-N14). */
async function renew(
  parts: AgentServiceParts,
  params: { readonly csr: Uint8Array } | null,
  { log, turn }: Authorization,
  caller: ReturnType<typeof agentOf>,
) {
  const { nodes, issuer } = parts;
  const { id } = caller;
  const node = await attempt(log, "failed to fetch agent", () => nodes.find(id));
  if (node === undefined) throw failure(log, "not_found", "agent not found");
  if (node.canReattest) throw agentDenied("must_reattest", "agent must reattest instead of renew");
  events.agentRenewing(log);
  if (params === null) throw failure(log, "invalid", "params cannot be nil");
  if (params.csr.length === 0) throw failure(log, "invalid", "missing CSR");
  const publicKey = await publicKeyOf(log, params.csr, "failed to parse CSR");
  const svid = await attempt(log, "failed to sign X509 SVID", () =>
    issuer.issueAgent({ id, publicKey }, { ...turn, endsAt: caller.expiresAt }),
  );
  const renewal = { currentSerial: caller.serialNumber, serialNumber: svid.serialNumber, expiresAt: svid.notAfter };
  await record(log, () => nodes.renew(id, renewal));
  await parts.caughtUp(log);
  return svidMessage(svid);
}

/** Between the check of the caller and this one, another renewal or attestation may have replaced its serial. */
async function record(log: Log, renew: () => Promise<unknown>): Promise<void> {
  try {
    await existing(log, "failed to update agent", renew);
  } catch (error) {
    throw isFault(error, "denied") ? agentDenied("not_active", error.message) : error;
  }
}

async function postStatus(
  { nodes, directory, caughtUp }: AgentServiceParts,
  version: string,
  log: Log,
  id: SpiffeId,
): Promise<void> {
  if (Buffer.byteLength(version) > MAX_VERSION_BYTES)
    throw failure(log, "invalid", `agent version is too long (max ${MAX_VERSION_BYTES} characters)`);
  if (CONTROL.test(version)) throw failure(log, "invalid", "agent version contains control characters");
  if (directory.node(id)?.agentVersion !== version) {
    await existing(log, "failed to update agent", () => nodes.setAgentVersion(id, version));
    await caughtUp(log);
  }
  events.agentStatusPosted(log, id, version);
}

interface JoinTokenRequest {
  readonly ttl: number;
  readonly token: string;
  readonly agent_id: ProtoId;
}

async function createJoinToken(
  parts: AgentServiceParts,
  request: JoinTokenRequest,
  log: Log,
): Promise<{ readonly value: string; readonly expires_at: number }> {
  const { trustDomain, tokens, clock } = parts;
  if (request.ttl < 1) {
    const message = "ttl is required, you must provide one";
    throw failure(log, "invalid", message, new Fault("invalid", message, { code: "join-token-ttl" }));
  }
  const alias =
    request.agent_id == null
      ? undefined
      : checked(log, "invalid agent ID", () => workloadId(trustDomain, request.agent_id));
  const token = request.token === "" ? randomUUID() : request.token;
  const tokenAgent = checked(log, "invalid token", () => joinTokenAgentId(trustDomain, token));
  const expiresAt = new Date(clock.now().getTime() + request.ttl * 1000);
  const entry = alias === undefined ? undefined : aliasEntry(alias, tokenAgent);
  await attempt(log, "failed to create token", () => tokens.create({ token, expiresAt }, entry));
  if (entry !== undefined) await parts.caughtUp(log);
  return { value: token, expires_at: Math.floor(expiresAt.getTime() / 1000) };
}

/** Gives the agent that will show the token a second name. Deleting that agent deletes the entry by this very shape. */
function aliasEntry(spiffeId: SpiffeId, parentId: SpiffeId): EntryDraft {
  return {
    id: "",
    spiffeId,
    parentId,
    selectors: [{ type: "spiffe_id", value: parentId }],
    x509SvidTtl: 0,
    jwtSvidTtl: 0,
    federatesWith: [],
    admin: false,
    downstream: false,
    storeSvid: false,
    expiresAt: 0,
    dnsNames: [],
    hint: "",
    disableX509SvidPrefetch: false,
    jwtSvidIncludeJti: false,
  };
}

/** Field by field, so that a mask can hide but never move anything (T-S9). */
function agentMessage(node: AttestedNode, mask: AgentMask__Output | null): Agent {
  const whole: Omit<Required<Agent>, "id"> = {
    attestation_type: node.attestationType,
    x509svid_serial_number: node.serialNumber,
    x509svid_expires_at: Math.floor(node.expiresAt.getTime() / 1000),
    selectors: node.selectors.map(({ type, value }) => ({ type, value })),
    banned: isBanned(node),
    can_reattest: node.canReattest,
    agent_version: node.agentVersion,
  };
  const shown = Object.entries(whole).filter(([field]) => mask === null || mask[field as keyof AgentMask__Output]);
  return { id: idToProto(node.id), ...Object.fromEntries(shown) };
}
