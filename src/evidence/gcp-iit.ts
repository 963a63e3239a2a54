import * as v from "valibot";
import { type Jws, parseJws } from "../crypto/jws.ts";
import { Fault } from "../runtime/fault.ts";

/*
 * The identity token of a Compute Engine instance, which is the whole payload, as SPIRE has it on the wire:
 * spire-contract 11.5.
 */

export const GCP_IIT = "gcp_iit";
export const GCP_AUDIENCE = "spire-gcp-node-attestor";

const ISSUERS: ReadonlySet<string> = new Set(["https://accounts.google.com", "accounts.google.com"]);
const LEEWAY_S = 60;

/** Names that stand in URLs, selectors and agent IDs. */
const name = v.pipe(v.string(), v.regex(/^[a-z0-9]([a-z0-9.:-]{0,253}[a-z0-9])?$/));
const Claims = v.object({
  iss: v.string(),
  aud: v.union([v.string(), v.array(v.string())]),
  exp: v.number(),
  iat: v.optional(v.number()),
  nbf: v.optional(v.number()),
  email: v.optional(v.string(), ""),
  google: v.object({
    compute_engine: v.object({
      project_id: name,
      project_number: v.optional(v.number(), 0),
      zone: v.pipe(v.string(), v.regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/)),
      instance_id: v.pipe(v.string(), v.regex(/^\d{1,20}$/)),
      instance_name: v.pipe(v.string(), v.regex(/^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/)),
      instance_creation_timestamp: v.optional(v.number(), 0),
    }),
  }),
});

/** What Google says of an instance. */
export type InstanceToken = v.InferOutput<typeof Claims>;

export interface UnverifiedToken {
  readonly jws: Jws;
  readonly keyId: string;
}

/** Throws `invalid`. */
export function readToken(payload: Uint8Array): UnverifiedToken {
  try {
    const jws = parseJws(Buffer.from(payload.buffer, payload.byteOffset, payload.length).toString("latin1"));
    if (jws.algorithm !== "RS256") throw new Fault("invalid", `unexpected signature algorithm "${jws.algorithm}"`);
    const { kid } = jws.header;
    if (typeof kid !== "string" || kid === "") throw new Fault("invalid", "token has no key ID");
    return { jws, keyId: kid };
  } catch (cause) {
    throw new Fault("invalid", `unable to parse the identity token: ${Fault.from(cause).message}`, {
      code: "gcp-iit-evidence",
      cause,
    });
  }
}

/** The claims of a token whose signature held. Throws `denied`. */
export function checkClaims({ jws }: UnverifiedToken, at: Date): InstanceToken {
  const read = v.safeParse(Claims, jws.payload);
  if (!read.success) {
    const path = v.getDotPath(read.issues[0]) ?? "";
    throw refused(`"${path}" is missing or not of the expected form`);
  }
  const { iss, aud, exp, iat, nbf } = read.output;
  const now = at.getTime() / 1000;
  if (!ISSUERS.has(iss)) throw refused("the issuer is not Google");
  if (!(typeof aud === "string" ? [aud] : aud).includes(GCP_AUDIENCE)) throw refused("invalid audience claim (aud)");
  if (now > exp + LEEWAY_S) throw refused("token is expired (exp)");
  if ((nbf ?? 0) > now + LEEWAY_S) throw refused("token not valid yet (nbf)");
  if ((iat ?? 0) > now + LEEWAY_S) throw refused("token issued in the future (iat)");
  return read.output;
}

function refused(reason: string): Fault {
  return new Fault("denied", `failed to validate the identity token claims: ${reason}`, { code: "gcp-iit-refused" });
}
