import { Fault } from "../runtime/fault.ts";
import { type InnerList, type Item, serializeInnerList, serializeItem } from "./structured-fields.ts";
import type { ReceivedHeaders } from "./wit-request.ts";

/** What of a request its signature can cover besides fields. */
export interface RequestLine {
  /** As it was sent: methods have case. */
  readonly method: string;
  /** The target of the request line, as it was sent: path and query, or `:path` of HTTP/2. */
  readonly requestTarget: string;
}

/** A message that is signed or checked. */
export interface SignedMessage {
  readonly headers: ReceivedHeaders;
  /** Of the request itself, or of the one that a response answers. */
  readonly request: RequestLine;
  /** Of a response. */
  readonly status?: number;
}

/** More than any signer needs. */
const MAX_COMPONENTS = 64;

/**
 * The bytes that a signature is made of. RFC 9421, section 2.5. Throws `invalid` for a component that is not in the
 * message, is named twice, or is of a kind that is not known here: what cannot be checked is not taken as covered.
 */
export function signatureBase(covered: InnerList, message: SignedMessage): Buffer {
  if (covered.items.length > MAX_COMPONENTS) throw unusable("covers too many components");
  const lines = new Map<string, string>();
  for (const item of covered.items) {
    const name = serializeItem(item);
    if (lines.has(name)) throw unusable(`covers ${name} twice`);
    lines.set(name, componentOf(item, message));
  }
  lines.set('"@signature-params"', serializeInnerList(covered));
  return Buffer.from([...lines].map(([name, value]) => `${name}: ${value}`).join("\n"), "ascii");
}

function componentOf(item: Item, message: SignedMessage): string {
  const { value: name, parameters } = item;
  if (typeof name !== "string") throw unusable("covers something that has no name");
  const ofRequest = parameters.get("req") === true;
  if (parameters.size > (ofRequest ? 1 : 0)) throw unusable(`covers ${serializeItem(item)}, which is not known`);
  return name.startsWith("@") ? derived(name, ofRequest, message) : field(name, ofRequest, message);
}

/** RFC 9421, section 2.2. */
function derived(name: string, ofRequest: boolean, { request, status, headers }: SignedMessage): string {
  const isResponse = status !== undefined;
  if (isResponse && !ofRequest && name === "@status") return String(status);
  const value = isResponse === ofRequest ? ofRequestLine(name, request) : undefined;
  if (value !== undefined) return printable(value);
  const host = isResponse || name !== "@authority" ? undefined : headers["host"];
  if (typeof host === "string") return printable(host.toLowerCase().replace(/:443$/, ""));
  throw unusable(`covers ${JSON.stringify(name.slice(0, 64))}, which is not known`);
}

function ofRequestLine(name: string, { method, requestTarget }: RequestLine): string | undefined {
  const query = requestTarget.indexOf("?");
  if (name === "@method") return method;
  if (name === "@request-target") return requestTarget;
  if (name === "@path") return query < 0 ? requestTarget : requestTarget.slice(0, query);
  if (name === "@query") return query < 0 ? "?" : requestTarget.slice(query);
  return undefined;
}

/** RFC 9421, section 2.1. */
function field(name: string, ofRequest: boolean, { headers }: SignedMessage): string {
  if (ofRequest) throw unusable("covers fields of the request");
  if (name !== name.toLowerCase()) throw unusable("covers a field whose name is not in lower case");
  const values = Object.hasOwn(headers, name) ? headers[name] : undefined;
  if (values === undefined) throw unusable(`covers ${JSON.stringify(name.slice(0, 64))}, which is not in the message`);
  return printable(
    [values]
      .flat()
      .map((value) => value.trim())
      .join(", "),
  );
}

/** A line break would let one component pass for two. */
function printable(value: string): string {
  if (/^[\x20-\x7e\t]*$/.test(value)) return value;
  throw unusable("covers a value that is not printable ASCII");
}

function unusable(reason: string): Fault {
  return new Fault("invalid", `the signature ${reason}`, { code: "signature-components" });
}
