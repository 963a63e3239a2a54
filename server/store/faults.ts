import pg from "pg";
import { Fault, type FaultKind, isAbort, messageOf } from "../../src/runtime/fault.ts";

interface Translation {
  readonly kind: FaultKind;
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
}

const UNAVAILABLE: Translation = {
  kind: "unavailable",
  code: "datastore-unavailable",
  message: "the datastore is not available",
  hint: "try again; if it stays so, check that the database runs and can be reached",
};
const REFUSED: Translation = {
  ...UNAVAILABLE,
  code: "datastore-refused",
  message: "the datastore refuses this server",
  hint: "check the user, its rights and the database name in the connection string",
};
const CONFLICT: Translation = {
  kind: "aborted",
  code: "datastore-conflict",
  message: "another change got in the way",
  hint: "try again",
};
const TOO_LONG: Translation = {
  kind: "invalid",
  code: "value-too-long",
  message: "a value is too long for the datastore",
  hint: "selectors can have about 2,600 bytes",
};
const REFUSED_VALUE: Translation = {
  kind: "invalid",
  code: "value-not-storable",
  message: "a value cannot be stored",
  hint: "check for NUL bytes, and for numbers and dates that are out of range",
};

/** By constraint, for what the callers have a message for. */
const TAKEN: Readonly<Record<string, Translation>> = {
  entries_id_key: { kind: "already_exists", code: "entry-exists", message: "an entry with this ID already exists" },
  entries_similar_key: { kind: "already_exists", code: "entry-similar", message: "similar entry already exists" },
  federation_relationships_trust_domain_key: {
    kind: "already_exists",
    code: "relationship-exists",
    message: "a relationship with this trust domain already exists",
    hint: "update it instead",
  },
  join_tokens_pkey: { kind: "already_exists", code: "join-token-exists", message: "join token already exists" },
};

/** By SQLSTATE, then by its class (the first two characters). */
const STATES: Readonly<Record<string, Translation>> = {
  "08": UNAVAILABLE,
  "22": REFUSED_VALUE,
  "23502": REFUSED_VALUE,
  "23514": REFUSED_VALUE,
  "25006": UNAVAILABLE,
  "25P03": UNAVAILABLE,
  "28": REFUSED,
  "3D000": REFUSED,
  "40": CONFLICT,
  "42501": REFUSED,
  "53": UNAVAILABLE,
  "54": TOO_LONG,
  "55P03": UNAVAILABLE,
  "57": UNAVAILABLE,
  "58": UNAVAILABLE,
};

/** What the driver says when a connection is lost, refused or too slow. It has no codes for these. */
const DRIVER =
  /^(Connection terminated|timeout (expired|exceeded when trying to connect)|Query read timeout|Client (has encountered|was closed)|Cannot use a pool after|Postgres connection has been discarded|There was an error establishing an SSL|driver has already been destroyed)/;

/**
 * Turns what the driver throws into a `Fault`. Its message never holds the driver's text, which may name hosts, users
 * and values; that stays in the cause.
 */
export function storeFault(thrown: unknown): Fault {
  if (thrown instanceof Fault) return thrown;
  const translation = translate(thrown);
  if (translation === undefined) return Fault.from(thrown);
  const { kind, message, code, hint } = translation;
  return new Fault(kind, message, { code, cause: withoutValues(thrown), ...(hint === undefined ? {} : { hint }) });
}

/** The server's details quote rows and parameters, a join token among them; only its message stays (T-J8). */
function withoutValues(thrown: unknown): unknown {
  if (!(thrown instanceof pg.DatabaseError)) return thrown;
  const { message, code, constraint, stack } = thrown;
  return Object.assign(new Error(message), { code, constraint, stack });
}

/** True when running the transaction again can succeed: serialization failure or deadlock. */
export function isConflict(thrown: unknown): boolean {
  const state = stateOf(thrown);
  return state === "40001" || state === "40P01";
}

/** The SQLSTATE that the server answered with. */
export function stateOf(thrown: unknown): string | undefined {
  return thrown instanceof pg.DatabaseError ? thrown.code : undefined;
}

/** True for what a database that is not up yet answers: worth trying again, where a wrong password is not. */
export function isStarting(thrown: unknown): boolean {
  const state = stateOf(thrown);
  if (state !== undefined) return /^(08|53|57)/.test(state);
  const code = thrown instanceof Error && "code" in thrown ? String(thrown.code) : "";
  return /^(ECONN|ETIMEDOUT|EHOST|ENET|ENOENT|ENOTFOUND|EAI_AGAIN|EPIPE)/.test(code) || DRIVER.test(messageOf(thrown));
}

/** For logs and start-up. Several addresses of one host fail with an empty text of their own. */
export function reasonOf(thrown: unknown): string {
  return thrown instanceof AggregateError ? thrown.errors.map(messageOf).join("; ") : messageOf(thrown);
}

function translate(thrown: unknown): Translation | undefined {
  if (thrown instanceof pg.DatabaseError) {
    const state = thrown.code ?? "";
    return state === "23505" ? TAKEN[thrown.constraint ?? ""] : (STATES[state] ?? STATES[state.slice(0, 2)]);
  }
  return isSystemError(thrown) || DRIVER.test(messageOf(thrown)) ? UNAVAILABLE : undefined;
}

/** Failures of sockets and TLS carry a code; mistakes of ours are TypeErrors and RangeErrors. */
function isSystemError(thrown: unknown): boolean {
  if (!(thrown instanceof Error) || thrown instanceof TypeError || thrown instanceof RangeError) return false;
  return "code" in thrown && typeof thrown.code === "string" && !isAbort(thrown);
}
