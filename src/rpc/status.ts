import { Metadata, type StatusObject, status as wire } from "@grpc/grpc-js";
import { Fault, type FaultDetail, type FaultKind, isFault, messageOf } from "../runtime/fault.ts";
import type { ErrorInfo__Output } from "./gen/google/rpc/ErrorInfo.ts";
import { errorInfo, permissionDenied, retryInfo, richStatus } from "./protos.ts";

/** Name of a gRPC code as SPIRE's logs and metrics spell it. */
export type CodeName = (typeof codeNames)[number];

const codeNames = [
  "OK",
  "Canceled",
  "Unknown",
  "InvalidArgument",
  "DeadlineExceeded",
  "NotFound",
  "AlreadyExists",
  "PermissionDenied",
  "ResourceExhausted",
  "FailedPrecondition",
  "Aborted",
  "OutOfRange",
  "Unimplemented",
  "Internal",
  "Unavailable",
  "DataLoss",
  "Unauthenticated",
] as const;

const wireCodes = {
  invalid: wire.INVALID_ARGUMENT,
  not_found: wire.NOT_FOUND,
  already_exists: wire.ALREADY_EXISTS,
  denied: wire.PERMISSION_DENIED,
  unauthenticated: wire.UNAUTHENTICATED,
  precondition: wire.FAILED_PRECONDITION,
  exhausted: wire.RESOURCE_EXHAUSTED,
  aborted: wire.ABORTED,
  unavailable: wire.UNAVAILABLE,
  timeout: wire.DEADLINE_EXCEEDED,
  cancelled: wire.CANCELLED,
  unimplemented: wire.UNIMPLEMENTED,
  internal: wire.INTERNAL,
} as const satisfies Record<FaultKind, number>;

const kinds = new Map<number, FaultKind>(Object.entries(wireCodes).map(([kind, code]) => [code, kind as FaultKind]));
kinds.set(wire.OUT_OF_RANGE, "invalid");

const DETAILS_KEY = "grpc-status-details-bin";
const ERROR_DOMAIN = "steeple";
const SPIFFE_DOMAIN = "spiffe.io";
const TYPE_PREFIX = "type.googleapis.com/";
const ERROR_INFO = `${TYPE_PREFIX}google.rpc.ErrorInfo`;
const RETRY_INFO = `${TYPE_PREFIX}google.rpc.RetryInfo`;
const PERMISSION_DENIED = `${TYPE_PREFIX}spire.api.types.PermissionDeniedDetails`;
/** Trailers must fit the header limits of every client; many stop at 8 KiB. */
const MAX_MESSAGE_BYTES = 2048;
const MAX_HINT_CHARACTERS = 512;
const MAX_DETAILS_BYTES = 3072;
const MAX_RETRY_AFTER_MS = 60_000;

export function codeNameOf(code: number): CodeName {
  return codeNames[code] ?? "Unknown";
}

/** As gRPC for Go prints an error, which is what scripts for SPIRE look for. */
export function rpcErrorText(fault: Fault): string {
  return `rpc error: code = ${codeNameOf(codeOf(fault))} desc = ${fault.message}`;
}

export function codeOf(fault: Fault): number {
  return wireCodes[fault.kind];
}

/** The `spire.api.types.Status` of one item of a batch. */
export function itemStatus(fault: Fault | undefined): { code: number; message: string } {
  return fault === undefined
    ? { code: wire.OK, message: "OK" }
    : { code: codeOf(fault), message: bounded(fault.message, MAX_MESSAGE_BYTES) };
}

/**
 * What leaves the process for an error that a handler threw. Text is sent only when a `Fault` was thrown on purpose;
 * everything else becomes a sentence that names the request, under which the log has the cause.
 */
export function publicFault(thrown: unknown, requestId: string): Fault {
  const fault = Fault.from(thrown);
  const wrapped =
    fault.kind === "internal" &&
    fault.cause !== undefined &&
    !isFault(fault.cause) &&
    fault.message === messageOf(fault.cause);
  if (!wrapped) return fault;
  return new Fault("internal", `internal error in request ${requestId}`, {
    cause: fault,
    hint: "the log of the process that answered has the cause under this request_id",
  });
}

/** The status that ends a call on the wire. */
export function statusOf(fault: Fault): StatusObject {
  const message = bounded(fault.message, MAX_MESSAGE_BYTES);
  const metadata = new Metadata();
  metadata.set(DETAILS_KEY, encodeDetails(fault, message));
  return { code: codeOf(fault), details: message, metadata };
}

/** Details that others wait for come first; our own explanation follows, when there is something to say. */
function encodeDetails(fault: Fault, message: string): Buffer {
  const hint = bounded(fault.hint ?? "", MAX_HINT_CHARACTERS);
  const own = {
    type_url: ERROR_INFO,
    value: errorInfo().serialize({ reason: fault.code, domain: ERROR_DOMAIN, metadata: hint === "" ? {} : { hint } }),
  };
  const foreign = fault.details
    .filter((detail) => ownInfo(detail) === undefined)
    .map(({ typeUrl, value }) => ({ type_url: typeUrl, value: Buffer.from(value) }));
  const whole = richStatus().serialize({ code: codeOf(fault), message, details: [...foreign, own] });
  return whole.length <= MAX_DETAILS_BYTES
    ? whole
    : richStatus().serialize({ code: codeOf(fault), message, details: [own] });
}

