import * as v from "valibot";
import { type Jws, parseJws } from "../crypto/jws.ts";
import { Fault } from "../runtime/fault.ts";
import { uuid } from "./azure-imds.ts";
import { readJson, writeJson } from "./json.ts";

/*
 * The access token of a machine's managed identity in Azure, as SPIRE has it on the wire: spire-contract 11.5.
 */

export const AZURE_MSI = "azure_msi";
export const AZURE_RESOURCE = "https://management.azure.com/";

/** Clocks may differ by so much. */
const LEEWAY_S = 300;

const Evidence = v.object({ token: v.optional(v.string(), "") });
const Claims = v.object({
  iss: v.string(),
  aud: v.union([v.string(), v.array(v.string())]),
  exp: v.number(),
  nbf: v.optional(v.number()),
  iat: v.optional(v.number()),
  tid: uuid,
  sub: uuid,
});

export interface UnverifiedToken {
  readonly jws: Jws;
  readonly keyId: string;
}

/** A principal of a tenant. */
export interface Principal {
  readonly tenantId: string;
  readonly principalId: string;
  readonly audiences: readonly string[];
}

export function writeEvidence(token: string): Uint8Array {
  return writeJson({ token });
}

/** Throws `invalid`. */
export function readToken(payload: Uint8Array): UnverifiedToken {
  const { token } = readJson(Evidence, payload, "failed to unmarshal data payload");
  if (token === "") throw invalid("missing token from attestation data");
  try {
    const jws = parseJws(token);
    const { kid } = jws.header;
    if (typeof kid !== "string" || kid === "") throw invalid("token missing key id");
    return { jws, keyId: kid };
  } catch (cause) {
    throw invalid(`unable to parse token: ${Fault.from(cause).message}`);
  }
}

/**
 * The claims of a token whose signature held. The keys sign for every tenant there is, so that issuer and tenant have to
 * agree; `authorities` are the hosts of issuers. Throws `denied`.
 */
export function checkClaims(
  { jws }: UnverifiedToken,
  issuers: (tenantId: string) => readonly string[],
  at: Date,
): Principal {
  const read = v.safeParse(Claims, jws.payload);
  if (!read.success) throw refused(`"${v.getDotPath(read.issues[0]) ?? ""}" is missing or not of the expected form`);
  const { iss, aud, exp, nbf = 0, iat = 0, tid, sub } = read.output;
  const now = at.getTime() / 1000;
  if (!issuers(tid).includes(iss)) throw refused("the issuer is not that of the tenant");
  if (now > exp + LEEWAY_S) throw refused("token is expired (exp)");
  if (nbf > now + LEEWAY_S) throw refused("token not valid yet (nbf)");
  if (iat > now + LEEWAY_S) throw refused("token issued in the future (iat)");
  return { tenantId: tid, principalId: sub, audiences: typeof aud === "string" ? [aud] : aud };
}

function refused(reason: string): Fault {
  return new Fault("denied", `unable to validate token claims: ${reason}`, { code: "azure-msi-refused" });
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "azure-msi-evidence" });
}
