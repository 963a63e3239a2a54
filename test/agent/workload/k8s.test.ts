import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { locateContainer } from "../../../agent/workload/container.ts";
import type { K8sAttestor, K8sAttestorOptions } from "../../../agent/workload/k8s.ts";
import { KubeletClient, type KubeletConfig } from "../../../agent/workload/kubelet.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Cgroup, hasCgroups } from "../../support/cgroup.ts";
import { eventually } from "../../support/eventually.ts";
import { AGENT, containerId, K8sNode, type RunningPod } from "../../support/k8s-node.ts";
import { API_AUDIENCE, issueTls, type KubeApiServer } from "../../support/kube-apiserver.ts";
import { Kubelet, type KubePod } from "../../support/kubelet.ts";
import { createCa } from "../../support/pki.ts";
import type { ProcRoot } from "../../support/proc-root.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { PinningSocket, startWorkload } from "../../support/workload.ts";

let node: K8sNode;
let apiserver: KubeApiServer;
let kubelet: Kubelet;
let proc: ProcRoot;

beforeAll(async () => {
  node = await K8sNode.open();
  ({ apiserver, kubelet, proc } = node);
});

afterAll(() => node[Symbol.asyncDispose]());

const attestor = (options?: Partial<K8sAttestorOptions>): K8sAttestor => node.attestor(options);
const valuesOf = (attesting: K8sAttestor, peer: PeerProcess): Promise<readonly string[]> =>
  node.valuesOf(attesting, peer);
const running = (pod?: Partial<KubePod>): Promise<RunningPod> => node.running(pod);

describe("k8s selectors", () => {
  test("every selector of pod and container, images by name and by digest", async () => {
    const [own, sidecar, init] = [containerId(), containerId(), containerId()];
    const digest = `docker.io/library/nginx@sha256:${"a".repeat(64)}`;
    const pod: KubePod = {
      ...{ uid: "2c48913c-b29f-11e7-9350-020968147796", name: "blog-24ck7", namespace: "shop", serviceAccount: "blog" },
      labels: { app: "blog", "k8s-app": "blog" },
      owners: [{ kind: "ReplicaSet", name: "blog-24", uid: "owner-uid" }],
      containers: [
        { name: "blog", image: "nginx:1.27", imageID: digest, containerID: `containerd://${own}` },
        { name: "proxy", image: "envoy:1", imageID: "envoy@sha256:bb", containerID: `containerd://${sidecar}` },
      ],
      initContainers: [
        { name: "setup", image: "busybox", imageID: "busybox@sha256:cc", containerID: `docker://${init}` },
      ],
    };
    kubelet.set(pod);
    const common = [
      ...["sa:blog", "ns:shop", "node-name:node-1", `pod-uid:${pod.uid}`, "pod-name:blog-24ck7"],
      ...["pod-label:app:blog", "pod-label:k8s-app:blog", "pod-image-count:2", "pod-init-image-count:1"],
      ...["pod-owner:ReplicaSet:blog-24", "pod-owner-uid:ReplicaSet:owner-uid"],
      ...["pod-image:nginx:1.27", `pod-image:${digest}`, "pod-image:envoy:1", "pod-image:envoy@sha256:bb"],
      ...["pod-init-image:busybox", "pod-init-image:busybox@sha256:cc"],
    ];
    const blog = ["container-name:blog", "container-image:nginx:1.27", `container-image:${digest}`];
    const attesting = attestor();
    const inside = await proc.caller(`0::/kubepods/pod${pod.uid}/${own}`);
    expect(await valuesOf(attesting, inside)).toEqual([...common, ...blog].sort());
    const inInit = await proc.caller(`0::/kubepods/pod${pod.uid}/${init}`);
    const setup = ["container-name:setup", "container-image:busybox", "container-image:busybox@sha256:cc"];
    expect(await valuesOf(attesting, inInit)).toEqual([...common, ...setup].sort());
    const podOnly = attestor({ disableContainerSelectors: true });
    expect(await valuesOf(podOnly, inside)).toEqual([...common].sort());
  });

  test("a debugging container is a container of its pod, and counts as none of its images", async () => {
    const id = containerId();
    const { pod } = await running({
      ephemeralContainers: [{ name: "debug", image: "sh:1", containerID: `cri-o://${id}` }],
    });
    const values = await valuesOf(attestor(), await proc.caller(`0::/kubepods/pod${pod.uid}/${id}`));
    expect(values).toEqual(
      expect.arrayContaining(["container-name:debug", "container-image:sh:1", "pod-image-count:1"]),
    );
    expect(values).not.toContain("pod-image:sh:1");
  });

  test("a pod without a uid in its control groups is found by its container", async () => {
    const { pod, id } = await running();
    const values = await valuesOf(attestor(), await proc.caller(`0::/../crio-${id}.scope`));
    expect(values).toContain(`pod-uid:${pod.uid}`);
  });

  test("with disable_container_selectors a known pod is enough while its container is being made", async () => {
    const { pod } = await running({ containers: [{ name: "web" }] });
    const peer = await proc.caller(`0::/kubepods/pod${pod.uid}/${containerId()}`);
    const values = await valuesOf(attestor({ disableContainerSelectors: true }), peer);
    expect(values).toContain(`pod-name:${pod.name}`);
  });

  test("a caller outside of containers has none, and the kubelet is not asked", async () => {
    const before = kubelet.answered;
    expect(await valuesOf(attestor(), await proc.caller("0::/system.slice/cron.service"))).toEqual([]);
    expect(kubelet.answered).toBe(before);
  });

  test("namespace labels, where they are wanted, come from the API server", async () => {
    apiserver.namespaces.set("labelled", { team: "a", tier: "gold" });
    apiserver.rules.push({ user: AGENT, verb: "get", resource: "namespaces" });
    const { peer } = await running({ namespace: "labelled" });
    const api = node.api();
    const values = await valuesOf(attestor({ enableNamespaceLabels: true, api }), peer);
    expect(values).toEqual(expect.arrayContaining(["ns-label:team:a", "ns-label:tier:gold"]));
    const elsewhere = await running({ namespace: "gone" });
    const refused = attestor({ enableNamespaceLabels: true, api }).attest(elsewhere.peer, node.signal);
    await expect(refused).rejects.toMatchObject({ code: "namespace-labels", message: /namespaces "gone" not found/ });
  });
});

