import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type ContainerFiles, locateContainer } from "../../../agent/workload/container.ts";
import { faultOf } from "../../support/faults.ts";

type Expected = { readonly podUid: string; readonly containerId: string } | { readonly error: string };

interface CgroupVector {
  readonly name: string;
  readonly cgroup?: readonly string[];
  readonly mountinfo?: readonly string[];
  readonly expect: Expected;
  readonly ours?: Expected;
  readonly podman?: string;
}

const file = readFileSync(new URL("../../vectors/cgroup.json", import.meta.url), "utf8");
const { vectors } = JSON.parse(file) as { readonly vectors: readonly CgroupVector[] };

function filesOf({ cgroup, mountinfo }: CgroupVector): ContainerFiles {
  return {
    ...(cgroup === undefined ? {} : { cgroup: `${cgroup.join("\n")}\n` }),
    ...(mountinfo === undefined ? {} : { mountinfo: `${mountinfo.join("\n")}\n` }),
  };
}

describe("the container of a process (T-W4)", () => {
  test("every known shape is among the vectors", () => {
    expect(vectors.length).toBeGreaterThanOrEqual(52);
  });

  test.each(vectors)("$name", (vector) => {
    const expected = vector.ours ?? vector.expect;
    if ("error" in expected) {
      const fault = faultOf(() => locateContainer(filesOf(vector)));
      expect(fault).toMatchObject({ kind: "precondition", message: expect.stringContaining(expected.error) });
      return;
    }
    const place = locateContainer(filesOf(vector));
    expect({ podUid: place?.podUid ?? "", containerId: place?.containerId ?? "" }).toEqual(expected);
    expect(place?.podman ?? false).toBe(vector.podman !== undefined);
  });

  test("the groups that a user can name are told apart", () => {
    const id = "1".repeat(64);
    const delegated = `0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker-${id}.scope`;
    expect(locateContainer({ cgroup: delegated })).toMatchObject({ containerId: id, user: 1000 });
    expect(locateContainer({ cgroup: `0::/system.slice/docker-${id}.scope` })).not.toHaveProperty("user");
  });
});
