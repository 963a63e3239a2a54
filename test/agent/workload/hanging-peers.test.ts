import { randomUUID } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Attestor, WorkloadAttestor } from "../../../agent/workload/attest.ts";
import { DockerAttestor } from "../../../agent/workload/docker.ts";
import { openSigstore } from "../../../agent/workload/sigstore/open.ts";
import { SystemdAttestor } from "../../../agent/workload/systemd.ts";
import { UnixAttestor } from "../../../agent/workload/unix.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { formatSelector } from "../../../src/spiffe/selector.ts";
import { eventually } from "../../support/eventually.ts";
import { containerId, K8sNode } from "../../support/k8s-node.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { RegistryDouble } from "../../support/registry.ts";
import { publish, SigstoreDouble } from "../../support/sigstore.ts";
import { startBus, startSystemd } from "../../support/systemd.ts";
import { PinningSocket, startWorkload, temporaryDirectory } from "../../support/workload.ts";

const clock = systemClock;
/** More than are attested at the same time of one user. */
const STORM = 300;
const scope = new AsyncDisposableStack();
const stop = new AbortController();
let node: K8sNode;
let socket: PinningSocket;

beforeAll(async () => {
  node = scope.use(await K8sNode.open());
  socket = scope.use(await PinningSocket.open());
});
afterAll(async () => {
  stop.abort();
  await scope.disposeAsync();
});

/** A process whose control groups are these; of its user's other callers it is told apart by them. */
async function caller(cgroup: string): Promise<PeerProcess> {
  const { pid } = scope.use(await startWorkload({ socket: socket.path }));
  await node.proc.place(pid, `0::${cgroup}`);
  await writeFile(join(node.proc.path, String(pid), "status"), await readFile(`/proc/${pid}/status`));
  return { ...(await socket.next()), cgroup };
}

async function podCaller(imageID = ""): Promise<PeerProcess> {
  const { pod, id } = await node.pod();
  node.kubelet.set({
    ...pod,
    containers: [{ name: "web", image: "app:1", imageID, containerID: `containerd://${id}` }],
  });
  return caller(`/kubepods/burstable/pod${pod.uid}/${id}`);
}

const unix = () => new UnixAttestor({ discoverWorkloadPath: false, workloadSizeLimit: 0, clock, signal: stop.signal });

function attesting(...attestors: readonly Attestor[]): WorkloadAttestor {
  return new WorkloadAttestor({ attestors: [...attestors, unix()], clock, log: new RecordingLog() });
}

/** As many as can be, each from a control group of its own, all of the other callers' user. */
function storm(workloads: WorkloadAttestor, peer: PeerProcess) {
  const left = new AbortController();
  let settled = 0;
  const all = Array.from({ length: STORM }, (_, at) =>
    workloads
      .attest({ ...peer, cgroup: `${peer.cgroup}/${at}` }, left.signal)
      .catch(() => undefined)
      .finally(() => {
        settled += 1;
      }),
  );
  return {
    settled: () => settled,
    async end(): Promise<void> {
      left.abort();
      await Promise.all(all);
    },
  };
}

const typesOf = async (workloads: WorkloadAttestor, peer: PeerProcess) => [
  ...new Set((await workloads.attest(peer, stop.signal)).map(({ type }) => type)),
];

