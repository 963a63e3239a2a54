import { secondsFromProto, selectorsFromProto } from "../../src/rpc/convert.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { EntryMask__Output } from "../../src/rpc/gen/spire/api/types/EntryMask.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { checkDnsNames } from "../../src/spiffe/dns-name.ts";
import { checkHint, type EntryDraft } from "../../src/spiffe/entry.ts";
import { parseTrustDomainOrId, type TrustDomain } from "../../src/spiffe/id.ts";
import { memberId, workloadId } from "./ids.ts";

type Fields = Partial<Omit<EntryDraft, "id">>;
type MaskField = Exclude<keyof EntryMask__Output, "revision_number" | "created_at">;

/** How each field that a caller may set is read; fields that a mask leaves out are not even looked at. */
const READERS: Readonly<Record<MaskField, (proto: Entry__Output, trustDomain: TrustDomain) => Fields>> = {
  parent_id: (proto, trustDomain) => ({
    parentId: within("invalid parent ID", () => memberId(trustDomain, proto.parent_id)),
  }),
  spiffe_id: (proto, trustDomain) => ({
    spiffeId: within("invalid spiffe ID", () => workloadId(trustDomain, proto.spiffe_id)),
  }),
  selectors: ({ selectors }) => {
    if (selectors.length === 0) throw new Fault("invalid", "selector list is empty", { code: "selectors-missing" });
    return { selectors: selectorsFromProto(selectors) };
  },
  x509_svid_ttl: ({ x509_svid_ttl }) => ({ x509SvidTtl: x509_svid_ttl }),
  jwt_svid_ttl: ({ jwt_svid_ttl }) => ({ jwtSvidTtl: jwt_svid_ttl }),
  federates_with: ({ federates_with }) => ({
    federatesWith: within("invalid federated trust domain", () => [
      ...new Set(federates_with.map(parseTrustDomainOrId)),
    ]),
  }),
  admin: ({ admin }) => ({ admin }),
  downstream: ({ downstream }) => ({ downstream }),
  expires_at: ({ expires_at }) => ({ expiresAt: secondsFromProto(expires_at, "expires_at") }),
  dns_names: ({ dns_names }) => ({ dnsNames: within("invalid DNS name", () => checkDnsNames(dns_names)) }),
  store_svid: ({ store_svid }) => ({ storeSvid: store_svid }),
  hint: ({ hint }) => ({ hint: checkHint(hint) }),
  additional_attributes: ({ additional_attributes }) => ({
    disableX509SvidPrefetch: additional_attributes?.disable_x509_svid_prefetch ?? false,
    jwtSvidIncludeJti: additional_attributes?.jwt_svid_include_jti ?? false,
  }),
};

/** The fields of an update that its mask names; all of them without a mask. Throws `invalid`, in SPIRE's words. */
export function entryFields(trustDomain: TrustDomain, proto: Entry__Output, mask: EntryMask__Output | null): Fields {
  const wanted = Object.entries(READERS).filter(([field]) => mask === null || mask[field as MaskField]);
  return Object.assign({}, ...wanted.map(([, read]) => read(proto, trustDomain)));
}

function within<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    const { kind, message, code } = Fault.from(error);
    throw new Fault(kind, `${what}: ${message}`, { code, cause: error });
  }
}
