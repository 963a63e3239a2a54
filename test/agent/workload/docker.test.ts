import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { readdirSync } from "node:fs";
import { symlink } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { cgroupMatcher } from "../../../agent/config/cgroup-matchers.ts";
import { DockerAttestor, type DockerAttestorOptions } from "../../../agent/workload/docker.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Cgroup, hasCgroups } from "../../support/cgroup.ts";
import { ContainerEngine, startUserEngine } from "../../support/engine.ts";
import { eventually } from "../../support/eventually.ts";
import { faultOf } from "../../support/faults.ts";
import { ProcRoot } from "../../support/proc-root.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { isRoot, NOBODY, PinningSocket, startWorkload, temporaryDirectory } from "../../support/workload.ts";

const never = new AbortController().signal;
const scope = new AsyncDisposableStack();
const id = (): string => randomBytes(32).toString("hex");
const [web, plain, victim] = [id(), id(), id()];
const digest = `sha256:${"d".repeat(64)}`;
const moved = `sha256:${"e".repeat(64)}`;
const webContainer = {
  ...{ id: web, name: "web", image: "registry.example/web:1", imageId: digest },
  labels: { "com.example.app": "web", tier: "" },
  env: ["PATH=/bin", "EMPTY=", "A=b=c"],
};
const webValues = [
  ...["env:A=b=c", "env:EMPTY=", "env:PATH=/bin", `image_config_digest:${digest}`],
  ...["image_id:registry.example/web:1", "label:com.example.app:web", "label:tier:"],
];
let docker: ContainerEngine;
let proc: ProcRoot;

beforeAll(async () => {
  proc = scope.use(await ProcRoot.open());
  docker = scope.use(
    await ContainerEngine.open({
      containers: [webContainer, { id: plain, image: "busybox" }, { id: victim, image: "victim", imageId: digest }],
      images: { "registry.example/web:1": moved, busybox: moved },
    }),
  );
});
afterAll(() => scope.disposeAsync());

function attestor(options: Partial<DockerAttestorOptions> = {}): DockerAttestor {
  return new DockerAttestor({
    ...{ dockerSocketPath: docker.path, podmanSocketPath: "/nonexistent/podman.sock", dockerVersion: undefined },
    podmanSocketOf: (uid) => `/nonexistent/${uid}/podman.sock`,
    ...{ matcher: undefined, verboseContainerLocatorLogs: false, log: new RecordingLog() },
    ...{ clock: systemClock, procRoot: proc.path },
    ...options,
  });
}

async function valuesOf(attesting: DockerAttestor, peer: PeerProcess): Promise<readonly string[]> {
  const selectors = await attesting.attest(peer, never);
  return selectors.map(({ type, value }) => `${type}:${value}`.replace(/^docker:/, "")).sort();
}

describe("docker selectors", () => {
  test("labels, environment, image by name and by the digest that the container was made of", async () => {
    const peer = await proc.caller(`12:pids:/docker/${web}`, "0::/system.slice/containerd.service");
    expect(await valuesOf(attestor(), peer)).toEqual(webValues);
  });

  test("the image is inspected where the container does not say its digest", async () => {
    const values = await valuesOf(attestor(), await proc.caller(`0::/system.slice/docker-${plain}.scope`));
    expect(values).toEqual([`image_config_digest:${moved}`, "image_id:busybox"]);
  });

  test("a caller outside of containers has none, and the engine is not asked", async () => {
    const before = docker.requests.length;
    expect(await valuesOf(attestor(), await proc.caller("0::/user.slice/session-1.scope"))).toEqual([]);
    expect(docker.requests.length).toBe(before);
  });

  test("docker_version is spoken, and what the engine says against it is told", async () => {
    const peer = await proc.caller(`0::/docker/${web}`);
    expect(await valuesOf(attestor({ dockerVersion: "1.40" }), peer)).toEqual(webValues);
    expect(docker.requests.at(-1)).toBe(`/v1.40/containers/${web}/json`);
    const refused = attestor({ dockerVersion: "1.99" }).attest(peer, never);
    await expect(refused).rejects.toMatchObject({ message: /client version 1.99 is too new/ });
  });

  test("an unknown container is asked for again, and then refused", async () => {
    const before = docker.requests.length;
    const refused = attestor().attest(await proc.caller(`0::/docker/${id()}`), never);
    await expect(refused).rejects.toMatchObject({ kind: "unavailable", code: "container-unknown" });
    const asked = docker.requests.length - before;
    expect(asked).toBeGreaterThan(1);
    expect(asked).toBeLessThanOrEqual(4);
  });

  test("an engine that is away is a reason", async () => {
    const attesting = attestor({ dockerSocketPath: "/nonexistent/docker.sock" });
    const refused = attesting.attest(await proc.caller(`0::/docker/${web}`), never);
    await expect(refused).rejects.toMatchObject({ kind: "unavailable", message: /ENOENT/ });
  });

  test.skipIf(!hasCgroups)("of a real process in a real control group", async () => {
    await using held = new AsyncDisposableStack();
    const socket = held.use(await PinningSocket.open());
    const group = held.use(new Cgroup(`system.slice/docker-${web}.scope`));
    const workload = held.use(await startWorkload({ socket: socket.path }));
    group.add(workload.pid);
    expect(await valuesOf(attestor({ procRoot: "/proc" }), await socket.next())).toEqual(webValues);
  });
});

