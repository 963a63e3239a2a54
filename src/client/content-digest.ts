import { createHash, timingSafeEqual } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { isInnerList, parseDictionary } from "./structured-fields.ts";

/** Those that may be relied on. RFC 9530, section 5. */
const HASHES: Readonly<Record<string, string>> = { "sha-256": "sha256", "sha-512": "sha512" };

/** The value of `Content-Digest` for this body. RFC 9530, section 2. */
export function contentDigest(body: Uint8Array): string {
  return `sha-256=:${createHash("sha256").update(body).digest("base64")}:`;
}

/** Throws `invalid` when a digest is not that of the body, or none is by a hash that may be relied on. */
export function checkContentDigest(value: string, body: Uint8Array): void {
  const known = [...parseDictionary(value)].filter(([name]) => Object.hasOwn(HASHES, name));
  if (known.length === 0) throw wrong("has no SHA-256 or SHA-512 digest");
  for (const [name, member] of known) {
    const given = isInnerList(member) ? undefined : member.value;
    const found = createHash(HASHES[name] ?? "")
      .update(body)
      .digest();
    if (!(given instanceof Uint8Array) || given.length !== found.length || !timingSafeEqual(given, found))
      throw wrong("is not that of the body");
  }
}

function wrong(reason: string): Fault {
  return new Fault("invalid", `the Content-Digest ${reason}`, { code: "content-digest" });
}
