import type { KeyObject } from "node:crypto";
import { type JwsAlgorithm, jwsSigner, parseJws } from "../../src/crypto/jws.ts";
import type { KeyType, LocalSigner } from "../../src/crypto/key.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { confirmationOf } from "../../src/spiffe/wit-svid.ts";
import { rotationOfNew } from "../node/rotation.ts";
import type { SignedToken, WitRequest } from "../node/upstream.ts";
import type { CachedEntry } from "./entry.ts";
import { ReadyKeys } from "./ready-keys.ts";
import { type HeldToken, TokenCache, type TokenCacheOptions, type WantedToken, wrongToken } from "./tokens.ts";

/** A WIT-SVID with the key that was made for it here. */
export interface HeldWit extends HeldToken {
  /** Private JWK, JSON. */
  readonly privateJwk: string;
}

interface WitUpstream {
  signWit(request: WitRequest, signal: AbortSignal): Promise<SignedToken>;
}

export interface WitCacheOptions extends TokenCacheOptions {
  readonly upstream: WitUpstream;
  readonly keyType: KeyType;
}

/** WIT-SVIDs by entry and its version. Each renewal has a new key, so a key is never older than its token. */
export class WitCache extends TokenCache<WantedToken, HeldWit> {
  readonly #upstream: WitUpstream;
  readonly #keys: ReadyKeys;
  readonly #clock: Clock;

  constructor(options: WitCacheOptions) {
    super(options);
    this.#upstream = options.upstream;
    this.#keys = new ReadyKeys(options.keyType);
    this.#clock = options.clock;
  }

  /** Throws what the server answered, or `internal` when that was not what was asked for. */
  fetch(entry: CachedEntry, signal: AbortSignal): Promise<HeldWit> {
    const { id, createdAt, revisionNumber, spiffeId } = entry;
    return this.held({ entry, key: JSON.stringify([id, createdAt, revisionNumber, spiffeId]) }, signal);
  }

  protected override async attempt(wanted: WantedToken, deadlineMs: number, signal: AbortSignal): Promise<HeldWit> {
    const key = await this.#keys.take();
    const { algorithm } = jwsSigner(key);
    const request = { entryId: wanted.entry.id, publicKey: key.publicKey, algorithm, deadlineMs };
    const answer = await this.#upstream.signWit(request, signal);
    const { token, issuedAt, expiresAt } = answer;
    const rotation = rotationOfNew({ notBefore: issuedAt, notAfter: expiresAt }, { clock: this.#clock });
    const keyId = checkedKeyId(wanted.entry, answer, key);
    return Object.freeze({
      token,
      keyId,
      issuedAt,
      expiresAt,
      rotation,
      privateJwk: privateJwk(key.privateKey, algorithm),
    });
  }
}

/** The token is for this identity and for the key made here, or it is nothing to serve. */
function checkedKeyId({ spiffeId }: CachedEntry, { token, id }: SignedToken, key: LocalSigner): string {
  const { header, payload } = parseJws(token);
  if (id !== spiffeId || payload["sub"] !== spiffeId) throw wrongToken("the server signed a WIT-SVID for another ID");
  const confirmed = confirmationOf(payload).key.export({ type: "spki", format: "der" });
  if (Buffer.compare(confirmed, key.publicKey) !== 0) throw wrongToken("the server signed a WIT-SVID for another key");
  if (typeof header["kid"] !== "string") throw wrongToken("the server signed a WIT-SVID without a key ID");
  return header["kid"];
}

function privateJwk(key: KeyObject, alg: JwsAlgorithm): string {
  return JSON.stringify({ ...key.export({ format: "jwk" }), alg });
}
