import { Fault } from "../runtime/fault.ts";

/** Larger texts are refused before they are looked at. */
const MAX_PEM_CHARACTERS = 4 * 1024 * 1024;
const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/;

/** With a newline at the end. */
export function encodePem(label: string, der: Uint8Array): string {
  const base64 = Buffer.from(der.buffer, der.byteOffset, der.length).toString("base64");
  const lines = base64.match(/.{1,64}/g) ?? [];
  return [`-----BEGIN ${label}-----`, ...lines, `-----END ${label}-----`, ""].join("\n");
}

/**
 * The blocks with this label, in order; other text and other labels are passed over. One pass over the text. Throws
 * `invalid` for a block that does not end, or whose contents are not base64.
 */
export function decodePem(text: string, label: string): Uint8Array[] {
  if (text.length > MAX_PEM_CHARACTERS) throw malformed("PEM text is too large");
  const begin = `-----BEGIN ${label}-----`;
  const end = `-----END ${label}-----`;
  const blocks: Uint8Array[] = [];
  let at = text.indexOf(begin);
  while (at >= 0) {
    const from = at + begin.length;
    const to = text.indexOf(end, from);
    if (to < 0) throw malformed(`PEM block "${label}" has no end`);
    blocks.push(decodeBase64(text.slice(from, to), label));
    at = text.indexOf(begin, to + end.length);
  }
  return blocks;
}

function decodeBase64(body: string, label: string): Uint8Array {
  const packed = body.replace(/[ \t\r\n]+/g, "");
  if (packed.length % 4 !== 0 || !BASE64.test(packed)) throw malformed(`PEM block "${label}" is not base64`);
  return Buffer.from(packed, "base64");
}

function malformed(message: string): Fault {
  return new Fault("invalid", message, { code: "pem-malformed", hint: "check that the file is whole and in PEM form" });
}
