import type { ConfigReader } from "../../src/runtime/config.ts";
import { block, duration, integer, named, parsed, text, unsupported } from "../../src/runtime/config-keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { filePath } from "../../src/runtime/program-config.ts";
import { checkEndpointUrl, type EndpointProfile, type FederationRelationship } from "../../src/spiffe/federation.ts";
import { parseSpiffeId, parseTrustDomainOrId, type TrustDomain } from "../../src/spiffe/id.ts";

/** How the server's own bundle is served. */
interface BundleEndpointConfig {
  readonly address: string;
  readonly port: number;
  readonly refreshHintSeconds: number;
  readonly profile:
    | { readonly type: "https_spiffe" }
    | {
        readonly type: "https_web";
        readonly certFile: string;
        readonly keyFile: string;
        readonly syncIntervalMs: number;
      };
}

export interface FederationConfig {
  /** Undefined when the bundle is not served. */
  readonly endpoint: BundleEndpointConfig | undefined;
  readonly relationships: readonly FederationRelationship[];
}

const PATH = "server.federation";
const url = parsed("URL", checkEndpointUrl);
const spiffeId = parsed("SPIFFE ID", parseSpiffeId, "could not parse endpoint SPIFFE ID");
const acme = unsupported("Certificates of a public authority by ACME; use serving_cert_file.");

export const federationKeys = block("Bundle endpoint and federation relationships.", {
  bundle_endpoint: block("Where the bundle of this trust domain is served, over HTTPS.", {
    address: text({ doc: "Address of the listener.", default: "0.0.0.0" }),
    port: integer(0, 65_535)({ doc: "Port of the listener; 0 takes one that is free. Required." }),
    refresh_hint: duration(
      1000,
      "1s",
    )({
      doc: "How often others should fetch the bundle.",
      default: 300_000,
      shown: "5m",
    }),
    acme,
    profile: block(
      'How the endpoint proves who it is: profile "https_spiffe" {}, the default, or profile "https_web" { … }.',
      {
        https_spiffe: block("By the server's X.509-SVID.", {}),
        https_web: block("By a certificate that browsers trust.", {
          acme,
          serving_cert_file: block("The certificate in files.", {
            cert_file_path: filePath({ doc: "Certificate chain, PEM." }),
            key_file_path: filePath({ doc: "Private key, PEM." }),
            file_sync_interval: duration(
              1000,
              "1s",
            )({
              doc: "How often the files are read.",
              default: 3_600_000,
              shown: "1h",
            }),
          }),
        }),
      },
    ),
  }),
  federates_with: named(
    'Foreign trust domains whose bundle is fetched: federates_with "example.test" { … }.',
    block("One of them.", {
      bundle_endpoint_url: url({ doc: "URL of the bundle endpoint. Required." }),
      bundle_endpoint_profile: block('bundle_endpoint_profile "https_web" {} or "https_spiffe" { … }. Required.', {
        https_web: block("The endpoint shows a certificate that this machine trusts.", {}),
        https_spiffe: block("The endpoint shows an X.509-SVID.", {
          endpoint_spiffe_id: spiffeId({ doc: "The SPIFFE ID that it has to have. Required." }),
        }),
      }),
    }),
  ),
});

type FederationValues = ReturnType<typeof federationKeys.read>;
type FederatesWith = FederationValues["federates_with"] extends ReadonlyMap<string, infer V> ? V : never;

/** Faults go to the reader. */
export function federationConfig(
  values: FederationValues,
  own: TrustDomain | undefined,
  reader: ConfigReader,
): FederationConfig {
  return {
    endpoint: endpointOf(values.bundle_endpoint, reader),
    relationships: [...values.federates_with].flatMap(([name, each]) => relationshipOf({ name, each, own, reader })),
  };
}

