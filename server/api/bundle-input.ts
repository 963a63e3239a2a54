import { bundleFromProto } from "../../src/rpc/convert.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";

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
    jwtAuthorities: untainted(bundle.jwtAuthorities),
    witAuthorities: untainted(bundle.witAuthorities),
  };
}
