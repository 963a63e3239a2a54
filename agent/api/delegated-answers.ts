import { idToProto } from "../../src/rpc/convert.ts";
import type { JWTSVID } from "../../src/rpc/gen/spire/api/types/JWTSVID.ts";
import type { CachedEntry } from "../cache/entry.ts";
import type { HeldJwt } from "../cache/jwt.ts";
import type { X509Identity } from "../cache/update.ts";

/** As `X509SVIDWithKey`. */
export function svidWithKey({ entry, chain, privateKey, expiresAt }: X509Identity) {
  return {
    x509_svid: {
      id: idToProto(entry.spiffeId),
      cert_chain: chain.map((der) => Buffer.from(der)),
      expires_at: unix(expiresAt),
      hint: entry.hint,
    },
    x509_svid_key: privateKey,
  };
}

export function jwtSvid({ spiffeId, hint }: CachedEntry, { token, issuedAt, expiresAt }: HeldJwt): JWTSVID {
  return { token, id: idToProto(spiffeId), expires_at: unix(expiresAt), issued_at: unix(issuedAt), hint };
}

/** Of one SVID with its key in a message, about. */
export function sizeOf({ entry, chain, privateKey }: X509Identity): number {
  const rest = entry.spiffeId.length + entry.hint.length + privateKey.length + FRAME_BYTES;
  return chain.reduce((sum, { length }) => sum + length, rest);
}

/** Tags, lengths and the time. */
const FRAME_BYTES = 32;

function unix(time: Date): number {
  return Math.floor(time.getTime() / 1000);
}