describe("T-W4 a container is what the kernel and the kubelet agree on", () => {
  test("a nested group named like another pod is the container around it", async () => {
    const [attacker, victim] = [await running(), await running()];
    const path = `0::/kubepods/pod${attacker.pod.uid}/${attacker.id}/kubepods/pod${victim.pod.uid}/${victim.id}`;
    expect(await valuesOf(attestor(), await proc.caller(path))).toContain(`pod-uid:${attacker.pod.uid}`);
  });

  test("a container in another pod than the group says is not found", async () => {
    const [attacker, victim] = [await running(), await running()];
    const peer = await proc.caller(`0::/kubepods/pod${attacker.pod.uid}/${victim.id}`);
    const refused = attestor({ maxPollAttempts: 1, pollRetryIntervalMs: 50 }).attest(peer, node.signal);
    await expect(refused).rejects.toMatchObject({ kind: "timeout", code: "container-unknown" });
  });

  test("a container that two pods claim belongs to neither", async () => {
    const one = await running();
    const two = await running({ containers: one.pod.containers ?? [] });
    const refused = attestor().attest(await proc.caller(`0::/../${one.id}`), node.signal);
    await expect(refused).rejects.toMatchObject({ kind: "internal", code: "container-ambiguous" });
    kubelet.remove(two.pod.uid);
  });

  test("groups that a user can name are no proof", async () => {
    const { pod, id } = await running();
    const path = `0::/user.slice/user-4242.slice/user@4242.service/kubepods-pod${pod.uid}.slice/cri-containerd-${id}.scope`;
    expect(await valuesOf(attestor(), await proc.caller(path))).toEqual([]);
  });

  test("two containers in two controllers are refused", async () => {
    const [one, two] = [await running(), await running()];
    const path = ({ pod, id }: RunningPod): string => `/kubepods/pod${pod.uid}/${id}`;
    const peer = await proc.caller(`2:cpu:${path(one)}`, `1:pids:${path(two)}`);
    await expect(attestor().attest(peer, node.signal)).rejects.toMatchObject({ code: "container-ambiguous" });
  });
});

