import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import type { agentKeys, BundleFormat } from "./keys.ts";

/** How the agent first recognises its server. `none` is enough once the agent has attested. */
export type TrustBundleConfig =
  | { readonly kind: "path"; readonly path: string; readonly format: BundleFormat }
  | { readonly kind: "url"; readonly url: string; readonly format: BundleFormat; readonly rootsPath?: string }
  | { readonly kind: "unix_socket"; readonly url: string; readonly format: BundleFormat; readonly socketPath: string }
  | { readonly kind: "workload_api"; readonly socket: string }
  | { readonly kind: "insecure" }
  | { readonly kind: "none" };

/** When the agent gives its trust bundle up and begins anew. */
export interface RebootstrapConfig {
  readonly mode: "never" | "auto" | "always";
  readonly delayMs: number;
}

type AgentValues = Values<typeof agentKeys>["agent"];

/** Exactly one source, with SPIRE's words when there's none or more. Without a file there may be none. */
export function trustBundleConfig(agent: AgentValues, hasFile: boolean, reader: ConfigReader): TrustBundleConfig {
  const { trust_bundle_path: path, trust_bundle_url: url, trust_bundle_format: format } = agent;
  const { trust_bundle_unix_socket: socketPath, trust_bundle_spiffe_workload_api: socket } = agent;
  checkSources(agent, reader);
  if (agent.insecure_bootstrap) return { kind: "insecure" };
  if (socket !== undefined) return { kind: "workload_api", socket };
  if (url !== undefined && socketPath !== undefined) return { kind: "unix_socket", url, format, socketPath };
  if (url !== undefined) return { kind: "url", url, format, ...rootsOf(agent) };
  if (path !== undefined) return { kind: "path", path, format };
  if (hasFile)
    reader.fault(
      "agent",
      "trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set",
    );
  return { kind: "none" };
}

/** Throws away trust for none: that the first server to answer would be believed again is refused, as in SPIRE. */
export function rebootstrapConfig(agent: AgentValues, reader: ConfigReader): RebootstrapConfig {
  const { rebootstrap_mode: mode, rebootstrap_delay: delayMs } = agent;
  if (mode !== "never" && agent.insecure_bootstrap)
    reader.fault("agent.rebootstrap_mode", "insecure_bootstrap option can not be used with rebootstrapping");
  return { mode, delayMs };
}

function checkSources(agent: AgentValues, reader: ConfigReader): void {
  const { trust_bundle_url: url, trust_bundle_unix_socket: socketPath } = agent;
  const sources = {
    insecure_bootstrap: agent.insecure_bootstrap,
    trust_bundle_url: url !== undefined,
    trust_bundle_path: agent.trust_bundle_path !== undefined,
    trust_bundle_spiffe_workload_api: agent.trust_bundle_spiffe_workload_api !== undefined,
  };
  const named = Object.entries(sources).flatMap(([name, isSet]) => (isSet ? [name] : []));
  if (named.length > 1) reader.fault(`agent.${named[0]}`, tooMany(named));
  if (url !== undefined) checkUrl(url, socketPath === undefined ? "https:" : "http:", reader);
  for (const key of ["trust_bundle_url_roots_path", "trust_bundle_unix_socket"] as const) {
    if (url !== undefined || agent[key] === undefined) continue;
    reader.fault(
      `agent.${key}`,
      agent.trust_bundle_spiffe_workload_api === undefined
        ? `if ${key} is specified, so must be trust_bundle_url`
        : `${key} can not be used with trust_bundle_spiffe_workload_api`,
    );
  }
}

function rootsOf({ trust_bundle_url_roots_path }: AgentValues): { readonly rootsPath?: string } {
  return trust_bundle_url_roots_path === undefined ? {} : { rootsPath: trust_bundle_url_roots_path };
}

function tooMany(names: readonly string[]): string {
  if (names.length === 2) return `only one of ${names.join(" or ")} can be specified, not both`;
  return `only one of ${names.slice(0, -1).join(", ")}, or ${names.at(-1)} can be specified, not the three options`;
}

function checkUrl(text: string, protocol: "https:" | "http:", reader: ConfigReader): void {
  const url = URL.parse(text);
  if (url === null) reader.fault("agent.trust_bundle_url", "unable to parse trust bundle URL");
  else if (url.protocol !== protocol) {
    const through = protocol === "http:" ? " when used with trust bundle unix socket" : "";
    reader.fault("agent.trust_bundle_url", `trust bundle URL must start with ${protocol}//${through}`);
  } else if (protocol === "http:") checkQuery(url, reader);
}

/** The agent adds parameters of these names. */
function checkQuery(url: URL, reader: ConfigReader): void {
  for (const prefix of ["spiffe-", "spire-"]) {
    if ([...url.searchParams.keys()].some((name) => name.startsWith(prefix)))
      reader.fault("agent.trust_bundle_url", `trust_bundle_url query params can not start with ${prefix}`);
  }
}
