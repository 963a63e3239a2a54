import type { BatchNewX509SVIDRequest__Output } from "../../src/rpc/gen/spire/api/server/svid/v1/BatchNewX509SVIDRequest.ts";
import type { _spire_api_server_svid_v1_BatchNewX509SVIDResponse_Result as BatchResult } from "../../src/rpc/gen/spire/api/server/svid/v1/BatchNewX509SVIDResponse.ts";
import type { X509SVID } from "../../src/rpc/gen/spire/api/types/X509SVID.ts";
import type { SvidApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { checkDnsNames, checkWildcardOverlap } from "../../src/spiffe/dns-name.ts";
import { checkWorkloadId, parseSpiffeId, type SpiffeId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { Issuer } from "../ca/issue.ts";
import type { AuthorityUsage } from "../ca/usage.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import type { Authorization } from "./admission.ts";
import { newSvidFields } from "./audit-fields.ts";
import { publicKeyOf, readCsr } from "./csr.ts";
import { type EntitlementParts, entitledEntry, whileEntitled } from "./entitled.ts";
import { attempt, checked, failure } from "./fail.ts";
import { inOrder, itemFailure, OK } from "./results.ts";
import { agentOf, type HandlersOf, svidMessage } from "./shapes.ts";

export interface SvidServiceParts extends EntitlementParts {
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "authorizedEntry" | "bundle">;
  readonly issuer: Pick<Issuer, "issueWorkload" | "issueDownstream" | "mint">;
  readonly usage: Pick<AuthorityUsage, "workloadSvid" | "downstreamCa" | "endOf">;
}

type Served = "BatchNewX509SVID" | "MintX509SVID" | "NewDownstreamX509CA";

export function svidService(parts: SvidServiceParts): Pick<HandlersOf<typeof SvidApi>, Served> {
  return {
    BatchNewX509SVID: unary(async ({ params }, call) => {
      const { log } = call.auth;
      if (params.length === 0) throw failure(log, "invalid", "missing parameters");
      await call.auth.charge(params.length);
      const { id } = agentOf(call);
      const results = await inOrder(params, call, (param) => newSvid(parts, id, param, call.auth));
      for (const [index, { status, svid }] of results.entries())
        call.auth.audit(status ?? OK, () => newSvidFields(params[index], svid));
      return { results };
    }),
    MintX509SVID: unary(async ({ csr, ttl }, call) => ({ svid: await mint(parts, csr, ttl, call.auth) })),
    NewDownstreamX509CA: unary(async ({ csr, preferred_ttl }, { auth: { log, turn }, caller }) => {
      const publicKey = await publicKeyOf(log, csr, "malformed CSR");
      const ca = await attempt(log, "failed to sign downstream X.509 CA", () =>
        parts.issuer.issueDownstream({ publicKey, ttlSeconds: preferred_ttl }, turn),
      );
      if (caller.peer !== undefined) parts.usage.downstreamCa(caller.peer.id, ca);
      events.downstreamSigned(log, ca);
      const bundle = parts.directory.bundle(parts.trustDomain);
      if (bundle === undefined) throw failure(log, "not_found", "bundle not found");
      return {
        ca_cert_chain: ca.chain.map((der) => Buffer.from(der)),
        x509_authorities: bundle.x509Authorities.map(({ asn1 }) => Buffer.from(asn1)),
      };
    }),
  };
}

type NewSvidParams = BatchNewX509SVIDRequest__Output["params"][number];

async function newSvid(
  parts: SvidServiceParts,
  agent: SpiffeId,
  param: NewSvidParams,
  auth: Authorization,
): Promise<BatchResult> {
  try {
    return { status: OK, svid: await signForEntry(parts, agent, param, auth) };
  } catch (error) {
    return { status: itemFailure(auth.log, error) };
  }
}

/** ID, DNS names and lifetime come from the entry, if the agent is entitled to it; only the key from the CSR (T-C1). */
async function signForEntry(
  parts: SvidServiceParts,
  agent: SpiffeId,
  param: NewSvidParams,
  { log, turn }: Authorization,
): Promise<X509SVID> {
  if (param.entry_id === "") throw failure(log, "invalid", "missing entry ID");
  if (param.csr.length === 0) throw failure(log, "invalid", "missing CSR");
  const entry = await entitledEntry(parts, agent, param.entry_id, log);
  const entryLog = log.child({ entry_id: entry.id, spiffe_id: entry.spiffeId });
  const publicKey = await publicKeyOf(entryLog, param.csr, "malformed CSR");
  const endsAt = parts.usage.endOf(agent, entry.id);
  const svid = await whileEntitled(parts, { agent, entry, log }, () =>
    attempt(entryLog, "failed to sign X509-SVID", () =>
      parts.issuer.issueWorkload({ entry, publicKey }, { ...turn, endsAt }),
    ),
  );
  parts.usage.workloadSvid(agent, entry.id, svid);
  events.entrySvidSigned(log, svid, entry);
  return svidMessage(svid);
}

const MINT_CSR = { malformed: "malformed CSR", badSignature: "failed to verify CSR signature" };

/** An administrator's wish: ID, DNS names and subject are the CSR's, within the rules. */
async function mint(
  { trustDomain, issuer }: SvidServiceParts,
  der: Uint8Array,
  ttlSeconds: number,
  { log, turn }: Authorization,
): Promise<X509SVID> {
  if (der.length === 0) throw failure(log, "invalid", "missing CSR");
  if (ttlSeconds < 0) throw failure(log, "invalid", "ttl must not be negative");
  const csr = await readCsr(log, der, MINT_CSR);
  const [uri, ...others] = csr.uris;
  if (uri === undefined) throw failure(log, "invalid", "CSR URI SAN is required");
  if (others.length > 0) throw failure(log, "invalid", "only one URI SAN is expected");
  const id = checked(log, "CSR URI SAN is invalid", () => parseSpiffeId(uri));
  checked(log, "CSR URI SAN is invalid", () => checkWorkloadId(id, trustDomain));
  const dnsNames = checked(log, "CSR DNS name is invalid", () => checkDnsNames(csr.dnsNames));
  checked(log, "CSR DNS name contains a wildcard that covers another non-wildcard name", () =>
    checkWildcardOverlap(dnsNames),
  );
  const { publicKey, subject } = csr;
  const svid = await attempt(log, "failed to sign X509-SVID", () =>
    issuer.mint({ id, publicKey, ttlSeconds, dnsNames, subject }, turn),
  );
  events.svidMinted(log, svid, dnsNames);
  return svidMessage(svid);
}