describe("the kubelet is asked", () => {
  test("once for however many callers at the same time", async () => {
    const callers = await Promise.all(Array.from({ length: 20 }, () => running()));
    const attesting = attestor();
    const before = kubelet.answered;
    const all = callers.flatMap((caller) => Array.from({ length: 5 }, () => caller));
    const found = await Promise.all(all.map(({ peer }) => valuesOf(attesting, peer)));
    for (const [at, { pod }] of all.entries()) expect(found[at]).toContain(`pod-uid:${pod.uid}`);
    expect(kubelet.answered - before).toBe(1);
  });

  test("again, in growing steps, until it knows a new pod", async () => {
    const id = containerId();
    const uid = randomUUID();
    const before = kubelet.answered;
    const waiting = valuesOf(attestor(), await proc.caller(`0::/kubepods/pod${uid}/${id}`));
    await eventually("the kubelet was asked three times", () => kubelet.answered - before >= 3);
    kubelet.set({ uid, name: "late", containers: [{ name: "web", containerID: `containerd://${id}` }] });
    expect(await waiting).toContain("pod-name:late");
  });

  test.each([
    { what: "the pod", known: false, reason: /the kubelet knows no pod/ },
    { what: "the container", known: true, reason: /knows the pod default\/web-.*, but no container/ },
  ])("and the reason is said when $what stays unknown", async ({ known, reason }) => {
    const uid = randomUUID();
    if (known) await running({ uid, name: "web-1" });
    const peer = await proc.caller(`0::/kubepods/pod${uid}/${containerId()}`);
    const refused = attestor({ maxPollAttempts: 2, pollRetryIntervalMs: 30 }).attest(peer, node.signal);
    await expect(refused).rejects.toMatchObject({ kind: "timeout", message: reason });
  });

  test("for what has changed only, where something in between gives the list an ETag", async () => {
    const { pod } = await running();
    const asked: (string | undefined)[] = [];
    kubelet.etags = (request) => void asked.push(request.headers["if-none-match"]);
    using client = new KubeletClient(node.kubeletConfig(), systemClock);
    const before = await client.pods(node.signal);
    expect(await client.pods(node.signal)).toBe(before);
    expect(kubelet.unchanged).toBe(1);
    kubelet.set({ ...pod, labels: { changed: "yes" } });
    const after = await client.pods(node.signal);
    kubelet.etags = undefined;
    expect(after.find(({ uid }) => uid === pod.uid)?.labels).toEqual([["changed", "yes"]]);
    expect(after.length).toBe(before.length);
    expect(asked).toEqual([undefined, expect.stringMatching(/^"\w+"$/), asked[1]]);
    expect(kubelet.unchanged).toBe(1);
  });

  test("and an answer that is no pod list is refused", async () => {
    const { peer } = await running();
    const lines = new RecordingLog();
    kubelet.override = (response) => void response.end('{"items": 7}');
    const refused = attestor({ maxPollAttempts: 100, pollRetryIntervalMs: 30, log: lines }).attest(peer, node.signal);
    await expect(refused).rejects.toMatchObject({ message: /expected an items array/ });
    kubelet.override = undefined;
    expect(lines.lines.filter(({ level }) => level === "warn")).toHaveLength(1);
  });
});

