import { Fault } from "../../src/runtime/fault.ts";

/** Parameters under libpq's names. */
export type ConnectionParameters = ReadonlyMap<string, string>;

/** What takes effect here. */
const KNOWN = new Set([
  "host",
  "port",
  "dbname",
  "user",
  "password",
  "connect_timeout",
  "application_name",
  "options",
  "sslmode",
  "sslrootcert",
  "sslcert",
  "sslkey",
]);
/** What other clients need and this one decides by itself. */
const WITHOUT_EFFECT = new Set([
  "binary_parameters",
  "client_encoding",
  "extra_float_digits",
  "fallback_application_name",
  "gssencmode",
  "keepalives",
  "keepalives_count",
  "keepalives_idle",
  "keepalives_interval",
  "pool_max_conns",
  "sslcompression",
  "target_session_attrs",
]);

/**
 * Reads both forms that libpq knows: `postgres://user:secret@host:5432/name?sslmode=verify-full` and
 * `dbname=name user=user host=/run/postgresql`. Throws `invalid`, never with a value in the text.
 */
export function parseConnectionString(text: string): ConnectionParameters {
  const parameters = /^postgres(ql)?:\/\//.test(text) ? fromUrl(text) : fromKeywords(text);
  for (const key of parameters.keys()) {
    if (!KNOWN.has(key) && !WITHOUT_EFFECT.has(key)) throw malformed(`unknown parameter "${key}"`);
  }
  for (const key of ["host", "port"]) {
    if (parameters.get(key)?.includes(",")) throw malformed("more than one host");
  }
  const port = parameters.get("port") ?? "5432";
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535) throw malformed("port is not a port number");
  return parameters;
}

function fromUrl(text: string): ConnectionParameters {
  const url = readUrl(text);
  const parts = {
    host: url.hostname.replace(/^\[(.*)\]$/, "$1"),
    port: url.port,
    user: url.username,
    password: url.password,
    dbname: url.pathname.slice(1),
  };
  const parameters = new Map<string, string>();
  for (const [key, value] of Object.entries(parts)) if (value !== "") parameters.set(key, decode(value));
  for (const [key, value] of url.searchParams) parameters.set(key, value);
  return parameters;
}

function readUrl(text: string): URL {
  try {
    return new URL(text);
  } catch {
    throw malformed("it is not a URL");
  }
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw malformed("a % is not followed by two hexadecimal digits");
  }
}

/** `keyword = value`, where a value with spaces stands in single quotes and a backslash takes the next character. */
const PAIR = /\s*([A-Za-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)/sy;

function fromKeywords(text: string): ConnectionParameters {
  const parameters = new Map<string, string>();
  PAIR.lastIndex = 0;
  for (let end = 0; text.slice(end).trim() !== ""; end = PAIR.lastIndex) {
    const [, key, quoted, bare] = PAIR.exec(text) ?? [];
    if (key === undefined) throw malformed("it is neither a URL nor a list of keyword=value");
    parameters.set(key === "database" ? "dbname" : key, (quoted ?? bare ?? "").replace(/\\(.)/gs, "$1"));
  }
  return parameters;
}

function malformed(what: string): Fault {
  return new Fault("invalid", `connection_string is malformed: ${what}`, {
    code: "connection-string",
    hint: "write postgres://user@host:5432/name?sslmode=verify-full, or dbname=name user=user host=/run/postgresql",
  });
}
