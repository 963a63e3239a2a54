import { randomUUID } from "node:crypto";
import type { JwsAlgorithm } from "../../src/crypto/jws.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { checkWorkloadId, type SpiffeId, type TrustDomain } from "../../src/spiffe/id.ts";
import { signJwtSvid } from "../../src/spiffe/jwt-svid.ts";
import { signWitSvid } from "../../src/spiffe/wit-svid.ts";
import type { TokenSigningAuthority } from "./slots.ts";
import { type Turn, Turns } from "./turns.ts";

/** A JWT-SVID or WIT-SVID as issued. */
export interface TokenSvid {
  readonly id: SpiffeId;
  readonly token: string;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  /** The `kid` of its signer. */
  readonly authorityId: string;
  /** Why the life is shorter than asked for; absent when it is not. */
  readonly ttlReason?: string;
}

/** Who signs the tokens of one kind, and what they say of their issuer: empty for nothing. */
export interface TokenSource {
  /** The authority that may sign at this moment; throws when there is none. */
  readonly authorities: { signing(): TokenSigningAuthority };
  readonly issuer: string;
  readonly defaultTtlSeconds: number;
}

export interface TokenIssuerOptions {
  readonly trustDomain: TrustDomain;
  /** Undefined when JWT-SVIDs are disabled. */
  readonly jwt: TokenSource | undefined;
  /** Undefined when WIT-SVIDs are disabled. */
  readonly wit: TokenSource | undefined;
  /** The turns of everything that is signed, certificates too. Default: our own. */
  readonly turns?: Turns;
  /** Told of each signature. */
  readonly signed?: (what: "jwt_svid" | "wit_svid") => void;
  readonly clock: Clock;
}

export interface JwtRequest {
  readonly id: SpiffeId;
  readonly audience: readonly string[];
  /** 0 or less means the default. */
  readonly ttlSeconds: number;
  readonly withJti: boolean;
}

export interface WitRequest {
  readonly id: SpiffeId;
  /** SubjectPublicKeyInfo, DER, of the key that the token binds to. */
  readonly publicKey: Uint8Array;
  readonly algorithm: JwsAlgorithm;
  /** 0 or less means the default. */
  readonly ttlSeconds: number;
}

/** What the two kinds of token share before they are signed. */
interface Common {
  readonly subject: SpiffeId;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  readonly issuer?: string;
}

type Sign = (common: Common, authority: TokenSigningAuthority) => Promise<string>;

/**
 * The one door to the keys that sign tokens: the caller names whom a token is for, and the server decides the rest.
 * SPIFFE JWT-SVID, section 3; WIT-SVID, section 3.
 */
export class TokenIssuer {
  readonly #options: TokenIssuerOptions;
  readonly #turns: Turns;

  constructor(options: TokenIssuerOptions) {
    this.#options = options;
    this.#turns = options.turns ?? new Turns(options.clock);
  }

  get jwtEnabled(): boolean {
    return this.#options.jwt !== undefined;
  }

  get witEnabled(): boolean {
    return this.#options.wit !== undefined;
  }

  /** Throws `invalid` for an ID that no workload can have and without an audience; `unavailable` when nothing may sign. */
  async issueJwt({ id, audience, ttlSeconds, withJti }: JwtRequest, turn?: Turn): Promise<TokenSvid> {
    const source = enabled(this.#options.jwt, "JWT");
    const sign: Sign = (common, { id: keyId, key }) =>
      signJwtSvid({ ...common, audience, ...(withJti ? { jti: newTokenId() } : {}) }, { keyId, signer: key });
    const svid = await this.#issue(source, { id, ttlSeconds, turn }, sign);
    this.#options.signed?.("jwt_svid");
    return svid;
  }

  /** Throws `invalid` for an ID that no workload can have, and for a key that is weak or does not fit the algorithm. */
  async issueWit({ id, publicKey, algorithm, ttlSeconds }: WitRequest, turn?: Turn): Promise<TokenSvid> {
    const source = enabled(this.#options.wit, "WIT");
    const sign: Sign = (common, { id: keyId, key }) =>
      signWitSvid({ ...common, publicKey, algorithm }, { keyId, signer: key });
    const svid = await this.#issue(source, { id, ttlSeconds, turn }, sign);
    this.#options.signed?.("wit_svid");
    return svid;
  }

  async #issue(
    { authorities, issuer, defaultTtlSeconds }: TokenSource,
    { id, ttlSeconds, turn }: { readonly id: SpiffeId; readonly ttlSeconds: number; readonly turn: Turn | undefined },
    sign: Sign,
  ): Promise<TokenSvid> {
    checkWorkloadId(id, this.#options.trustDomain);
    return this.#turns.take(async () => {
      const authority = authorities.signing();
      const issuedAt = wholeSeconds(this.#options.clock.now().getTime());
      const ttl = ttlSeconds > 0 ? ttlSeconds : defaultTtlSeconds;
      const end = Math.min(issuedAt.getTime() + ttl * 1000, authority.notAfter.getTime());
      const expiresAt = wholeSeconds(end);
      if (expiresAt <= issuedAt) throw endsNow();
      const common = { subject: id, issuedAt, expiresAt, ...(issuer === "" ? {} : { issuer }) };
      const made = { id, token: await sign(common, authority), issuedAt, expiresAt, authorityId: authority.id };
      return end < issuedAt.getTime() + ttl * 1000 ? { ...made, ttlReason: "the signing key ends then" } : made;
    }, turn);
  }
}

function enabled(source: TokenSource | undefined, name: string): TokenSource {
  if (source !== undefined) return source;
  throw new Fault("unimplemented", `${name} functionality is disabled`, { code: `${name.toLowerCase()}-disabled` });
}

/** The bytes of a random UUID, as SPIRE writes them. */
function newTokenId(): string {
  return Buffer.from(randomUUID().replaceAll("-", ""), "hex").toString("base64url");
}

function wholeSeconds(unixMs: number): Date {
  return new Date(Math.floor(unixMs / 1000) * 1000);
}

function endsNow(): Fault {
  return new Fault("unavailable", "the signing key is about to expire", { code: "token-key-ending" });
}