describe("the kubelet is told who asks, and recognised", () => {
  const quick = { maxPollAttempts: 1, pollRetryIntervalMs: 30 };

  async function outcome(config: Partial<KubeletConfig>): Promise<string> {
    const { peer, pod } = await running();
    const attesting = attestor({ ...quick, kubelet: node.kubeletConfig(config) });
    const answer = valuesOf(attesting, peer).then((values) =>
      values.includes(`pod-uid:${pod.uid}`) ? "found" : "other",
    );
    return answer.catch((error: Error) => error.message);
  }

  test("by token, which the API server reviews", async () => {
    expect(await outcome({})).toBe("found");
    const path = await node.file("old-token", apiserver.token("spire", "spire-agent", { seconds: -1 }));
    expect(await outcome({ credentials: { type: "token", path } })).toMatch(/401 Unauthorized/);
    const other = await node.file(
      "other-audience",
      apiserver.token("spire", "spire-agent", { audience: "spire-server" }),
    );
    expect(await outcome({ credentials: { type: "token", path: other } })).toMatch(/401 Unauthorized/);
    const stranger = await node.file("stranger", apiserver.token("default", "default"));
    expect(await outcome({ credentials: { type: "token", path: stranger } })).toMatch(/403 Forbidden/);
    expect(apiserver.authenticate(apiserver.token("a", "b"), API_AUDIENCE)?.username).toBe("system:serviceaccount:a:b");
  });

  test("by client certificate", async () => {
    const user = await issueTls(apiserver.ca, { subject: { commonName: "agent", organization: ["system:nodes"] } });
    const certificatePath = await node.file("agent.pem", user.pem);
    const privateKeyPath = await node.file("agent.key", user.keyPem);
    const credentials = { type: "certificate", certificatePath, privateKeyPath } as const;
    expect(await outcome({ credentials })).toMatch(/403 Forbidden \(user=agent/);
    apiserver.rules.push({ user: "agent", verb: "get", resource: "nodes", subresource: "proxy" });
    expect(await outcome({ credentials })).toBe("found");
  });

  test("anonymously, or over the read-only port", async () => {
    expect(await outcome({ credentials: { type: "anonymous" } })).toMatch(/403 .*system:anonymous/);
    expect(await outcome({ secure: false, port: kubelet.readOnlyPort })).toBe("found");
  });

  test("by its authority and, where it is dialled by name, by its name", async () => {
    const stranger = await createCa({ trustDomain: "stranger.example" });
    const caPath = await node.file("stranger.crt", stranger.pem);
    expect(await outcome({ caPath })).toMatch(
      /could not ask the kubelet: .*(self-signed|unable to verify|certificate)/,
    );
    expect(await outcome({ caPath: undefined })).toBe("found");
    expect(await outcome({ nodeName: "localhost" })).toMatch(/does not match certificate's altnames/);
    const { port } = kubelet;
    await using local = await Kubelet.open(apiserver, { nodeName: "localhost" });
    expect(local.port).not.toBe(port);
    local.set({ uid: "u", name: "n" });
    expect(await outcome({ nodeName: "localhost", port: local.port })).toMatch(/the kubelet knows no pod/);
  });

  test("with a token that is read again when it was refused", async () => {
    const { peer, pod } = await running();
    const path = await node.file("rotated", "expired");
    const log = new RecordingLog();
    const attesting = attestor({ log, kubelet: node.kubeletConfig({ credentials: { type: "token", path } }) });
    const waiting = valuesOf(attesting, peer);
    await eventually("the old token was refused", () => log.lines.some(({ level }) => level === "warn"));
    await node.file("rotated", apiserver.token("spire", "spire-agent"));
    expect(await waiting).toContain(`pod-uid:${pod.uid}`);
  });
});

describe.skipIf(!hasCgroups)("T-W4 processes in real control groups", () => {
  const shapes = [
    { what: "cgroupfs", path: (uid: string, id: string) => `kubepods/burstable/pod${uid}/${id}` },
    {
      what: "systemd, containerd",
      path: (uid: string, id: string) =>
        `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${uid.replaceAll("-", "_")}.slice/cri-containerd-${id}.scope`,
    },
    {
      what: "systemd, cri-o, with a group of the container's own",
      path: (uid: string, id: string) =>
        `kubepods.slice/kubepods-pod${uid.replaceAll("-", "_")}.slice/crio-${id}.scope/container`,
    },
    {
      what: "containerd with colons",
      path: (uid: string, id: string) =>
        `kubepods-besteffort-pod${uid.replaceAll("-", "_")}.slice:cri-containerd:${id}`,
    },
    {
      what: "a static pod",
      path: (uid: string, id: string) => `kubepods/pod${uid.replaceAll("-", "")}/${id}`,
      isStatic: true,
    },
  ];

  test.each(shapes)("$what", async ({ path, isStatic }) => {
    await using held = new AsyncDisposableStack();
    const socket = held.use(await PinningSocket.open());
    const uid = randomUUID();
    const id = containerId();
    const group = held.use(new Cgroup(path(uid, id)));
    const workload = held.use(await startWorkload({ socket: socket.path }));
    group.add(workload.pid);
    kubelet.set({
      uid: isStatic === true ? uid.replaceAll("-", "") : uid,
      name: "real",
      containers: [{ name: "web", containerID: `containerd://${id}` }],
    });
    const values = await valuesOf(attestor({ procRoot: "/proc" }), await socket.next());
    expect(values).toEqual(expect.arrayContaining(["pod-name:real", "container-name:web"]));
  });

  test("a process on the host that mounts another container's group gains nothing", async () => {
    await using held = new AsyncDisposableStack();
    const victim = await running();
    const path = `kubepods/pod${victim.pod.uid}/${victim.id}`;
    held.use(new Cgroup(path));
    const script = `mount --bind "$1" "$1" && echo mounted && exec sleep 60`;
    const args = ["-m", "sh", "-c", script, "sh", `/sys/fs/cgroup/freezer/${path}`];
    const child = held.adopt(spawn("unshare", args), async (process: ChildProcess) => {
      process.kill("SIGKILL");
      await once(process, "close");
    });
    await once(child.stdout, "data");
    const mountinfo = await readFile(`/proc/${child.pid}/mountinfo`, "utf8");
    expect(locateContainer({ cgroup: "0::/\n", mountinfo })).toMatchObject({ containerId: victim.id });
    const peer: PeerProcess = { ...victim.peer, pid: child.pid ?? 0 };
    expect(await valuesOf(attestor({ procRoot: "/proc" }), peer)).toEqual([]);
  });
});
