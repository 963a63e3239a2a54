import { type ConfigReader, type Key, type Keys, objectsOf, type Spot, type Values } from "./config.ts";
import { block, flag, ignored, integer, list, text, texts, unsupported } from "./config-keys.ts";
import type { ConfigValue } from "./config-value.ts";
import { withoutBrackets } from "./program-config.ts";

/** What the program shows a Prometheus server and asks of it; SPIFFE IDs as the program reads them. */
export type PrometheusTls<Id extends string> = {
  /** Clients with one of these IDs only; none: any client, unless `clientCaFile` says otherwise. */
  readonly authorizedIds: readonly Id[];
} & ({ readonly useSvid: true } | { readonly useSvid: false; readonly files: TlsFiles });

interface TlsFiles {
  readonly certFile: string;
  readonly keyFile: string;
  /** Clients must show a certificate of these authorities. */
  readonly clientCaFile?: string;
}

export interface TelemetrySettings<Id extends string> {
  readonly prometheus?: { readonly host: string; readonly port: number; readonly tls?: PrometheusTls<Id> };
  /** `host:port` each. */
  readonly statsd: readonly string[];
  readonly dogStatsd: readonly string[];
  /** Instead of the program's own. */
  readonly prefix?: string;
  readonly hostLabel: boolean;
  readonly trustDomainLabel: boolean;
  readonly allowedPrefixes: readonly string[];
  readonly blockedPrefixes: readonly string[];
  /** Undefined: all. */
  readonly allowedLabels?: readonly string[];
  readonly blockedLabels: readonly string[];
}

const sinkKeys = { address: text({ doc: "Where to send the numbers by UDP, as host:port." }) };

/** Keys of the `telemetry` section. `parseId` throws `invalid` for what is no SPIFFE ID. */
export function telemetryKeys<Id extends string>(parseId: (text: string) => Id) {
  const authorizedIds = list("SPIFFE IDs", parseId, "invalid authorized SPIFFE ID");
  return block("Metrics, under SPIRE's names.", {
    Prometheus: block("Serves metrics for a Prometheus server to fetch.", {
      host: text({ doc: "Address of the listener; anything but loopback is warned about.", default: "localhost" }),
      port: integer(0, 65_535)({ doc: "Port of the listener; 0 takes one that is free.", default: 0 }),
      tls: block("Serves by HTTPS instead of HTTP.", {
        cert_file: text({ doc: "Certificate chain, PEM. Read anew when it changes." }),
        key_file: text({ doc: "Private key of the certificate, PEM." }),
        client_ca_file: text({ doc: "Authorities of client certificates, PEM; clients must show one then." }),
        use_spire_svid: flag({ doc: "Shows the program's own X.509-SVID instead of cert_file.", default: false }),
        authorized_spiffe_ids: authorizedIds({
          doc: "SPIFFE IDs that may fetch metrics; clients must show an X.509-SVID then.",
          default: [],
          shown: "[]",
        }),
      }),
    }),
    Statsd: blocks("Servers that speak statsd, as a list of blocks.", sinkKeys),
    DogStatsd: blocks("Servers that speak statsd with Datadog's tags, as a list of blocks.", sinkKeys),
    M3: unsupported("Servers of M3; use Prometheus."),
    InMem: ignored("Metrics in memory, printed on a signal; use Prometheus."),
    MetricPrefix: text({ doc: "Goes before every metric.", shown: "spire_server or spire_agent" }),
    EnableTrustDomainLabel: flag({ doc: "Adds the label trust_domain to every metric.", default: false }),
    EnableHostnameLabel: flag({ doc: "Adds the label host to every metric.", default: true }),
    AllowedPrefixes: texts({ doc: "Prefixes of metrics to keep, within blocked ones.", default: [] }),
    BlockedPrefixes: texts({ doc: "Prefixes of metrics to leave out; the longest prefix decides.", default: [] }),
    AllowedLabels: texts({ doc: "The only labels to keep." }),
    BlockedLabels: texts({ doc: "Labels to leave out.", default: [] }),
  });
}

