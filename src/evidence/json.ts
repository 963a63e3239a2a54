import * as v from "valibot";
import { Fault, messageOf } from "../runtime/fault.ts";

/** Bytes inside JSON, as Go's encoding/json writes them: standard base64 with padding. */
export const bytes = v.pipe(
  v.string(),
  v.regex(/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/, "expected base64"),
  v.transform((text): Uint8Array => Buffer.from(text, "base64")),
);

/** Go's omitted or null slice is an empty one. */
export const optionalBytes = v.nullish(bytes, "");

export function base64(data: Uint8Array): string {
  return Buffer.from(data.buffer, data.byteOffset, data.length).toString("base64");
}

/** Reads bytes that a peer sent. Members that the schema does not name are passed over. Throws `invalid`. */
export function readJson<S extends v.GenericSchema>(schema: S, data: Uint8Array, complaint: string): v.InferOutput<S> {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(data);
    return v.parse(schema, JSON.parse(text));
  } catch (error) {
    // A JSON error quotes the text, which may hold a credential.
    const reason = error instanceof v.ValiError ? where(error) : "not JSON";
    throw new Fault("invalid", `${complaint}: ${reason}`, { code: "evidence-malformed", cause: messageOf(error) });
  }
}

function where(error: v.ValiError<v.GenericSchema>): string {
  const path = v.getDotPath(error.issues[0]) ?? "";
  return path === "" ? "not of the expected form" : `"${path}" is not of the expected form`;
}

export function writeJson(value: unknown): Uint8Array {
  return Buffer.from(JSON.stringify(value));
}
