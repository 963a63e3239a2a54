/** Closed list of what can go wrong. `src/rpc/status.ts` maps each to one gRPC code. */
export const FAULT_KINDS = [
  "invalid",
  "not_found",
  "already_exists",
  "denied",
  "unauthenticated",
  "precondition",
  "exhausted",
  "aborted",
  "unavailable",
  "timeout",
  "cancelled",
  "unimplemented",
  "internal",
] as const;

export type FaultKind = (typeof FAULT_KINDS)[number];

/** A protobuf `Any` that travels with the fault, for peers that act on more than the code. */
export interface FaultDetail {
  readonly typeUrl: string;
  readonly value: Uint8Array;
}

export interface FaultOptions {
  /** Stable word for scripts and documentation, such as `join-token-used`. Default: the kind. */
  readonly code?: string;
  /** What the reader can do next, one sentence. */
  readonly hint?: string;
  readonly cause?: unknown;
  readonly details?: readonly FaultDetail[];
}

/**
 * The one error type. `message` starts in lower case and names the thing that is wrong; it may leave the process,
 * so it never holds a secret. The `cause` stays inside.
 */
export class Fault extends Error {
  readonly kind: FaultKind;
  readonly code: string;
  readonly hint: string | undefined;
  readonly details: readonly FaultDetail[];

  constructor(kind: FaultKind, message: string, options: FaultOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "Fault";
    this.kind = kind;
    this.code = options.code ?? kind;
    this.hint = options.hint;
    this.details = options.details ?? [];
  }

  /** The single funnel: a `Fault` as it is, anything else as `internal` with the original as cause. */
  static from(thrown: unknown): Fault {
    if (thrown instanceof Fault) return thrown;
    if (isAbort(thrown)) return new Fault("cancelled", "the operation was cancelled", { cause: thrown });
    return new Fault("internal", messageOf(thrown), { cause: thrown });
  }
}

export function isFault(thrown: unknown, kind?: FaultKind): thrown is Fault {
  return thrown instanceof Fault && (kind === undefined || thrown.kind === kind);
}

/** True for what an aborted wait throws. */
export function isAbort(thrown: unknown): boolean {
  return (
    thrown instanceof Error && (thrown.name === "AbortError" || (thrown as NodeJS.ErrnoException).code === "ABORT_ERR")
  );
}

export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