/** A block that may be there several times; no default. */
function blocks<K extends Keys>(doc: string, keys: K): Key<readonly Values<K>[]> {
  const read = (value: ConfigValue | undefined, { reader, path, at }: Spot): readonly Values<K>[] => {
    const objects = value === undefined ? [] : objectsOf(value);
    if (objects === undefined) reader.fault(at, `${path}: expected a list of blocks such as ${path} = [{ … }]`);
    return (objects ?? []).map((object) => reader.readKeys(keys, [object], { path, at: object.at }));
  };
  return { type: "list of blocks", doc, status: "works", keys, read };
}

type TelemetryValues<Id extends string> = ReturnType<typeof telemetryKeys<Id>> extends Key<infer V> ? V : never;

const PATH = "telemetry.Prometheus";

/** Reports what does not go together to the reader. */
export function telemetrySettings<Id extends string>(
  values: TelemetryValues<Id>,
  reader: ConfigReader,
): TelemetrySettings<Id> {
  const { MetricPrefix: prefix, AllowedLabels: allowedLabels } = values;
  const prometheus = reader.isSet(PATH) ? prometheusOf(values.Prometheus, reader) : undefined;
  return {
    ...(prometheus === undefined ? {} : { prometheus }),
    statsd: addressesOf(values.Statsd, "telemetry.Statsd", reader),
    dogStatsd: addressesOf(values.DogStatsd, "telemetry.DogStatsd", reader),
    ...(prefix === undefined ? {} : { prefix }),
    hostLabel: values.EnableHostnameLabel,
    trustDomainLabel: values.EnableTrustDomainLabel,
    allowedPrefixes: values.AllowedPrefixes,
    blockedPrefixes: values.BlockedPrefixes,
    ...(allowedLabels === undefined ? {} : { allowedLabels }),
    blockedLabels: values.BlockedLabels,
  };
}

const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|::1)$/;

function prometheusOf<Id extends string>(
  { host, port, tls }: TelemetryValues<Id>["Prometheus"],
  reader: ConfigReader,
): NonNullable<TelemetrySettings<Id>["prometheus"]> {
  const address = withoutBrackets(host);
  const secured = reader.isSet(`${PATH}.tls`) ? tlsOf(tls, reader) : undefined;
  const isAuthenticated =
    secured !== undefined &&
    (secured.authorizedIds.length > 0 || (!secured.useSvid && secured.files.clientCaFile !== undefined));
  if (!LOOPBACK.test(address) && !isAuthenticated) {
    reader.warn(`${PATH}.host`, `metrics can be read from other machines at ${address}; control access to this port`);
  }
  return { host: address, port, ...(secured === undefined ? {} : { tls: secured }) };
}

function tlsOf<Id extends string>(
  values: TelemetryValues<Id>["Prometheus"]["tls"],
  reader: ConfigReader,
): PrometheusTls<Id> | undefined {
  const { cert_file: certFile, key_file: keyFile, client_ca_file: clientCaFile, use_spire_svid: useSvid } = values;
  const authorizedIds = values.authorized_spiffe_ids;
  const at = `${PATH}.tls`;
  if (authorizedIds.length > 0 && clientCaFile !== undefined)
    reader.fault(at, "client_ca_file cannot be configured with authorized_spiffe_ids");
  if (useSvid && (certFile !== undefined || keyFile !== undefined))
    reader.fault(at, "cert_file and key_file cannot be configured when use_spire_svid is enabled");
  if (useSvid) {
    if (clientCaFile !== undefined) reader.fault(at, "client_ca_file cannot be configured with use_spire_svid");
    return { useSvid, authorizedIds };
  }
  if (certFile !== undefined && keyFile !== undefined) {
    return {
      useSvid: false,
      authorizedIds,
      files: { certFile, keyFile, ...(clientCaFile === undefined ? {} : { clientCaFile }) },
    };
  }
  reader.fault(at, "cert_file and key_file must both be configured unless use_spire_svid is enabled");
  return undefined;
}

function addressesOf(
  sinks: readonly { readonly address: string | undefined }[],
  path: string,
  reader: ConfigReader,
): readonly string[] {
  return sinks.flatMap(({ address }) => {
    if (address !== undefined && /^.+:\d{1,5}$/.test(address)) return [address];
    reader.fault(path, "address must be written as host:port");
    return [];
  });
}
