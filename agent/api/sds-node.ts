import type { Node__Output } from "../../src/rpc/gen/envoy/config/core/v3/Node.ts";

const DISABLE_KEY = "disable_spiffe_cert_validation";
/** As Go reads them. */
const BOOLS: ReadonlyMap<string, boolean> = new Map([
  ...["1", "t", "T", "true", "TRUE", "True"].map((text) => [text, true] as const),
  ...["0", "f", "F", "false", "FALSE", "False"].map((text) => [text, false] as const),
]);

/**
 * Whether this Envoy gets its roots for the SPIFFE certificate validator: it must know it (1.18 and later, or of an
 * unknown version), and neither the configuration nor its own metadata, which has the last word, may turn it off.
 */
export function usesSpiffeValidator(node: Node__Output | undefined, disabledByDefault: boolean): boolean {
  return !(disabledByMetadata(node) ?? disabledByDefault) && knowsSpiffeValidator(node);
}

function disabledByMetadata(node: Node__Output | undefined): boolean | undefined {
  const value = node?.metadata?.fields?.[DISABLE_KEY];
  if (value?.kind === "boolValue") return value.boolValue;
  return value?.kind === "stringValue" ? BOOLS.get(value.stringValue ?? "") : undefined;
}

function knowsSpiffeValidator(node: Node__Output | undefined): boolean {
  const version = node?.user_agent_build_version?.version;
  if (version === undefined || version === null) return true;
  return version.major_number > 1 || (version.major_number === 1 && version.minor_number > 17);
}
