import { JWS_ALGORITHMS, type JwsAlgorithm, keyFits } from "../../src/crypto/jws.ts";
import { checkPublicKey } from "../../src/crypto/public-key.ts";
import { idToProto } from "../../src/rpc/convert.ts";
import type { BatchNewWITSVIDRequest__Output } from "../../src/rpc/gen/spire/api/server/svid/v1/BatchNewWITSVIDRequest.ts";
import type { _spire_api_server_svid_v1_BatchNewWITSVIDResponse_Result as WitResult } from "../../src/rpc/gen/spire/api/server/svid/v1/BatchNewWITSVIDResponse.ts";
import type { JWTSVID } from "../../src/rpc/gen/spire/api/types/JWTSVID.ts";
import type { SvidApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { type SpiffeId, type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import type { TokenIssuer, TokenSvid } from "../ca/tokens.ts";
import type { AuthorityUsage } from "../ca/usage.ts";
import * as events from "../events.ts";
import type { Authorization } from "./admission.ts";
import { newSvidFields } from "./audit-fields.ts";
import { type EntitlementParts, entitledEntry, whileEntitled } from "./entitled.ts";
import { attempt, checked, failure } from "./fail.ts";
import { type ProtoId, workloadId } from "./ids.ts";
import { inOrder, itemFailure, OK } from "./results.ts";
import { agentOf, type HandlersOf } from "./shapes.ts";

export interface TokenServiceParts extends EntitlementParts {
  readonly trustDomain: TrustDomain;
  readonly usage: Pick<AuthorityUsage, "token">;
  readonly tokenIssuer: Pick<TokenIssuer, "issueJwt" | "issueWit" | "jwtEnabled" | "witEnabled">;
}

type Served = "MintJWTSVID" | "NewJWTSVID" | "MintWITSVID" | "BatchNewWITSVID";

/** The token half of the SVID service. */
export function tokenSvids(parts: TokenServiceParts): Pick<HandlersOf<typeof SvidApi>, Served> {
  const { trustDomain, tokenIssuer } = parts;
  return {
    MintJWTSVID: unary(async ({ id, audience, ttl }, { auth }) => {
      const { log } = auth;
      mustBeEnabled(log, tokenIssuer.jwtEnabled, "JWT");
      const subject = checked(log, "invalid SPIFFE ID", () => workloadId(trustDomain, id));
      warnOfAudience(log, trustDomain, audience);
      return { svid: await signJwt(parts, { id: subject, audience, ttlSeconds: ttl, withJti: false }, auth) };
    }),
    NewJWTSVID: unary(async ({ entry_id, audience }, call) => {
      const { log } = call.auth;
      mustBeEnabled(log, tokenIssuer.jwtEnabled, "JWT");
      const agent = agentOf(call).id;
      const entry = await entitledEntry(parts, agent, entry_id, log);
      const { spiffeId, jwtSvidTtl, jwtSvidIncludeJti } = entry;
      const request = { id: spiffeId, audience, ttlSeconds: jwtSvidTtl, withJti: jwtSvidIncludeJti };
      const asking = { log: log.child({ entry_id: entry.id }), turn: call.auth.turn };
      const sign = () => signJwt(parts, request, asking);
      return { svid: await whileEntitled(parts, { agent, entry, log }, sign) };
    }),
    MintWITSVID: unary(async (request, { auth }) => {
      mustBeEnabled(auth.log, tokenIssuer.witEnabled, "WIT");
      return { svid: await mintWit(parts, request, auth) };
    }),
    BatchNewWITSVID: unary(async ({ params }, call) => {
      const { log } = call.auth;
      if (params.length === 0) throw failure(log, "invalid", "missing parameters");
      mustBeEnabled(log, tokenIssuer.witEnabled, "WIT");
      await call.auth.charge(params.length);
      const { id } = agentOf(call);
      const results = await inOrder(params, call, (param) => newWit(parts, id, param, call.auth));
      for (const [index, { status, svid }] of results.entries())
        call.auth.audit(status ?? OK, () => newSvidFields(params[index], svid));
      return { results };
    }),
  };
}

function mustBeEnabled(log: Log, enabled: boolean, name: string): void {
  if (!enabled) throw failure(log, "unimplemented", `${name} functionality is disabled`);
}

type Asking = Pick<Authorization, "log" | "turn">;

interface JwtWish {
  readonly id: SpiffeId;
  readonly audience: readonly string[];
  readonly ttlSeconds: number;
  readonly withJti: boolean;
}

async function signJwt(
  { tokenIssuer, usage }: TokenServiceParts,
  wish: JwtWish,
  { log, turn }: Asking,
): Promise<JWTSVID> {
  const audience = wish.audience.filter((value) => value !== "");
  if (audience.length === 0) throw failure(log, "invalid", "at least one audience is required");
  const svid = await attempt(log, "failed to sign JWT-SVID", () => tokenIssuer.issueJwt({ ...wish, audience }, turn));
  usage.token({ authorityId: svid.authorityId, notAfter: svid.expiresAt });
  events.jwtSvidSigned(log, svid, audience);
  return tokenMessage(svid);
}

/** A token for a whole trust domain, or for several services, can be used by one of them against another. JWT-17. */
function warnOfAudience(log: Log, trustDomain: TrustDomain, audience: readonly string[]): void {
  if (audience.length > 1) log.warn("JWT-SVID is minted for several audiences", { count: audience.length });
  if (audience.includes(trustDomainId(trustDomain)))
    log.warn("JWT-SVID is minted for the whole trust domain; name the service that it is for");
}

interface WitKey {
  readonly public_key: Uint8Array;
  readonly signing_algorithm: string;
}

async function mintWit(
  { trustDomain, tokenIssuer, usage }: TokenServiceParts,
  request: WitKey & { readonly id: ProtoId; readonly ttl: number },
  { log, turn }: Asking,
): Promise<JWTSVID> {
  const id = checked(log, "invalid SPIFFE ID", () => workloadId(trustDomain, request.id));
  const key = witKey(log, request, "invalid public key");
  const svid = await attempt(log, "failed to sign WIT-SVID", () =>
    tokenIssuer.issueWit({ id, ...key, ttlSeconds: request.ttl }, turn),
  );
  usage.token({ authorityId: svid.authorityId, notAfter: svid.expiresAt });
  events.witSvidSigned(log, svid);
  return tokenMessage(svid);
}

type NewWitParams = BatchNewWITSVIDRequest__Output["params"][number];

async function newWit(
  parts: TokenServiceParts,
  agent: SpiffeId,
  param: NewWitParams,
  { log, turn }: Asking,
): Promise<WitResult> {
  try {
    if (param.entry_id === "") throw failure(log, "invalid", "missing entry ID");
    if (param.public_key.length === 0) throw failure(log, "invalid", "missing public key");
    const entry = await entitledEntry(parts, agent, param.entry_id, log);
    const entryLog = log.child({ entry_id: entry.id });
    const key = witKey(entryLog, param, "malformed public key");
    const svid = await whileEntitled(parts, { agent, entry, log }, () =>
      attempt(entryLog, "failed to sign WIT-SVID", () =>
        parts.tokenIssuer.issueWit({ id: entry.spiffeId, ...key, ttlSeconds: entry.x509SvidTtl }, turn),
      ),
    );
    parts.usage.token({ authorityId: svid.authorityId, notAfter: svid.expiresAt });
    events.witSvidSigned(entryLog, svid);
    return { status: OK, svid: tokenMessage(svid) };
  } catch (error) {
    return { status: itemFailure(log, error) };
  }
}

/** The workload's own key, and what it will sign with. Throws `invalid` in SPIRE's words. */
function witKey(
  log: Log,
  { public_key: publicKey, signing_algorithm: wanted }: WitKey,
  malformed: string,
): { readonly publicKey: Uint8Array; readonly algorithm: JwsAlgorithm } {
  const algorithm = JWS_ALGORITHMS.find((known) => known === wanted);
  const key = checkedKey(log, publicKey, malformed);
  if (algorithm !== undefined && keyFits(algorithm, key)) return { publicKey, algorithm };
  const { namedCurve } = key.asymmetricKeyDetails ?? {};
  const kind = key.asymmetricKeyType === "rsa" ? "RSA" : (CURVES[namedCurve ?? ""] ?? key.asymmetricKeyType);
  throw failure(
    log,
    "invalid",
    "invalid signing algorithm or key type",
    new Fault("invalid", `unsupported signing algorithm for ${kind} key: ${wanted.slice(0, 32)}`, {
      code: "jws-algorithm",
    }),
  );
}

const CURVES: Readonly<Record<string, string>> = {
  prime256v1: "ec-p256",
  secp384r1: "ec-p384",
  secp521r1: "ec-p521",
};

function checkedKey(log: Log, publicKey: Uint8Array, malformed: string): ReturnType<typeof checkPublicKey> {
  try {
    return checkPublicKey(publicKey);
  } catch (error) {
    throw failure(log, isFault(error) ? error.kind : "invalid", malformed, error);
  }
}

function tokenMessage({ id, token, issuedAt, expiresAt }: TokenSvid): JWTSVID {
  return { token, id: idToProto(id), expires_at: expiresAt.getTime() / 1000, issued_at: issuedAt.getTime() / 1000 };
}