/** The detail by which SPIFFE's own APIs name a cause. SPIFFE Broker API, section 4.8. */
export function spiffeReason(reason: string): FaultDetail {
  return { typeUrl: ERROR_INFO, value: errorInfo().serialize({ reason, domain: SPIFFE_DOMAIN, metadata: {} }) };
}

/** The reason that `spiffeReason` put there; undefined when there is none. */
export function spiffeReasonOf({ details }: Fault): string | undefined {
  return details.map((detail) => infoOf(detail, SPIFFE_DOMAIN)).find((found) => found !== undefined)?.reason;
}

/** The detail that tells a client how long to stay away. */
export function retryAfter(ms: number): FaultDetail {
  const retry_delay = { seconds: Math.floor(ms / 1000), nanos: Math.floor(ms % 1000) * 1_000_000 };
  return { typeUrl: RETRY_INFO, value: retryInfo().serialize({ retry_delay }) };
}

/** How long the peer asked to stay away, in milliseconds; 0 when it did not. No peer keeps a client away for longer than this. */
export function retryAfterOf(error: unknown): number {
  const detail = isFault(error) ? error.details.find(({ typeUrl }) => typeUrl === RETRY_INFO) : undefined;
  const delay = detail && readable(() => retryInfo().deserialize(Buffer.from(detail.value)).retry_delay);
  const ms = Number(delay?.seconds ?? 0) * 1000 + (delay?.nanos ?? 0) / 1_000_000;
  return Math.min(Math.max(0, ms), MAX_RETRY_AFTER_MS);
}

/** The fault that a peer's status stands for. */
export function faultFrom(code: number, message: string, metadata: Metadata | undefined): Fault {
  const details = decodeDetails(metadata);
  const info = details.map(ownInfo).find((found) => found !== undefined);
  const kind = kinds.get(code) ?? "internal";
  const hint = info?.metadata["hint"];
  return new Fault(kind, message, {
    code: info === undefined || info.reason === "" ? kind : info.reason,
    details,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** Details that cannot be read are as good as none: they explain the status, they do not change it. */
function decodeDetails(metadata: Metadata | undefined): readonly FaultDetail[] {
  const bytes = metadata?.get(DETAILS_KEY)[0];
  if (!Buffer.isBuffer(bytes)) return [];
  const status = readable(() => richStatus().deserialize(bytes));
  return status?.details.map(({ type_url, value }) => ({ typeUrl: type_url, value })) ?? [];
}

function ownInfo(detail: FaultDetail): ErrorInfo__Output | undefined {
  return infoOf(detail, ERROR_DOMAIN);
}

function infoOf(detail: FaultDetail, domain: string): ErrorInfo__Output | undefined {
  if (detail.typeUrl !== ERROR_INFO) return undefined;
  const info = readable(() => errorInfo().deserialize(Buffer.from(detail.value)));
  return info?.domain === domain ? info : undefined;
}

function readable<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch {
    return undefined;
  }
}

/** Lone surrogates cannot be sent. */
function bounded(text: string, bytes: number): string {
  const whole = text.toWellFormed();
  if (Buffer.byteLength(whole) <= bytes) return whole;
  return `${new TextDecoder().decode(Buffer.from(whole).subarray(0, bytes - 3)).replace(/\uFFFD+$/, "")}...`;
}

/** Why a server refuses an agent; an agent acts on it. */
export type DenialReason = (typeof denialReasons)[keyof typeof denialReasons];

const denialReasons = {
  AGENT_EXPIRED: "expired",
  AGENT_NOT_ATTESTED: "not_attested",
  AGENT_NOT_ACTIVE: "not_active",
  AGENT_BANNED: "banned",
  AGENT_MUST_REATTEST: "must_reattest",
} as const;

type WireReason = keyof typeof denialReasons;

/** `denied`, with the reason in the form that SPIRE's agents look for. */
export function agentDenied(reason: DenialReason, message: string): Fault {
  const found = Object.entries(denialReasons).find(([, ours]) => ours === reason);
  const value = permissionDenied().serialize({ reason: found?.[0] as WireReason });
  return new Fault("denied", message, {
    code: `agent-${reason.replace("_", "-")}`,
    details: [{ typeUrl: PERMISSION_DENIED, value }],
  });
}

/** The reason in a `denied` fault; undefined for any other fault. */
export function denialReason(fault: Fault): DenialReason | undefined {
  if (fault.kind !== "denied") return undefined;
  for (const { typeUrl, value } of fault.details) {
    if (typeUrl !== PERMISSION_DENIED) continue;
    const reason = readable(() => permissionDenied().deserialize(Buffer.from(value)).reason);
    if (reason !== undefined && reason in denialReasons) return denialReasons[reason as WireReason];
  }
  return undefined;
}