describe("container_id_cgroup_matchers", () => {
  test("find containers of runtimes that the rules do not know", async () => {
    const matcher = cgroupMatcher(["/ecs/*/<id>", "/my.slice/<id>"]);
    const find = async (path: string) => valuesOf(attestor({ matcher }), await proc.caller(`0::${path}`));
    expect(await find(`/ecs/task/${web}`)).toEqual(webValues);
    expect(await find(`/my.slice/${web}`)).toEqual(webValues);
    expect(await find(`/my.slice/${web.slice(0, 12)}`)).toEqual(webValues);
    expect(await find("/my.slice/web")).toEqual(webValues);
    expect(await find(`/myxslice/${web}`)).toEqual([]);
    expect(await find(`/ecs/task/${web}/more`)).toEqual([]);
    expect(await find("/my.slice/")).toEqual([]);
  });

  test("that disagree are refused", async () => {
    const peer = await proc.caller(`2:cpu:/docker/${web}`, `1:pids:/docker/${victim}`);
    const refused = attestor({ matcher: cgroupMatcher(["/docker/<id>"]) }).attest(peer, never);
    await expect(refused).rejects.toMatchObject({ code: "container-ambiguous" });
  });

  test.each([
    { patterns: ["/docker"], message: /must contain the container id token "<id>" exactly once/ },
    { patterns: ["/<id>/<id>"], message: /exactly once/ },
    { patterns: ["/a/b/<id>", "/*/b/<id>"], message: /must not be ambiguous/ },
    { patterns: ["/a/<id>", "/<id>/b"], message: /must not be ambiguous/ },
  ])("$patterns are refused", ({ patterns, message }) => {
    expect(faultOf(() => cgroupMatcher(patterns))).toMatchObject({ kind: "invalid", message });
  });
});

describe("T-W4 a container is what its engine and the kernel agree on", () => {
  test("a container inside another one that the engine knows is refused", async () => {
    const peer = await proc.caller(`0::/docker/${web}/docker/${victim}`);
    await expect(attestor().attest(peer, never)).rejects.toMatchObject({ code: "container-nested" });
  });

  test("a pod's container that names a group like a Docker container does not become it", async () => {
    const peer = await proc.caller(`0::/kubepods/pod${randomUUID()}/${id()}/docker/${victim}`);
    await expect(attestor().attest(peer, never)).rejects.toMatchObject({ code: "container-unknown" });
  });

  test.skipIf(!isRoot)("a user who names a group like a container of the system's engine is not believed", async () => {
    const slice = "0::/user.slice/user-65534.slice/user@65534.service/app.slice";
    const peer = await proc.caller(`${slice}/docker-${victim}.scope`);
    await expect(attestor().attest(peer, never)).rejects.toMatchObject({
      code: "engine-refused",
      message: /runs as uid 0/,
    });
  });
});

describe("podman", () => {
  test("the system's has its own socket", async () => {
    await using podman = await ContainerEngine.open({ containers: [webContainer] });
    const peer = await proc.caller(`0::/machine.slice/libpod-${web}.scope`);
    expect(await valuesOf(attestor({ podmanSocketPath: podman.path }), peer)).toEqual(webValues);
    expect(podman.requests).toEqual([`/containers/${web}/json`]);
  });

  test.skipIf(!isRoot)("a user's is asked at the user's socket, when it is the user's process", async () => {
    await using podman = await startUserEngine(NOBODY, { containers: [webContainer] });
    const slice = `0::/user.slice/user-${NOBODY}.slice/user@${NOBODY}.service/user.slice`;
    const asked: number[] = [];
    const podmanSocketOf = (uid: number): string => {
      asked.push(uid);
      return podman.path;
    };
    for (const path of [`libpod-${web}.scope`, `libpod/${web}`]) {
      const peer = await proc.caller(`${slice}/${path}`);
      expect(await valuesOf(attestor({ podmanSocketOf }), peer)).toEqual(webValues);
    }
    expect(asked).toEqual([NOBODY, NOBODY]);
  });

  test.skipIf(!isRoot)("T-W4 a user who puts the system's engine in its place gains nothing", async () => {
    await using folder = await temporaryDirectory();
    const link = join(folder.path, "podman.sock");
    await symlink(docker.path, link);
    const slice = `0::/user.slice/user-${NOBODY}.slice/user@${NOBODY}.service`;
    const peer = await proc.caller(`${slice}/libpod-${victim}.scope`);
    const refused = attestor({ podmanSocketOf: () => link }).attest(peer, never);
    await expect(refused).rejects.toMatchObject({ code: "engine-refused" });
  });

  test("of a user that cannot be asks nobody", async () => {
    const slice = "0::/user.slice/user-4294967296.slice/user@4294967296.service/user.slice";
    const refused = attestor({ podmanSocketPath: docker.path }).attest(
      await proc.caller(`${slice}/libpod-${web}.scope`),
      never,
    );
    await expect(refused).rejects.toMatchObject({ kind: "unavailable" });
  });
});

test("T-W2 failing attestations leave no descriptor behind", async () => {
  const open = (): number => readdirSync("/proc/self/fd").length;
  const peer = await proc.caller(`0::/docker/${web}/docker/${victim}`);
  const fail = async (count: number): Promise<void> => {
    for (let done = 0; done < count; done += 50)
      await Promise.all(
        Array.from({ length: 50 }, async () => {
          await expect(attestor().attest(peer, never)).rejects.toMatchObject({ code: "container-nested" });
        }),
      );
  };
  const before = open();
  await fail(550);
  await eventually("what was opened is closed", () => open() <= before);
});

describe("the double", () => {
  test("is engine enough for Docker's own client", async () => {
    const client = (...args: string[]) => promisify(execFile)("docker", ["-H", `unix://${docker.path}`, ...args]);
    const found = await promisify(execFile)("docker", ["--version"]).catch(() => undefined);
    if (found === undefined) return;
    const { stdout } = await client(
      "inspect",
      "--type",
      "container",
      "--format",
      "{{.Config.Image}} {{.Image}}",
      "web",
    );
    expect(stdout.trim()).toBe(`registry.example/web:1 ${digest}`);
  });
});
