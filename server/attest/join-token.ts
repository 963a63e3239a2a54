import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { agentId, type SpiffeId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { JoinToken, TokenStore } from "../store/store.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";

export const JOIN_TOKEN = "join_token";

/** A token becomes one segment of an agent ID, so it is made of that alphabet and nothing else. */
const TOKEN = /^[A-Za-z0-9._-]{1,255}$/;

export interface JoinTokenOptions {
  readonly trustDomain: TrustDomain;
  readonly tokens: Pick<TokenStore, "consume">;
  readonly clock: Clock;
}

/**
 * A secret that a person made for one node: works for one key, whoever shows it first. That key may come again while the
 * token lasts, so that a lost answer costs nothing.
 */
export class JoinTokenAttestor implements NodeAttestor {
  readonly type = JOIN_TOKEN;
  readonly #options: JoinTokenOptions;

  constructor(options: JoinTokenOptions) {
    this.#options = options;
  }

  async attest(payload: Uint8Array, _challenge: Challenge, { keyHash }: AttestationContext): Promise<NodeClaim> {
    const { trustDomain, clock } = this.#options;
    const stored = await this.#consume(payload, keyHash);
    if (stored.expiresAt < clock.now()) {
      throw new Fault("invalid", "join token expired", {
        code: "join-token-expired",
        hint: "make a new one with: token generate",
      });
    }
    return { id: joinTokenAgentId(trustDomain, stored.token), selectors: [], canReattest: false };
  }

  /** What the peer sent only finds the record; the record decides (T-S3). */
  async #consume(payload: Uint8Array, keyHash: string): Promise<JoinToken> {
    const presented = readToken(payload);
    const stored = presented === undefined ? undefined : await this.#options.tokens.consume(presented, keyHash);
    if (stored === undefined || stored.token !== presented) {
      throw new Fault("invalid", "failed to attest: join token does not exist or has already been used", {
        code: "join-token-used",
        hint: "make a new one with: token generate",
      });
    }
    return stored;
  }
}

/** `spiffe://<td>/spire/agent/join_token/<token>`. Throws `invalid` for a token that is no path segment. */
export function joinTokenAgentId(trustDomain: TrustDomain, token: string): SpiffeId {
  if (!TOKEN.test(token) || token === "." || token === "..") {
    throw new Fault("invalid", "join token may hold only letters, numbers, dots, dashes and underscores", {
      code: "join-token-characters",
      hint: "leave the token out to have one made",
    });
  }
  return agentId(trustDomain, `${JOIN_TOKEN}/${token}`);
}

/** Undefined for bytes that cannot be a token, before anything is looked up. */
function readToken(payload: Uint8Array): string | undefined {
  if (payload.length > 255) return undefined;
  const text = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).toString("latin1");
  return TOKEN.test(text) && text !== "." && text !== ".." ? text : undefined;
}
