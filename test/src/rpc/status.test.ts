import { Metadata, status } from "@grpc/grpc-js";
import fc from "fast-check";
import { expect, test } from "vitest";
import { errorInfo, permissionDenied, richStatus } from "../../../src/rpc/protos.ts";
import {
  agentDenied,
  codeNameOf,
  codeOf,
  denialReason,
  faultFrom,
  itemStatus,
  publicFault,
  retryAfter,
  retryAfterOf,
  statusOf,
} from "../../../src/rpc/status.ts";
import { FAULT_KINDS, Fault } from "../../../src/runtime/fault.ts";

const KEY = "grpc-status-details-bin";

test("every kind has a code of its own and comes back from it", () => {
  const codes = FAULT_KINDS.map((kind) => codeOf(new Fault(kind, "x")));
  expect(new Set(codes).size).toBe(FAULT_KINDS.length);
  expect(codes.map((code) => faultFrom(code, "x", undefined).kind)).toEqual(FAULT_KINDS);
});

test.each([
  { code: status.UNKNOWN, kind: "internal" },
  { code: status.DATA_LOSS, kind: "internal" },
  { code: status.OUT_OF_RANGE, kind: "invalid" },
  { code: 99, kind: "internal" },
])("code $code, which we never send, is read as $kind", ({ code, kind }) => {
  expect(faultFrom(code, "x", undefined)).toMatchObject({ kind, message: "x", code: kind });
});

test("codes have the names that SPIRE prints", () => {
  expect(Array.from({ length: 18 }, (_, code) => codeNameOf(code))).toEqual([
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
    "Unknown",
  ]);
});

test("kind, message, code and hint survive the wire, whatever they are", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...FAULT_KINDS),
      fc.string({ unit: "binary" }),
      fc.stringMatching(/^[a-z-]{1,40}$/),
      fc.string({ minLength: 1, maxLength: 100 }),
      (kind, message, code, hint) => {
        const sent = statusOf(new Fault(kind, message, { code, hint }));
        const got = faultFrom(sent.code, sent.details, sent.metadata);
        expect(got).toMatchObject({ kind, code, hint: hint.toWellFormed() });
        expect(got.message).toBe(sent.details);
        expect(sent.details.isWellFormed()).toBe(true);
        if (Buffer.byteLength(message) <= 2048) expect(got.message).toBe(message.toWellFormed());
      },
    ),
  );
});

test("no status is larger than the header limits of clients allow, and what is cut is cut between characters", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "binary", minLength: 0, maxLength: 20_000, size: "max" }),
      fc.string({ unit: "binary", maxLength: 20_000, size: "max" }),
      (message, hint) => {
        const { details, metadata } = statusOf(
          new Fault("invalid", message, { hint, details: [{ typeUrl: "a/b", value: Buffer.alloc(5000) }] }),
        );
        expect(Buffer.byteLength(details)).toBeLessThanOrEqual(2048);
        expect(String(metadata.get(KEY)[0]).length).toBeLessThanOrEqual(4096);
        expect(details).not.toContain("\ufffd\ufffd\ufffd...");
      },
    ),
    { numRuns: 20 },
  );
});

test.each([
  { reason: "expired", wire: "AGENT_EXPIRED", number: 1 },
  { reason: "not_attested", wire: "AGENT_NOT_ATTESTED", number: 2 },
  { reason: "not_active", wire: "AGENT_NOT_ACTIVE", number: 3 },
  { reason: "banned", wire: "AGENT_BANNED", number: 4 },
  { reason: "must_reattest", wire: "AGENT_MUST_REATTEST", number: 5 },
] as const)(
  "an agent refused as $reason finds it first among the details, as SPIRE sends it",
  ({ reason, wire, number }) => {
    const { code, metadata, details } = statusOf(agentDenied(reason, "no"));
    expect([code, details]).toEqual([status.PERMISSION_DENIED, "no"]);
    const sent = richStatus().deserialize(metadata.get(KEY)[0] as Buffer);
    expect(sent).toMatchObject({ code: 7, message: "no" });
    expect(sent.details[0]?.type_url).toBe("type.googleapis.com/spire.api.types.PermissionDeniedDetails");
    expect(sent.details[0]?.value).toEqual(Buffer.from([8, number]));
    expect(permissionDenied().deserialize(sent.details[0]?.value as Buffer)).toEqual({ reason: wire });
    expect(denialReason(faultFrom(code, details, metadata))).toBe(reason);
  },
);

