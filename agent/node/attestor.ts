/**
 * The agent's half of a node attestor. One attestation calls `evidence` once and then `respond` for each challenge of
 * the server, in order. Knows nothing of gRPC.
 */
export interface NodeAttestor {
  /** As the server knows it, such as `join_token`. */
  readonly type: string;
  /** How often the node has to be attested anew, when that is more often than its SVID asks for. */
  readonly refreshMs?: number;
  /** Never empty. Throws when there is nothing to show. */
  evidence(signal: AbortSignal): Promise<Uint8Array>;
  respond(challenge: Uint8Array, signal: AbortSignal): Promise<Uint8Array>;
  /** Once for each attestation, however it ended. Never throws. */
  done?(): void | Promise<void>;
}
