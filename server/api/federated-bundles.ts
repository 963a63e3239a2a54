import { bundleToProto } from "../../src/rpc/convert.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { BundleMask__Output } from "../../src/rpc/gen/spire/api/types/BundleMask.ts";
import type { BundleApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { parseTrustDomainOrId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import type { BundleDeleteMode, BundleStore, PageRequest } from "../store/store.ts";
import { bundleFields } from "./audit-fields.ts";
import { batch } from "./batch.ts";
import { foreignBundle } from "./bundle-input.ts";
import { attempt, checked, failure, type Words } from "./fail.ts";
import { messageBytes, readPage } from "./pages.ts";
import { itemFailure, OK } from "./results.ts";
import type { HandlersOf } from "./shapes.ts";

export interface FederatedBundleParts {
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "bundle">;
  readonly bundles: Pick<BundleStore, "list" | "changeForeign" | "delete">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
}

type Served =
  | "ListFederatedBundles"
  | "GetFederatedBundle"
  | "BatchCreateFederatedBundle"
  | "BatchUpdateFederatedBundle"
  | "BatchSetFederatedBundle"
  | "BatchDeleteFederatedBundle";
type Mask = BundleMask__Output | null;

/** Bundles can be large: fewer of them are read at once. */
const BUNDLES_AT_ONCE = 100;

/** Bundles of foreign trust domains. The own one cannot be reached by these methods (T-F1). */
export function federatedBundles(parts: FederatedBundleParts): Pick<HandlersOf<typeof BundleApi>, Served> {
  const { trustDomain, directory, bundles, caughtUp } = parts;
  return {
    ListFederatedBundles: unary(async ({ output_mask, page_size, page_token }, { auth: { log } }) => {
      const read = async (page: PageRequest) => {
        const { items, nextPageToken } = await bundles.list({ except: trustDomain }, page);
        return { items: items.map((bundle) => bundleToProto(bundle, output_mask)), nextPageToken };
      };
      const { items, nextPageToken } = await attempt(log, "failed to list bundles", () =>
        readPage(page_size, page_token, { read, sizeOf: messageBytes, maxItems: BUNDLES_AT_ONCE }),
      );
      return { bundles: [...items], next_page_token: nextPageToken };
    }),
    GetFederatedBundle: unary(async (request, { auth }) => {
      const log = auth.log.child({ trust_domain_id: shown(request.trust_domain) });
      const refused = "getting a federated bundle for the server's own trust domain is not allowed";
      const bundle = directory.bundle(foreign(log, trustDomain, request.trust_domain, refused));
      if (bundle === undefined) throw failure(log, "not_found", "bundle not found");
      return bundleToProto(bundle, request.output_mask);
    }),
    BatchCreateFederatedBundle: unary(async ({ bundle, output_mask }, call) => {
      const work = (proto: Bundle__Output) =>
        store(parts, CREATE, { proto, input: null, output: output_mask }, call.auth.log);
      return { results: await batch(call, bundle, { work, audit: bundleFields, caughtUp }) };
    }),
    BatchUpdateFederatedBundle: unary(async ({ bundle, input_mask, output_mask }, call) => {
      const work = (proto: Bundle__Output) =>
        store(parts, UPDATE, { proto, input: input_mask, output: output_mask }, call.auth.log);
      return { results: await batch(call, bundle, { work, audit: bundleFields, caughtUp }) };
    }),
    BatchSetFederatedBundle: unary(async ({ bundle, output_mask }, call) => {
      const work = (proto: Bundle__Output) =>
        store(parts, SET, { proto, input: null, output: output_mask }, call.auth.log);
      return { results: await batch(call, bundle, { work, audit: bundleFields, caughtUp }) };
    }),
    BatchDeleteFederatedBundle: unary(async ({ trust_domains, mode }, call) => {
      const deletion = deleteMode(call.auth.log, mode);
      const log = call.auth.log.child({ delete_federated_bundle_mode: deletion });
      const work = (name: string) => remove(parts, name, deletion, log);
      const fields = (name: string) => ({ trust_domain_id: shown(name), mode: deletion });
      return { results: await batch(call, trust_domains, { work, audit: fields, caughtUp }) };
    }),
  };
}

/** What one way of storing a bundle does when there is, or is not, one already; and how SPIRE words it. */
interface Way {
  readonly refused: string;
  readonly words: Words;
  /** Throws when this way is not open. */
  readonly check: (current: Bundle | undefined) => void;
  readonly done: (log: Log) => void;
}

const CREATE: Way = {
  refused: "creating a federated bundle for the server's own trust domain is not allowed",
  words: { already_exists: "bundle already exists", otherwise: "unable to create bundle" },
  check: (current) => {
    if (current !== undefined) throw new Fault("already_exists", "bundle already exists");
  },
  done: events.federatedBundleCreated,
};
const UPDATE: Way = {
  refused: "updating a federated bundle for the server's own trust domain is not allowed",
  words: { not_found: "bundle not found", otherwise: "failed to update bundle" },
  check: (current) => {
    if (current === undefined) throw new Fault("not_found", "bundle not found");
  },
  done: events.federatedBundleUpdated,
};
const SET: Way = {
  refused: "setting a federated bundle for the server's own trust domain is not allowed",
  words: { otherwise: "failed to set bundle" },
  check: () => {},
  done: events.federatedBundleSet,
};

interface Item {
  readonly proto: Bundle__Output;
  readonly input: Mask;
  readonly output: Mask;
}

async function store(
  { trustDomain, bundles }: FederatedBundleParts,
  way: Way,
  { proto, input, output }: Item,
  outer: Log,
) {
  const log = outer.child({ trust_domain_id: shown(proto.trust_domain) });
  try {
    const name = foreign(log, trustDomain, proto.trust_domain, way.refused);
    const given = checked(log, "failed to convert bundle", () => foreignBundle(proto));
    const stored = await attempt(log, way.words, () =>
      bundles.changeForeign(name, (current) => {
        way.check(current);
        return current === undefined ? given : { ...current, ...masked(given, input) };
      }),
    );
    way.done(log);
    return { status: OK, bundle: bundleToProto(stored, output) };
  } catch (error) {
    return { status: itemFailure(log, error) };
  }
}

async function remove(
  { trustDomain, bundles }: FederatedBundleParts,
  name: string,
  mode: BundleDeleteMode,
  outer: Log,
) {
  const log = outer.child({ trust_domain_id: shown(name) });
  const words = { not_found: "bundle not found", otherwise: "failed to delete federated bundle" };
  try {
    const domain = foreign(log, trustDomain, name, "removing the bundle for the server trust domain is not allowed");
    await attempt(log, words, () => bundles.delete(domain, mode));
    return { status: OK, trust_domain: name };
  } catch (error) {
    return { status: itemFailure(log, error), trust_domain: name };
  }
}

/** A name as it arrived, as long as one can be. */
function shown(name: string): string {
  return name.slice(0, 255);
}

/** A trust domain other than the server's own. Throws `invalid`. */
function foreign(log: Log, own: TrustDomain, name: string, refused: string): TrustDomain {
  const trustDomain = checked(log, "trust domain argument is not valid", () => parseTrustDomainOrId(name));
  if (trustDomain === own) throw failure(log, "invalid", refused);
  return trustDomain;
}

/** The parts of a bundle that the mask names; all of them without a mask. */
function masked(bundle: Bundle, mask: Mask): Partial<Bundle> {
  const { x509Authorities, jwtAuthorities, witAuthorities, refreshHint, sequenceNumber } = bundle;
  return {
    ...(mask === null || mask.x509_authorities ? { x509Authorities } : {}),
    ...(mask === null || mask.jwt_authorities ? { jwtAuthorities } : {}),
    ...(mask === null || mask.wit_authorities ? { witAuthorities } : {}),
    ...(mask === null || mask.refresh_hint ? { refreshHint } : {}),
    ...(mask === null || mask.sequence_number ? { sequenceNumber } : {}),
  };
}

const MODES: Readonly<Record<string, BundleDeleteMode>> = {
  RESTRICT: "restrict",
  DELETE: "delete",
  DISSOCIATE: "dissociate",
};

/** Numbers that the enumeration does not name arrive as they are. */
function deleteMode(log: Log, mode: unknown): BundleDeleteMode {
  const known = typeof mode === "string" ? MODES[mode] : undefined;
  if (known !== undefined) return known;
  throw failure(
    log,
    "invalid",
    "failed to parse deletion mode",
    new Fault("invalid", `unhandled delete mode "${mode}"`),
  );
}
