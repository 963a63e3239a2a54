import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { brokerAdmission } from "../../../agent/api/broker-caller.ts";
import { REFERENCE_TYPES, readReference } from "../../../agent/api/broker-reference.ts";
import type { KubernetesObject, ReferencedWorkload } from "../../../agent/workload/references.ts";
import type { Call } from "../../../src/rpc/caller.ts";
import type { WorkloadReference__Output } from "../../../src/rpc/gen/spiffe/broker/WorkloadReference.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { BROKER_HEADER, objectReference, spiffeReasonOf } from "../../support/broker.ts";
import { PROJECT } from "../../support/imports.ts";
import { RecordingLog } from "../../support/recording-log.ts";

const UID = "0F1E2D3C-4b5a-6978-8796-a5b4c3d2e1f0";
const POD = { plural: "pods", group: "core" };
const KEY = { namespace: "shop", name: "web-1" };

/** What an attestor that knows the cluster is asked for. */
async function asked(object: Parameters<typeof objectReference>[0]): Promise<KubernetesObject> {
  const { promise, resolve } = Promise.withResolvers<KubernetesObject>();
  const nobody = async (): Promise<ReferencedWorkload> => {
    throw new Fault("not_found", "not here");
  };
  const objects = {
    open: (wanted: KubernetesObject) => {
      resolve(wanted);
      return nobody();
    },
  };
  const message = objectReference(object) as WorkloadReference__Output;
  const reference = readReference(message, { processes: { open: nobody }, objects });
  const broker = parseSpiffeId("spiffe://example.org/broker");
  await reference.open({ broker, signal: new AbortController().signal }).catch(() => {});
  return promise;
}

describe("references to Kubernetes objects", () => {
  test.each([
    { what: "BRK-21 BRK-25 a key", object: { type: POD, key: KEY }, expected: { ...POD, key: KEY, uid: undefined } },
    {
      what: "BRK-25 BRK-27 D-19 a UID, in whatever case",
      object: { type: POD, uid: UID },
      expected: { ...POD, key: undefined, uid: UID.toLowerCase() },
    },
    {
      what: "BRK-26 both, for the attestor to compare",
      object: { type: POD, key: KEY, uid: UID },
      expected: { ...POD, key: KEY, uid: UID.toLowerCase() },
    },
    {
      what: "BRK-20 a group of its own, kept apart from the plural",
      object: { type: { plural: "myresource.example", group: "com" }, key: KEY },
      expected: { plural: "myresource.example", group: "com", key: KEY, uid: undefined },
    },
    {
      what: "BRK-21 another spelling of core, which is another group",
      object: { type: { plural: "pods", group: "Core" }, key: KEY },
      expected: { plural: "pods", group: "Core", key: KEY, uid: undefined },
    },
    {
      what: "BRK-23 no namespace",
      object: { type: { plural: "nodes", group: "core" }, key: { name: "n1" } },
      expected: { plural: "nodes", group: "core", key: { namespace: "", name: "n1" }, uid: undefined },
    },
  ])("$what", async ({ object, expected }) => expect(await asked(object)).toEqual(expected));

  test.each([
    { what: "BRK-19 no type", object: { key: KEY } },
    { what: "BRK-19 no plural", object: { type: { group: "core" }, key: KEY } },
    { what: "BRK-19 BRK-21 no group", object: { type: { plural: "pods" }, key: KEY } },
    { what: "BRK-25 neither key nor UID", object: { type: POD } },
    { what: "BRK-24 a key without a name, even with a UID", object: { type: POD, key: { namespace: "s" }, uid: UID } },
    { what: "BRK-27 a UID that is none", object: { type: POD, uid: "not-a-uuid" } },
    { what: "BRK-27 a UID too short", object: { type: POD, uid: UID.slice(1) } },
    { what: "BRK-27 a UID too long", object: { type: POD, uid: `${UID}0` } },
  ])("$what is InvalidArgument", async ({ object }) => {
    const error = await asked(object).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ kind: "invalid", code: "workload-reference-invalid" });
    expect(spiffeReasonOf(error)).toBe("WORKLOAD_REFERENCE_INVALID");
  });
});

test("BRK-29 the README names every type of reference in full", () => {
  const readme = readFileSync(join(PROJECT, "README.md"), "utf8");
  expect(REFERENCE_TYPES).toHaveLength(2);
  for (const type of REFERENCE_TYPES) expect(readme).toContain(`type.googleapis.com/${type}`);
});

test("BEP-19 a client that TLS let through without a name is Unauthenticated", async () => {
  const call = {
    method: "/spiffe.broker.API/FetchJWTSVID",
    caller: { transport: "tcp", connectionId: "c" },
    metadata: { get: (key: string) => (key in BROKER_HEADER ? ["true"] : []) },
    log: new RecordingLog(),
  } as unknown as Call;
  await expect(brokerAdmission([])(call)).rejects.toMatchObject({ kind: "unauthenticated" });
});
