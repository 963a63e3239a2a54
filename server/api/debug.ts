import { parseCertificate } from "../../src/crypto/certificate.ts";
import { verifyChain } from "../../src/crypto/chain.ts";
import { nameText } from "../../src/crypto/name.ts";
import { idToProto } from "../../src/rpc/convert.ts";
import type {
  _spire_api_server_debug_v1_GetInfoResponse_Cert as CertMessage,
  GetInfoResponse,
} from "../../src/rpc/gen/spire/api/server/debug/v1/GetInfoResponse.ts";
import type { ServerDebugApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import { isSpiffeId, parseSpiffeId } from "../../src/spiffe/id.ts";
import type { X509Svid } from "../ca/issue.ts";
import type { Directory } from "../directory/authorized.ts";
import type { BundleStore, EntryStore, NodeStore } from "../store/store.ts";
import { attempt, checked, failure } from "./fail.ts";
import type { HandlersOf } from "./shapes.ts";

export interface DebugServiceParts {
  readonly nodes: Pick<NodeStore, "count">;
  readonly entries: Pick<EntryStore, "count">;
  readonly bundles: Pick<BundleStore, "count">;
  readonly directory: Pick<Directory, "ownBundle">;
  /** The server's own, as of now. */
  readonly serverSvid: () => X509Svid;
  readonly clock: Clock;
}

const CACHE_MS = 5000;

/** State of the server, for a person; counted at most once in five seconds. */
export function debugService(parts: DebugServiceParts): HandlersOf<typeof ServerDebugApi> {
  const { clock } = parts;
  const startedAt = clock.monotonic();
  let held: { readonly at: number; readonly info: Promise<GetInfoResponse> } | undefined;
  return {
    GetInfo: unary(async (_, { auth: { log } }) => {
      const now = clock.monotonic();
      if (held === undefined || now - held.at >= CACHE_MS) {
        const asked = { at: now, info: readInfo(parts, now - startedAt, log) };
        held = asked;
        asked.info.catch(() => {
          if (held === asked) held = undefined;
        });
      }
      return held.info;
    }),
  };
}

async function readInfo(parts: DebugServiceParts, uptimeMs: number, log: Log): Promise<GetInfoResponse> {
  const { nodes, entries, bundles } = parts;
  return {
    agents_count: await attempt(log, "failed to count agents", () => nodes.count({})),
    entries_count: await attempt(log, "failed to count entries", () => entries.count({})),
    federated_bundles_count: await attempt(log, "failed to count bundles", () => bundles.count()),
    svid_chain: chainOf(parts, log),
    uptime: Math.floor(uptimeMs / 1000),
  };
}

/** From the server's SVID to the root in the bundle. */
function chainOf({ directory, serverSvid, clock }: DebugServiceParts, log: Log): CertMessage[] {
  const bundle = directory.ownBundle.value;
  if (bundle === undefined) throw failure(log, "not_found", "trust domain bundle not found");
  const roots = bundle.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
  const chain = serverSvid().chain.map(parseCertificate);
  const path = checked(log, "failed verification against bundle", () => verifyChain({ chain, roots, at: clock.now() }));
  return path.map(({ uris: [uri = ""], notAfter, subject }) => ({
    id: isSpiffeId(uri) ? idToProto(parseSpiffeId(uri)) : null,
    expires_at: Math.floor(notAfter.getTime() / 1000),
    subject: nameText(subject),
  }));
}