describe("a peer that hangs holds up nobody who need not ask it", () => {
  test("T-W10 a kubelet, with all who wait for it, leaves callers outside of pods alone", async () => {
    const workloads = attesting(node.attestor());
    let asked = 0;
    node.kubelet.override = () => {
      asked += 1;
    };
    const waiting = storm(workloads, await podCaller());
    await eventually("the kubelet is asked", () => asked > 0);
    expect(await typesOf(workloads, await caller("/system.slice/cron.service"))).toEqual(["unix"]);
    expect(waiting.settled()).toBe(0);
    node.kubelet.override = undefined;
    await waiting.end();
  });

  test("T-W10 a container engine leaves callers outside of containers alone", async () => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "docker.sock");
    let asked = 0;
    const silent = createServer(() => {
      asked += 1;
    }).listen(path);
    const none = { dockerVersion: undefined, matcher: undefined, verboseContainerLocatorLogs: false };
    const paths = { dockerSocketPath: path, podmanSocketPath: "/nonexistent", podmanSocketOf: () => "/nonexistent" };
    const docker = new DockerAttestor({ ...none, ...paths, clock, log: new RecordingLog(), procRoot: node.proc.path });
    const workloads = attesting(docker);
    const waiting = storm(workloads, await caller(`/docker/${containerId()}`));
    await eventually("the engine is asked", () => asked > 0);
    expect(await typesOf(workloads, await caller("/system.slice/cron.service"))).toEqual(["unix"]);
    expect(waiting.settled()).toBe(0);
    await waiting.end();
    silent.close();
  });

  test("T-W10 a registry leaves alone who is in no container, and who is in one whose image is verified", async () => {
    await using sigstore = await SigstoreDouble.open();
    await using registry = await RegistryDouble.open();
    const image = (): string => registry.image("team/app", randomUUID());
    const [known, unknown] = [image(), image()];
    publish(registry, { repository: "team/app", digest: known, suffix: "sig" }, [await sigstore.signature(known)]);
    const path = await node.file("trusted_root.json", JSON.stringify(sigstore.trustedRoot()));
    const images = openSigstore({
      ...{ allows: () => true, skippedImages: new Set(), rekorUrl: sigstore.rekorUrl, registryCredentials: new Map() },
      ...{ ignoreSct: false, ignoreTlog: false, ignoreAttestations: true, trust: { type: "file", path } },
      ...{ loginFiles: [], clock, log: new RecordingLog(), signal: stop.signal },
    });
    const workloads = attesting(node.attestor({ images }));
    const verified = await podCaller(`${registry.host}/team/app@${known}`);
    expect(await typesOf(workloads, verified)).toEqual(["k8s", "unix"]);
    registry.override = () => true;
    const before = registry.requests.length;
    const waiting = storm(workloads, await podCaller(`${registry.host}/team/app@${unknown}`));
    await eventually("the registry is asked", () => registry.requests.length > before);
    expect(await typesOf(workloads, await caller("/system.slice/cron.service"))).toEqual(["unix"]);
    expect(await typesOf(workloads, verified)).toEqual(["k8s", "unix"]);
    expect(waiting.settled()).toBe(0);
    await waiting.end();
  });

  test("T-W10 a message bus, which every caller has to ask, is waited for once, and asked again until it answers", async ({
    skip,
  }) => {
    await using bus = await startBus();
    if (bus === undefined) return skip("no dbus-daemon");
    const orders = { busPath: bus.path, fragments: {}, knowsPidfds: true };
    await using _manager = await startSystemd(orders);
    const systemd = new SystemdAttestor({ clock, signal: stop.signal, address: bus.address, patienceMs: 300 });
    const workloads = attesting(systemd);
    const peer = await caller("/system.slice/cron.service");
    const reasonOf = () => workloads.recent.at(-1)?.sources.find(({ attestor }) => attestor === "systemd")?.error;
    await workloads.attest(peer, stop.signal);
    expect(reasonOf()).toMatch(/does not belong to any loaded unit/);
    bus.pause();
    await workloads.attest(peer, stop.signal);
    expect(reasonOf()).toBe("timed out after 0.3 s");
    for (let count = 0; count < 20; count += 1) {
      expect((await workloads.attest(peer, stop.signal)).map(formatSelector)).toContain(`unix:uid:${peer.uid}`);
      expect(reasonOf()).toMatch(/^the system's manager does not answer/);
    }
    bus.resume();
    await eventually("the manager is asked again", async () => {
      await workloads.attest(peer, stop.signal);
      return /does not belong to any loaded unit/.test(reasonOf() ?? "");
    });
  });
});
