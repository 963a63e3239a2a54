/** How SPIRE's logs and metrics name a method. */
export interface RpcNames {
  /** Such as `entry.v1.Entry` for `/spire.api.server.entry.v1.Entry/GetEntry`. */
  readonly service: string;
  /** Such as `entry.v1.entry.get_entry`. */
  readonly metricKey: string;
}

const SERVICES: ReadonlyMap<string, string> = new Map([
  ["SpiffeWorkloadAPI", "WorkloadAPI"],
  ["envoy.service.secret.v3.SecretDiscoveryService", "SDS.v3"],
  ["grpc.health.v1.Health", "Health"],
  ["spire.api.server.logger.v1.Logger", "Logger"],
  ["spire.api.agent.logger.v1.Logger", "Logger"],
  ["spire.agent.debug.v1.Debug", "Debug"],
  ["spire.api.agent.delegatedidentity.v1.DelegatedIdentity", "DelegatedIdentity"],
]);
/** The rule of `snake` gives another name for this one. */
const METHODS: ReadonlyMap<string, string> = new Map([["SubscribeToX509SVIDs", "subscribe_to_x509_svids"]]);
const SERVER_PREFIX = /^spire\.api\.server\./;

const known = new Map<string, RpcNames>();

/** Only of methods that exist: what it returns is remembered. */
export function rpcNames(path: string): RpcNames {
  const held = known.get(path);
  if (held !== undefined) return held;
  const slash = path.lastIndexOf("/");
  const raw = path.slice(1, slash);
  const method = path.slice(slash + 1);
  const service = SERVICES.get(raw) ?? raw.replace(SERVER_PREFIX, "");
  const parts = [...service.split("."), METHODS.get(method) ?? method];
  const names = { service, metricKey: parts.map(snake).join(".") };
  known.set(path, names);
  return names;
}

/** An underscore before a capital that has a lower-case neighbour: `BatchNewX509SVID` is `batch_new_x509svid`. */
function snake(name: string): string {
  let out = "";
  for (const [index, character] of [...name].entries()) {
    const before = name[index - 1] ?? "";
    const after = name[index + 1] ?? "";
    const starts = /[A-Z]/.test(character) && after !== "" && (/[a-z]/.test(after) || /[a-z]/.test(before));
    if (index > 0 && starts && !out.endsWith("_")) out += "_";
    out += /[A-Za-z0-9]/.test(character) ? character.toLowerCase() : "_";
  }
  return out;
}
