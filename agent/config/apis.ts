import type { Values } from "../../src/runtime/config.ts";
import type { agentKeys } from "./keys.ts";

type AgentValues = Values<typeof agentKeys>["agent"];

export interface SdsConfig {
  readonly names: { readonly svid: string; readonly bundle: string; readonly allBundles: string };
  readonly disableSpiffeCertValidation: boolean;
}

export function sdsConfig({ sds }: Pick<AgentValues, "sds">): SdsConfig {
  return {
    names: { svid: sds.default_svid_name, bundle: sds.default_bundle_name, allBundles: sds.default_all_bundles_name },
    disableSpiffeCertValidation: sds.disable_spiffe_cert_validation,
  };
}

/** Calls per second by SPIRE's name of the method; 0 is no limit. */
export type RateLimitConfig = AgentValues["experimental"]["ratelimit"];
