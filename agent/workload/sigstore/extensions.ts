import type { Certificate } from "../../../src/crypto/certificate.ts";
import { contextTag, type DerElement, DerReader, readOid, readOnly, TAG } from "../../../src/crypto/der.ts";
import { explicit, sequence } from "../../../src/crypto/der-writer.ts";

const EXTENSIONS = contextTag(3, true);

/** Value of an extension; undefined when the certificate has none of this kind. */
export function extensionValue({ signed }: Certificate, id: string): Uint8Array | undefined {
  const found = extensionsOf(fieldsOf(signed)).find((extension) => idOf(extension) === id);
  if (found === undefined) return undefined;
  const reader = new DerReader(found.body);
  reader.read(TAG.oid);
  reader.optional(TAG.boolean);
  return reader.read(TAG.octetString).body;
}

/** TBSCertificate, DER, with one extension left out: what a log signed before it was there. RFC 6962, section 3.2. */
export function withoutExtension({ signed }: Certificate, id: string): Uint8Array {
  const fields = fieldsOf(signed);
  const kept = extensionsOf(fields).filter((extension) => idOf(extension) !== id);
  const others = fields.filter(({ tag }) => tag !== EXTENSIONS).map(({ raw }) => raw);
  return sequence(...others, explicit(3, sequence(...kept.map(({ raw }) => raw))));
}

function fieldsOf(tbs: Uint8Array): readonly DerElement[] {
  return [...readOnly(tbs).rest()];
}

function extensionsOf(fields: readonly DerElement[]): readonly DerElement[] {
  const wrapper = fields.find(({ tag }) => tag === EXTENSIONS);
  return wrapper === undefined ? [] : [...readOnly(wrapper.body).rest(TAG.sequence)];
}

function idOf({ body }: DerElement): string {
  return readOid(new DerReader(body).read(TAG.oid));
}
