import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import type { agentKeys, BundleFormat } from "./keys.ts";

/** How the agent first recognises its server. `none` is enough once the agent has attested. */
export type TrustBundleConfig =
  | { readonly kind: "path"; readonly path: string; readonly format: BundleFormat }
  | { readonly kind: "url"; readonly url: string; readonly format: BundleFormat; readonly rootsPath?: string }
  | { readonly kind: "insecure" }
  | { readonly kind: "none" };

type AgentValues = Values<typeof agentKeys>["agent"];

/** Exactly one source, with SPIRE's words when there's none or more. Without a file there may be none. */
export function trustBundleConfig(agent: AgentValues, hasFile: boolean, reader: ConfigReader): TrustBundleConfig {
  const { trust_bundle_path: path, trust_bundle_url: url, trust_bundle_format: format } = agent;
  const sources = {
    insecure_bootstrap: agent.insecure_bootstrap,
    trust_bundle_url: url !== undefined,
    trust_bundle_path: path !== undefined,
  };
  const named = Object.entries(sources).flatMap(([name, isSet]) => (isSet ? [name] : []));
  if (named.length > 1) reader.fault(`agent.${named[0]}`, tooMany(named));
  if (url !== undefined) checkUrl(url, reader);
  else if (agent.trust_bundle_url_roots_path !== undefined) {
    reader.fault(
      "agent.trust_bundle_url_roots_path",
      "if trust_bundle_url_roots_path is specified, so must be trust_bundle_url",
    );
  }
  if (agent.insecure_bootstrap) return { kind: "insecure" };
  if (url !== undefined) return { kind: "url", url, format, ...rootsOf(agent) };
  if (path !== undefined) return { kind: "path", path, format };
  if (hasFile)
    reader.fault("agent", "trust_bundle_path or trust_bundle_url must be configured unless insecure_bootstrap is set");
  return { kind: "none" };
}

function rootsOf({ trust_bundle_url_roots_path }: AgentValues): { readonly rootsPath?: string } {
  return trust_bundle_url_roots_path === undefined ? {} : { rootsPath: trust_bundle_url_roots_path };
}

function tooMany(names: readonly string[]): string {
  if (names.length === 2) return `only one of ${names.join(" or ")} can be specified, not both`;
  return `only one of ${names.slice(0, -1).join(", ")}, or ${names.at(-1)} can be specified, not the three options`;
}

function checkUrl(text: string, reader: ConfigReader): void {
  const url = URL.parse(text);
  if (url === null) reader.fault("agent.trust_bundle_url", "unable to parse trust bundle URL");
  else if (url.protocol !== "https:")
    reader.fault("agent.trust_bundle_url", "trust bundle URL must start with https://");
}
