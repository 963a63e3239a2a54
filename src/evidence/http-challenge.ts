import * as v from "valibot";
import { readJson, writeJson } from "./json.ts";

/*
 * The node serves a nonce over plain HTTP under its name, as SPIRE has it on the wire: spire-contract 11.5.
 */

export const HTTP_CHALLENGE = "http_challenge";

const Evidence = v.object({
  hostname: v.optional(v.string(), ""),
  agentname: v.optional(v.string(), ""),
  port: v.optional(v.pipe(v.number(), v.integer()), 0),
});
export type HttpChallengeEvidence = v.InferOutput<typeof Evidence>;

/** Throws `invalid`. What it says is the peer's. */
export function readEvidence(payload: Uint8Array): HttpChallengeEvidence {
  return readJson(Evidence, payload, "failed to unmarshal data");
}

export function writeEvidence(evidence: HttpChallengeEvidence): Uint8Array {
  return writeJson(evidence);
}

export function writeChallenge(nonce: string): Uint8Array {
  return writeJson({ nonce });
}

/** Throws `invalid`. */
export function readChallenge(challenge: Uint8Array): string {
  return readJson(v.object({ nonce: v.string() }), challenge, "unable to unmarshal challenge").nonce;
}

/** Where the nonce is served. */
export function challengePath(agentName: string): string {
  return `/.well-known/spiffe/nodeattestor/http_challenge/${agentName}/challenge`;
}