function endpointOf(
  values: FederationValues["bundle_endpoint"],
  reader: ConfigReader,
): BundleEndpointConfig | undefined {
  const path = `${PATH}.bundle_endpoint`;
  if (!reader.isSet(path)) return undefined;
  if (values.port === undefined) reader.fault(path, "federation.bundle_endpoint.port must be configured");
  const profile = endpointProfileOf(values.profile, `${path}.profile`, reader);
  if (values.port === undefined || profile === undefined) return undefined;
  const refreshHintSeconds = Math.ceil(values.refresh_hint / 1000);
  return { address: values.address, port: values.port, refreshHintSeconds, profile };
}

function endpointProfileOf(
  { https_web }: FederationValues["bundle_endpoint"]["profile"],
  path: string,
  reader: ConfigReader,
): BundleEndpointConfig["profile"] | undefined {
  const web = reader.isSet(`${path}.https_web`);
  const spiffe = reader.isSet(`${path}.https_spiffe`);
  if (!web && !spiffe && !reader.isSet(path)) {
    reader.warn(
      `${PATH}.bundle_endpoint`,
      'it has no profile, so the endpoint shows an X.509-SVID; add profile "https_spiffe" {}',
    );
    return { type: "https_spiffe" };
  }
  if (web === spiffe) {
    reader.fault(path, 'federation.bundle_endpoint needs one profile: profile "https_spiffe" {} or "https_web" { … }');
    return undefined;
  }
  if (!web) return { type: "https_spiffe" };
  const { cert_file_path: certFile, key_file_path: keyFile, file_sync_interval } = https_web.serving_cert_file;
  if (certFile !== undefined && keyFile !== undefined)
    return { type: "https_web", certFile, keyFile, syncIntervalMs: file_sync_interval };
  reader.fault(`${path}.https_web`, "serving_cert_file needs cert_file_path and key_file_path");
  return undefined;
}

interface Named {
  readonly name: string;
  readonly each: FederatesWith;
  readonly own: TrustDomain | undefined;
  readonly reader: ConfigReader;
}

/** All three parameters of SPIFFE Federation, section 5.1; none is derived from another. */
function relationshipOf({ name, each, own, reader }: Named): readonly FederationRelationship[] {
  const path = `${PATH}.federates_with.${name}`;
  const trustDomain = trustDomainOf(name, own, path, reader);
  const profile = profileOf(each.bundle_endpoint_profile, `${path}.bundle_endpoint_profile`, reader);
  const bundleEndpointUrl = each.bundle_endpoint_url;
  if (bundleEndpointUrl === undefined) reader.fault(path, `${path}.bundle_endpoint_url must be configured`);
  if (trustDomain === undefined || profile === undefined || bundleEndpointUrl === undefined) return [];
  return [{ trustDomain, bundleEndpointUrl, profile }];
}

function trustDomainOf(
  name: string,
  own: TrustDomain | undefined,
  path: string,
  reader: ConfigReader,
): TrustDomain | undefined {
  try {
    const trustDomain = parseTrustDomainOrId(name);
    if (trustDomain !== own) return trustDomain;
    reader.fault(path, "a trust domain cannot federate with itself");
  } catch (error) {
    reader.fault(path, `invalid trust domain in federates_with "${name}": ${Fault.from(error).message}`);
  }
  return undefined;
}

function profileOf(
  { https_spiffe }: FederatesWith["bundle_endpoint_profile"],
  path: string,
  reader: ConfigReader,
): EndpointProfile | undefined {
  const web = reader.isSet(`${path}.https_web`);
  if (web === reader.isSet(`${path}.https_spiffe`)) {
    reader.fault(path, `${path} must be one of "https_web" {} and "https_spiffe" { … }`);
    return undefined;
  }
  if (web) return { type: "https_web" };
  const { endpoint_spiffe_id: endpointSpiffeId } = https_spiffe;
  if (endpointSpiffeId !== undefined) return { type: "https_spiffe", endpointSpiffeId };
  reader.fault(`${path}.https_spiffe`, `${path}.https_spiffe.endpoint_spiffe_id must be configured`);
  return undefined;
}
