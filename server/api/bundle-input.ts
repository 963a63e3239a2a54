import { checkPublicKey } from "../../src/crypto/public-key.ts";
import { bundleFromProto, tokenAuthoritiesFromProto } from "../../src/rpc/convert.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { JWTKey__Output } from "../../src/rpc/gen/spire/api/types/JWTKey.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle, TokenAuthority } from "../../src/spiffe/bundle.ts";
import { MAX_KEY_ID_CHARACTERS } from "../../src/spiffe/bundle-keys.ts";

/** Whether an authority is tainted is for the server that signs with it to say, and never for a caller. */
export function untainted<T extends { readonly tainted: boolean }>(authorities: readonly T[]): readonly T[] {
  return authorities.map((authority) => ({ ...authority, tainted: false }));
}

/** A bundle as a caller gives it. Throws `invalid`. */
export function foreignBundle(proto: Bundle__Output): Bundle {
  const bundle = bundleFromProto(proto);
  return {
    ...bundle,
    x509Authorities: untainted(bundle.x509Authorities),
    jwtAuthorities: checkedTokens(bundle.jwtAuthorities),
    witAuthorities: checkedTokens(bundle.witAuthorities),
  };
}

/** Keys that sign tokens, as a caller gives them. Throws `invalid`. */
export function givenTokens(messages: readonly JWTKey__Output[]): readonly TokenAuthority[] {
  return checkedTokens(tokenAuthoritiesFromProto(messages));
}

function checkedTokens(authorities: readonly TokenAuthority[]): readonly TokenAuthority[] {
  if (authorities.some(({ keyId }) => keyId.length > MAX_KEY_ID_CHARACTERS))
    throw new Fault("invalid", `key ID is longer than ${MAX_KEY_ID_CHARACTERS} characters`, {
      code: "key-id-too-long",
    });
  for (const { publicKey } of authorities) checkPublicKey(publicKey);
  return untainted(authorities);
}
