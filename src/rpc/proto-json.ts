/**
 * A message as `protojson` and Go's map encoder print it: proto names sorted, bytes in base64, absent messages left
 * out, `<`, `>` and `&` escaped. One line without the newline.
 */
export function protoJson(message: object): string {
  return escapeHtml(JSON.stringify(plain(message)));
}

/** JSON text as Go's encoder writes it. */
export function escapeHtml(json: string): string {
  return json.replace(
    /[<>&\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  const fields = Object.entries(value).filter(
    ([name, field]) => field !== null && field !== undefined && !saysWhichIsSet(name, field, value),
  );
  return Object.fromEntries(fields.sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, field]) => [name, plain(field)]));
}

/**
 * The loader adds a field that names the member of a oneof that is set, and `_name` for an optional `name`; in JSON a
 * member is set by being there.
 */
function saysWhichIsSet(name: string, field: unknown, message: object): boolean {
  return typeof field === "string" && field in message && (name === `_${field}` || name === ENDPOINT_PROFILE);
}

/** The only oneof in what is printed. */
const ENDPOINT_PROFILE = "bundle_endpoint_profile";
