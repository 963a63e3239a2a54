import * as v from "valibot";
import { readJson, writeJson } from "./json.ts";

/*
 * A projected service account token, as SPIRE has it on the wire: spire-contract 11.5.
 */

export const K8S_PSAT = "k8s_psat";
const Evidence = v.object({ cluster: v.optional(v.string(), ""), token: v.optional(v.string(), "") });
export type K8sPsatEvidence = v.InferOutput<typeof Evidence>;

/** Throws `invalid`. */
export function readEvidence(payload: Uint8Array): K8sPsatEvidence {
  return readJson(Evidence, payload, "failed to unmarshal data payload");
}

export function writeEvidence(evidence: K8sPsatEvidence): Uint8Array {
  return writeJson(evidence);
}
