import { describe, expect, test } from "vitest";
import { kubernetesReference, pidReference, type WorkloadReference } from "../../../src/client/broker-reference.ts";
import { kubernetesObjectReference } from "../../../src/rpc/protos.ts";
import { faultOf, refusal } from "../../support/faults.ts";

describe("a reference that no endpoint could resolve is refused before anything is sent", () => {
  const uid = "a1b2c3d4-e5f6-7890-abcd-ef1234567890";
  const pod = { plural: "pods", group: "core" };
  test.each<{ id: string; what: string; make: () => WorkloadReference }>([
    { id: "BRK-17", what: "process 0", make: () => pidReference(0) },
    { id: "BRK-17", what: "process -1", make: () => pidReference(-1) },
    { id: "BRK-17", what: "process 1.5", make: () => pidReference(1.5) },
    { id: "BRK-17", what: "a process beyond 32 bits", make: () => pidReference(2 ** 31) },
    { id: "BRK-19", what: "no plural", make: () => kubernetesReference({ ...pod, plural: "", name: "a" }) },
    { id: "BRK-19 BRK-21", what: "no group", make: () => kubernetesReference({ ...pod, group: "", name: "a" }) },
    { id: "BRK-24", what: "a key without name", make: () => kubernetesReference({ ...pod, namespace: "s", uid }) },
    { id: "BRK-25", what: "neither name nor UID", make: () => kubernetesReference(pod) },
    { id: "BRK-27", what: "no UUID", make: () => kubernetesReference({ ...pod, uid: "not-a-uuid" }) },
    { id: "BRK-27", what: "a UUID too long", make: () => kubernetesReference({ ...pod, uid: `${uid}0` }) },
  ])("$id $what", ({ make }) => {
    expect(faultOf(make)).toMatchObject(refusal("invalid", "workload-reference-invalid"));
  });

  test("BRK-20 BRK-22 BRK-23 BRK-25 the message has what was given, and nothing for what was not", () => {
    const read = (reference: WorkloadReference) =>
      kubernetesObjectReference().deserialize(Buffer.from(reference.value));
    const named = { ...pod, namespace: "shop", name: "checkout" };
    expect(read(kubernetesReference({ ...named, uid }))).toEqual({
      type: pod,
      key: { namespace: "shop", name: "checkout" },
      uid,
    });
    expect(read(kubernetesReference({ ...pod, uid }))).toEqual({ type: pod, key: null, uid });
    expect(read(kubernetesReference({ plural: "nodes", group: "core", name: "n" }))).toMatchObject({
      key: { namespace: "", name: "n" },
      uid: "",
    });
    const type = { plural: "deployments", group: "apps" };
    expect(read(kubernetesReference({ ...type, namespace: "s", name: "a" }))).toMatchObject({ type });
  });
});
