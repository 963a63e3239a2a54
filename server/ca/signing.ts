import type { KeyType } from "../../src/crypto/key.ts";
import type { DistinguishedName } from "../../src/crypto/name.ts";
import type { KeyManager } from "../../src/keys/keys.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Task } from "../../src/runtime/task.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AuthorityStore } from "../store/store.ts";
import { Authorities } from "./authorities.ts";
import type { BundleAccess, TokenKind } from "./bundle-edits.ts";
import { selfSignedKind, tokenKind } from "./kinds.ts";
import type { TokenSigningAuthority, X509SigningAuthority } from "./slots.ts";

export interface SigningOptions {
  readonly trustDomain: TrustDomain;
  readonly keys: Pick<KeyManager, "find" | "generate">;
  /** By kind; a kind of token without a key type is disabled. */
  readonly keyTypes: { readonly x509: KeyType; readonly jwt: KeyType | undefined; readonly wit: KeyType | undefined };
  readonly ttlSeconds: number;
  readonly subject: DistinguishedName;
  readonly bundles: BundleAccess;
  readonly journal: Pick<AuthorityStore, "list" | "save">;
  readonly clock: Clock;
  readonly log: Log;
}

/** The signing authorities of this server, each kind in its own pair of slots. Tokens may be disabled. */
export interface SigningAuthorities {
  readonly x509: Authorities<X509SigningAuthority>;
  readonly jwt: Authorities<TokenSigningAuthority> | undefined;
  readonly wit: Authorities<TokenSigningAuthority> | undefined;
  /** Their rotation. */
  readonly tasks: readonly Task[];
}

/** Resolves when an authority of each kind may sign. Throws what hinders it. */
export async function openSigningAuthorities(options: SigningOptions): Promise<SigningAuthorities> {
  const { keyTypes } = options;
  const openToken = async (kind: TokenKind): Promise<Authorities<TokenSigningAuthority> | undefined> => {
    const keyType = keyTypes[kind];
    return keyType === undefined
      ? undefined
      : Authorities.open({ ...options, keyType, type: tokenKind(kind, options) });
  };
  const x509 = await Authorities.open({ ...options, keyType: keyTypes.x509, type: selfSignedKind(options) });
  const jwt = await openToken("jwt");
  const wit = await openToken("wit");
  const all = [x509, jwt, wit].filter((authorities) => authorities !== undefined);
  return { x509, jwt, wit, tasks: all.map((authorities) => (stop) => authorities.run(stop)) };
}
