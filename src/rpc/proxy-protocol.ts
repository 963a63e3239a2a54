import { isIP, isIPv4, isIPv6 } from "node:net";
import { Fault } from "../runtime/fault.ts";

/** Where a connection comes from. */
export interface Source {
  /** IP address in its one canonical spelling, so that it can be compared and counted. */
  readonly address: string;
  readonly port: number;
}

/** What the first bytes of a connection say. The header specification is HAProxy's proxy-protocol.txt, versions 1 and 2. */
export type ProxyHeader =
  /** It takes more bytes to tell. */
  | "unfinished"
  /** No header: the bytes are the client's own. */
  | "absent"
  /** A header of so many bytes; without a source the proxy speaks for itself, or does not know. */
  | { readonly length: number; readonly source?: Source };

const V1_START = Buffer.from("PROXY", "latin1");
const V2_START = Buffer.from([0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
/** With the end of the line. */
const V1_LONGEST = 107;
const V2_FIXED = 16;
/** After the fixed part: addresses and whatever else the proxy tells. */
const V2_LONGEST = 4096;
const LOCAL = 0x20;
const PROXY = 0x21;
const TCP4 = 0x11;
const TCP6 = 0x21;

/** Throws `invalid` for bytes that begin a header and then are none. */
export function readProxyHeader(bytes: Buffer): ProxyHeader {
  if (begins(bytes, V1_START)) return bytes.length < V1_START.length ? "unfinished" : readV1(bytes);
  if (begins(bytes, V2_START)) return bytes.length < V2_FIXED ? "unfinished" : readV2(bytes);
  return "absent";
}

/** One of them is the beginning of the other. */
function begins(bytes: Buffer, start: Buffer): boolean {
  const length = Math.min(bytes.length, start.length);
  return bytes.subarray(0, length).equals(start.subarray(0, length));
}

function readV1(bytes: Buffer): ProxyHeader {
  const end = bytes.subarray(0, V1_LONGEST).indexOf("\r\n", 0, "latin1");
  if (end < 0) {
    if (bytes.length < V1_LONGEST) return "unfinished";
    throw malformed("its first line is too long");
  }
  const length = end + 2;
  const [word, family, address = "", target = "", port = "", ...others] = bytes.toString("latin1", 0, end).split(" ");
  if (word !== "PROXY") throw malformed("its first word is another one");
  if (family === "UNKNOWN") return { length };
  const [targetPort, ...more] = others;
  const isWhole = targetPort !== undefined && more.length === 0 && isPort(port) && isPort(targetPort);
  const fits = family === "TCP4" ? isIPv4 : family === "TCP6" ? isIPv6 : () => false;
  if (!isWhole || !fits(address) || !fits(target)) throw malformed("its addresses cannot be read");
  return { length, source: { address: canonicalAddress(address), port: Number(port) } };
}

function isPort(text: string): boolean {
  return /^(0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 65_535;
}

/** Only TCP: what else the format knows would be a caller without an address. */
function readV2(bytes: Buffer): ProxyHeader {
  const [command, family] = [bytes[12], bytes[13]];
  const rest = bytes.readUInt16BE(14);
  if (command !== LOCAL && command !== PROXY) throw malformed("its version or command is not known");
  if (rest > V2_LONGEST) throw malformed("it is too long");
  const length = V2_FIXED + rest;
  if (bytes.length < length) return "unfinished";
  if (command === LOCAL) return { length };
  const size = family === TCP4 ? 4 : family === TCP6 ? 16 : undefined;
  if (size === undefined) throw malformed("its address is not one of TCP");
  if (rest < 2 * size + 4) throw malformed("its addresses are cut short");
  const address = addressOf(bytes.subarray(V2_FIXED, V2_FIXED + size));
  return { length, source: { address, port: bytes.readUInt16BE(V2_FIXED + 2 * size) } };
}

function addressOf(bytes: Buffer): string {
  if (bytes.length === 4) return bytes.join(".");
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(2 * index).toString(16));
  return canonicalAddress(groups.join(":"));
}

/** One spelling for each address; an IPv4 address inside an IPv6 one is that IPv4 address. */
export function canonicalAddress(address: string): string {
  if (isIP(address) !== 6) return address;
  const zoneless = address.replace(/%.*$/, "");
  const short = new URL(`http://[${zoneless}]/`).hostname.slice(1, -1);
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(short);
  if (mapped === null) return short;
  const [high, low] = [Number.parseInt(mapped[1] ?? "", 16), Number.parseInt(mapped[2] ?? "", 16)];
  return [high >> 8, high & 255, low >> 8, low & 255].join(".");
}

function malformed(why: string): Fault {
  return new Fault("invalid", `the PROXY header is malformed: ${why}`, {
    code: "proxy-header",
    hint: "check that the load balancer speaks the PROXY protocol, version 1 or 2",
  });
}