test("a reason counts only in a refusal, and one that is not known counts for nothing", () => {
  const [detail] = agentDenied("banned", "no").details;
  const details = detail === undefined ? [] : [detail];
  expect(denialReason(new Fault("internal", "no", { details }))).toBeUndefined();
  for (const bytes of [[8, 0], [8, 77], [0xff]]) {
    const value = Buffer.from(bytes);
    expect(
      denialReason(new Fault("denied", "no", { details: [{ typeUrl: detail?.typeUrl ?? "", value }] })),
    ).toBeUndefined();
  }
});

test.each([
  { what: "no protobuf", bytes: Buffer.from([0xff, 0xff]) },
  { what: "empty", bytes: Buffer.alloc(0) },
])("details that are $what leave the status as it is", ({ bytes }) => {
  const metadata = new Metadata();
  metadata.set(KEY, bytes);
  expect(faultFrom(5, "gone", metadata)).toMatchObject({
    kind: "not_found",
    message: "gone",
    code: "not_found",
    details: [],
  });
});

test("an explanation of another domain keeps its place but is not taken for ours", () => {
  const metadata = new Metadata();
  const value = errorInfo().serialize({ reason: "WORKLOAD_NOT_FOUND", domain: "spiffe.io", metadata: { hint: "x" } });
  metadata.set(
    KEY,
    richStatus().serialize({
      code: 5,
      message: "m",
      details: [{ type_url: "type.googleapis.com/google.rpc.ErrorInfo", value }],
    }),
  );
  const fault = faultFrom(5, "m", metadata);
  expect(fault).toMatchObject({ code: "not_found", hint: undefined });
  expect(fault.details).toHaveLength(1);
});

test("only what was thrown on purpose shows its text", () => {
  const made = new Fault("internal", "failed to sign", { cause: new Error("secret") });
  expect(publicFault(made, "id")).toBe(made);
  for (const thrown of [new Error("secret"), Fault.from(new TypeError("secret")), "secret"]) {
    const fault = publicFault(thrown, "id");
    expect(fault).toMatchObject({ kind: "internal", message: "internal error in request id" });
    expect(JSON.stringify(statusOf(fault))).not.toContain("secret");
  }
});

test("items of a batch have a code and a message, and OK without a fault", () => {
  expect(itemStatus(undefined)).toEqual({ code: 0, message: "OK" });
  expect(itemStatus(new Fault("not_found", "no entry"))).toEqual({ code: 5, message: "no entry" });
});

test.each([
  { ms: 0, read: 0 },
  { ms: 1_250, read: 1_250 },
  { ms: 59_999, read: 59_999 },
  { ms: 3_600_000, read: 60_000 },
])("a client is told over the wire to stay away for $ms ms", ({ ms, read }) => {
  const { code, details, metadata } = statusOf(new Fault("exhausted", "busy", { details: [retryAfter(ms)] }));
  expect(retryAfterOf(faultFrom(code, details, metadata))).toBe(read);
});

test("a fault that names no time, and one whose detail is junk, keep nobody away", () => {
  const junk = { typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value: Buffer.from("junk") };
  expect(
    [new Fault("exhausted", "x"), new Fault("exhausted", "x", { details: [junk] }), "x"].map(retryAfterOf),
  ).toEqual([0, 0, 0]);
});
