import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ContainerFiles, cgroupPaths, locateContainer, readContainer } from "../../../agent/workload/container.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { Cgroup, hasCgroups } from "../../support/cgroup.ts";
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

/** Those that a kernel shows for a process in groups that can be made: by their full path. */
const real = vectors.flatMap((vector) => {
  const { name, cgroup = [], mountinfo, expect: spire, ours = spire } = vector;
  const isPlain =
    mountinfo === undefined && cgroup.length > 0 && cgroup.every((line) => /^\d*:[^:]*:\/(?!\.\.)/.test(line));
  return isPlain ? [{ name, paths: [...new Set(cgroupPaths(cgroup.join("\n")))], expected: ours }] : [];
});

describe.skipIf(!hasCgroups)("T-W4 a real process in real control groups of each shape", () => {
  let child: ChildProcess;
  beforeAll(() => {
    child = spawn("sleep", ["600"]);
  });
  afterAll(async () => {
    child.kill("SIGKILL");
    await once(child, "close");
  });

  test("is most of the table", () => expect(real.length).toBeGreaterThanOrEqual(40));

  test.each(real)("$name", async ({ paths, expected }) => {
    using groups = new Cgroup(...paths);
    const pid = child.pid ?? 0;
    groups.add(pid);
    const shown = cgroupPaths(readFileSync(`/proc/${pid}/cgroup`, "latin1"));
    expect(shown).toEqual(expect.arrayContaining([...paths]));
    const reading = readContainer({ pid } as PeerProcess, "/proc");
    if ("error" in expected) {
      await expect(reading).rejects.toMatchObject({ message: expect.stringContaining(expected.error) });
      return;
    }
    const place = await reading;
    expect({ podUid: place?.podUid ?? "", containerId: place?.containerId ?? "" }).toEqual(expected);
  });

  test.each([
    { from: "a container of the same pod", pod: "same", path: /^\/\.\.\/[0-9a-f]{64}$/ },
    { from: "a container of another pod", pod: "other", path: /^\/\.\.\/\.\.\/pod[0-9a-f-]+\/[0-9a-f]{64}$/ },
  ])("as the kernel shows it to who sees control groups from inside $from", async ({ pod, path }) => {
    const [uid, other] = ["2c48913c-b29f-11e7-9350-020968147796", "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80"];
    const id = "1".repeat(64);
    using theirs = new Cgroup(`kubepods/burstable/pod${uid}/${id}`);
    using ours = new Cgroup(`kubepods/burstable/pod${pod === "same" ? uid : other}/${"2".repeat(64)}`);
    theirs.add(child.pid ?? 0);
    const script = 'read line && exec unshare --cgroup cat "/proc/$1/cgroup"';
    const reader = spawn("sh", ["-c", script, "sh", String(child.pid)]);
    ours.add(reader.pid ?? 0);
    reader.stdin.end("go\n");
    const cgroup = await text(reader.stdout);
    expect(cgroupPaths(cgroup)).toContainEqual(expect.stringMatching(path));
    const expected = pod === "same" ? { containerId: id } : { containerId: id, podUid: uid };
    expect(locateContainer({ cgroup })).toMatchObject(expected);
  });
});
