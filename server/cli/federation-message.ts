import type { FederationRelationship } from "../../src/rpc/gen/spire/api/types/FederationRelationship.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { FlagSpecs, FlagValues } from "../../src/runtime/flags.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { parseSpiffeId, trustDomainOf } from "../../src/spiffe/id.ts";
import { readInput } from "./input.ts";
import { inContext, withContext } from "./match.ts";
import { BUNDLE_FORMATS, type BundleFormat, bundleFromData } from "./trust-bundle.ts";

const PROFILES = ["https_web", "https_spiffe"] as const;

/** The flags of `federation create` and `federation update`. */
export const relationshipFlags = {
  trustDomain: {
    type: "string",
    doc: "Name of the trust domain to federate with (e.g., example.org)",
    default: "",
    complete: "relationship",
  },
  bundleEndpointURL: { type: "string", doc: "URL of its SPIFFE bundle endpoint (https)", default: "" },
  bundleEndpointProfile: {
    type: "string",
    doc: 'Endpoint profile type (either "https_web" or "https_spiffe")',
    default: "",
    complete: PROFILES,
  },
  endpointSpiffeID: {
    type: "string",
    doc: "SPIFFE ID of the bundle endpoint's server; only for the https_spiffe profile",
    default: "",
  },
  trustDomainBundlePath: {
    type: "string",
    doc: "Path to the trust domain bundle data (optional)",
    default: "",
    complete: "file",
  },
  trustDomainBundleFormat: {
    type: "string",
    doc: 'The format of the bundle data (optional). Either "pem" or "spiffe".',
    default: "pem",
    complete: BUNDLE_FORMATS,
  },
  data: {
    type: "string",
    doc: "Path to a file with federation relationships as JSON; '-' reads standard input",
    default: "",
    complete: "file",
  },
} as const satisfies FlagSpecs;

type Flags = FlagValues<typeof relationshipFlags>;

/** From the flags, or from the file that they name. Throws `invalid`. */
export async function relationshipsFrom(flags: Flags, io: Io): Promise<FederationRelationship[]> {
  if (flags.data === "") return [await relationshipFromFlags(flags, io)];
  const { data: _, trustDomainBundleFormat, ...others } = flags;
  const own = Object.keys(relationshipFlags).filter((name) => name in others) as (keyof typeof others)[];
  if (trustDomainBundleFormat !== "pem" || own.some((name) => flags[name] !== "")) {
    throw malformed(
      "cannot use other flags to specify relationship fields when 'data' flag is set",
      "write the fields in the data, or leave -data out",
    );
  }
  return relationshipsFromJson(await readInput(flags.data, io));
}

interface Fields {
  readonly trustDomain: string;
  readonly bundleEndpointURL: string;
  readonly bundleEndpointProfile: string;
  readonly endpointSpiffeId: string;
}

async function relationshipFromFlags(flags: Flags, io: Io): Promise<FederationRelationship> {
  const { relationship, bundleId } = relationshipOf({ ...flags, endpointSpiffeId: flags.endpointSpiffeID });
  if (flags.trustDomainBundlePath === "") return relationship;
  const text = await readInput(flags.trustDomainBundlePath, io).catch((error: unknown) => {
    throw withContext("cannot read bundle file", error);
  });
  const bundle = inContext("cannot parse bundle file", () =>
    bundleFromData({ text, format: formatOf(flags.trustDomainBundleFormat), id: bundleId }),
  );
  return { ...relationship, trust_domain_bundle: bundle };
}

/** Checks what SPIRE's command checks, in its words. A bundle is for the trust domain of the endpoint. */
function relationshipOf({ trustDomain, bundleEndpointURL, bundleEndpointProfile, endpointSpiffeId }: Fields): {
  readonly relationship: FederationRelationship;
  readonly bundleId: string;
} {
  if (trustDomain === "") throw malformed("trust domain is required", "add -trustDomain");
  if (bundleEndpointURL === "") throw malformed("bundle endpoint URL is required", "add -bundleEndpointURL https://…");
  const place = { trust_domain: trustDomain, bundle_endpoint_url: bundleEndpointURL };
  if (bundleEndpointProfile === "https_web") {
    return { relationship: { ...place, https_web: {} }, bundleId: trustDomain };
  }
  if (bundleEndpointProfile !== "https_spiffe") {
    throw malformed(
      `unknown bundle endpoint profile type: ${JSON.stringify(bundleEndpointProfile)}`,
      "choose https_web or https_spiffe",
    );
  }
  if (endpointSpiffeId === "") {
    throw malformed(
      "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set",
      "add -endpointSpiffeID spiffe://…",
    );
  }
  const id = inContext("cannot parse bundle endpoint SPIFFE ID", () => parseSpiffeId(endpointSpiffeId));
  return {
    relationship: { ...place, https_spiffe: { endpoint_spiffe_id: endpointSpiffeId } },
    bundleId: trustDomainOf(id),
  };
}

type Json = Readonly<Record<string, unknown>>;

/** `{"federationRelationships": […]}`, as SPIRE's `-data` takes it. */
function relationshipsFromJson(text: string): FederationRelationship[] {
  const hint =
    'write {"federationRelationships": [{"trustDomain": "other.org", "bundleEndpointURL": "https://…", "bundleEndpointProfile": "https_web"}]}';
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (error) {
    throw malformed(`failed to parse JSON: ${messageOf(error)}`, hint);
  }
  const list = (document as Json | null)?.["federationRelationships"];
  if (!Array.isArray(list)) throw malformed('the data has no list "federationRelationships"', hint);
  return list.map((item: unknown, index) =>
    inContext(`could not parse item ${index}`, () => relationshipFromJson(item as Json)),
  );
}

function relationshipFromJson(item: Json): FederationRelationship {
  const { relationship, bundleId } = relationshipOf({
    trustDomain: text(item, "trustDomain"),
    bundleEndpointURL: text(item, "bundleEndpointURL"),
    bundleEndpointProfile: text(item, "bundleEndpointProfile"),
    endpointSpiffeId: text(item, "endpointSPIFFEID"),
  });
  const data = item["trustDomainBundle"];
  if (data === undefined || data === null) return relationship;
  const format = formatOf(text(item, "trustDomainBundleFormat"));
  const bundle = inContext("cannot parse bundle raw message", () =>
    bundleFromData({ text: format === "pem" ? pemText(data) : JSON.stringify(data), format, id: bundleId }),
  );
  return { ...relationship, trust_domain_bundle: bundle };
}

function text(item: Json, name: string): string {
  // Go's decoder takes a field by its name in any case.
  const key = Object.keys(item).find((known) => known.toLowerCase() === name.toLowerCase());
  const value = key === undefined ? undefined : item[key];
  if (value === undefined || value === null) return "";
  if (typeof value === "string") return value;
  throw malformed(`${name} must be a string`, "see federation create --help");
}

function pemText(value: unknown): string {
  if (typeof value === "string") return value;
  throw malformed("a PEM bundle must be a string", 'write "trustDomainBundleFormat": "spiffe" for a bundle document');
}

function formatOf(word: string): BundleFormat {
  const format = BUNDLE_FORMATS.find((known) => known === word);
  if (format !== undefined) return format;
  throw malformed(`bundle format ${JSON.stringify(word)} is unsupported`, "choose pem or spiffe");
}

function malformed(message: string, hint: string): Fault {
  return new Fault("invalid", message, { code: "federation-data", hint });
}
