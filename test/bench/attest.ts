import { fork } from "node:child_process";
import { once } from "node:events";
import { statSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Attestor, WorkloadAttestor } from "../../agent/workload/attest.ts";
import { DockerAttestor } from "../../agent/workload/docker.ts";
import { K8sAttestor } from "../../agent/workload/k8s.ts";
import { KubeApi } from "../../agent/workload/kube-api.ts";
import { SystemdAttestor } from "../../agent/workload/systemd.ts";
import { UnixAttestor } from "../../agent/workload/unix.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Cgroup, hasCgroups } from "../support/cgroup.ts";
import { ContainerEngine } from "../support/engine.ts";
import type { NodeFacts } from "../support/kubelet-process.ts";
import { ProcRoot } from "../support/proc-root.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { startBus, startSystemd } from "../support/systemd.ts";
import { PinningSocket, startWorkload, temporaryDirectory } from "../support/workload.ts";
import { type Report, scenario } from "./scenario.ts";
import { calls } from "./stats.ts";

const PODS = 250;
const CALLERS = 10;
const COLD = 20;
const WARM = 500;
const STEADY_MS = 10_000;
/**
 * Calls of all pods together, each second. A caller is attested once for a stream, which is held for days, and for each
 * unary call: 5 are a call of every pod in 50 s, or of every one of ten callers in 8 minutes. At 0 they just hold their
 * streams.
 */
const STEADY_PER_SECOND = [0, 5, 50];
const CONTAINER = "c".repeat(64);
const UNIT = "steeple-bench.service";

const stop = new AbortController();
const log = new RecordingLog();
const clock = systemClock;
const { signal } = stop;

/** Attestation by each attestor, new and in use, and a whole node of pods. */
export const workloads = scenario({
  summary: "workload attestation by each attestor, and a node of 250 pods",
  async run({ figure, note }) {
    await using scope = new AsyncDisposableStack();
    scope.defer(() => stop.abort());
    const socket = scope.use(await PinningSocket.open());
    const workload = scope.use(await startWorkload({ socket: socket.path }));
    if (hasCgroups) scope.use(new Cgroup(`system.slice/${UNIT}`)).add(workload.pid);
    const peer = await socket.next();
    await unix(figure, peer);
    await systemd({ figure, note }, peer, scope);
    await docker(figure, scope);
    await kubernetes(figure, scope);
  },
});

type Take = Report["figure"];

async function unix(figure: Take, peer: PeerProcess): Promise<void> {
  const make =
    (discoverWorkloadPath: boolean, workloadSizeLimit = 0) =>
    (): Attestor =>
      new UnixAttestor({ discoverWorkloadPath, workloadSizeLimit, clock, signal });
  const megabytes = Math.round(statSync(process.execPath).size / 2 ** 20);
  await coldAndWarm(figure, { name: "unix", make: make(false), peer });
  const name = `unix, path and SHA-256 of a program of ${megabytes} MiB`;
  await coldAndWarm(figure, { name, make: make(true), peer, cold: 5 });
}

async function systemd({ figure, note }: Report, peer: PeerProcess, scope: AsyncDisposableStack): Promise<void> {
  const bus = hasCgroups ? await startBus() : undefined;
  if (bus === undefined) return note("systemd: not measured, for want of control groups or dbus-daemon");
  scope.use(bus);
  scope.use(await startSystemd({ busPath: bus.path, fragments: { [UNIT]: "/x" }, knowsPidfds: true }));
  const make = (): Attestor => new SystemdAttestor({ clock, signal, address: bus.address });
  await coldAndWarm(figure, { name: "systemd", make, peer });
}

async function docker(figure: Take, scope: AsyncDisposableStack): Promise<void> {
  const container = { id: CONTAINER, image: "web", imageId: `sha256:${CONTAINER}`, labels: { app: "web" } };
  const engine = scope.use(await ContainerEngine.open({ containers: [container] }));
  const proc = scope.use(await ProcRoot.open());
  const sockets = { dockerSocketPath: engine.path, podmanSocketPath: engine.path, podmanSocketOf: () => engine.path };
  const rest = { dockerVersion: undefined, matcher: undefined, verboseContainerLocatorLogs: false };
  const make = (): Attestor => new DockerAttestor({ ...sockets, ...rest, clock, log, procRoot: proc.path });
  await coldAndWarm(figure, { name: "docker", make, peer: await proc.caller(`0::/docker/${CONTAINER}`) });
}

async function kubernetes(figure: Take, scope: AsyncDisposableStack): Promise<void> {
  const node = await startNode(scope);
  const { path: folder } = scope.use(await temporaryDirectory());
  await writeFile(join(folder, "ca.crt"), node.ca);
  await writeFile(join(folder, "token"), node.token);
  const proc = scope.use(await ProcRoot.open());
  const api = new KubeApi(clock, signal, { host: "127.0.0.1", port: node.apiPort, directory: folder });
  const make =
    (watches: boolean): (() => Attestor) =>
    () =>
      new K8sAttestor({
        kubelet: {
          ...{ port: node.port, secure: true, caPath: join(folder, "ca.crt"), nodeName: node.nodeName },
          ...{ credentials: { type: "token", path: join(folder, "token") }, reloadIntervalMs: 60_000 },
        },
        ...{ maxPollAttempts: 60, pollRetryIntervalMs: 500, disableContainerSelectors: false },
        ...{ enableNamespaceLabels: false, verboseContainerLocatorLogs: false, watches, api },
        ...{ clock, log, signal, procRoot: proc.path },
      });
  const callers = await Promise.all(
    node.pods.map(({ uid, containerId }) => proc.caller(`0::/kubepods/burstable/pod${uid}/${containerId}`)),
  );
  const [first] = callers;
  if (first === undefined) throw new Error("no pods");
  await coldAndWarm(figure, { name: `k8s, ${PODS} pods`, make: make(false), peer: first });
  const kubelet = { name: `k8s, ${PODS} pods`, attestor: make(false)(), callers, node };
  await allAtOnce(figure, kubelet);
  const watch = { ...kubelet, name: `${kubelet.name} watched`, attestor: make(true)() };
  await watch.attestor.attest(first, signal);
  for (const many of [kubelet, watch]) for (const rate of STEADY_PER_SECOND) await steadily(figure, many, rate);
}

interface Many {
  readonly name: string;
  readonly attestor: Attestor;
  readonly callers: readonly PeerProcess[];
  readonly node: Node;
}

async function allAtOnce(figure: Take, { attestor, callers, node, ...many }: Many): Promise<void> {
  const before = await node.answered();
  const all = Array.from({ length: CALLERS }, () => callers).flat();
  const each = { count: all.length, inFlight: all.length, pid: process.pid };
  const { ms, cpuUs } = await calls(each, (index) => attestor.attest(all[index] as PeerProcess, signal));
  const name = `${many.name} x ${CALLERS} callers at once`;
  figure({ name, unit: "ms", values: ms });
  figure({ name: `${name}, CPU for one`, unit: "us", values: cpuUs ?? Number.NaN });
  figure({ name: `${name}, pod lists`, unit: "", values: (await node.answered()) - before });
}

/** What the attestor costs while nothing changes, beside what it costs to wake up as often. */
async function steadily(figure: Take, { name, attestor, callers, node }: Many, perSecond: number): Promise<void> {
  const waking = await shareOf(perSecond, async () => {});
  const before = await node.answered();
  const values = await shareOf(perSecond, (count) =>
    attestor.attest(callers[count % callers.length] as PeerProcess, signal),
  );
  const at = { "calls/s": perSecond };
  const limit = { name: "waking up as often", value: waking };
  figure({ name: `${name}, of one core`, unit: "%", values, at, limit });
  const lists = (await node.answered()) - before;
  figure({ name: `${name}, pod lists in ${STEADY_MS / 1000} s`, unit: "", values: lists, at });
}

/** CPU of this process while it works as often, in per cent of a core. */
async function shareOf(perSecond: number, work: (count: number) => Promise<unknown>): Promise<number> {
  const [started, cpu] = [performance.now(), process.cpuUsage()];
  const end = started + STEADY_MS;
  for (let count = 0; performance.now() < end; count += 1) {
    if (perSecond > 0) await work(count);
    const next = perSecond > 0 ? started + ((count + 1) * 1000) / perSecond : end;
    await clock.sleep(next - performance.now());
  }
  const { user, system } = process.cpuUsage(cpu);
  return (user + system) / 10 / STEADY_MS;
}

interface Node extends NodeFacts {
  answered(): Promise<number>;
}

async function startNode(scope: AsyncDisposableStack): Promise<Node> {
  const script = new URL("../support/kubelet-process.ts", import.meta.url);
  const child = fork(script, [String(PODS)], { execArgv: [] });
  scope.defer(async () => {
    child.kill("SIGKILL");
    await once(child, "exit");
  });
  const [facts] = (await once(child, "message")) as [NodeFacts];
  return {
    ...facts,
    async answered() {
      const reply = once(child, "message");
      child.send({});
      return ((await reply) as [{ readonly answered: number }])[0].answered;
    },
  };
}

interface One {
  readonly name: string;
  make(): Attestor;
  readonly peer: PeerProcess;
  readonly cold?: number;
}

async function coldAndWarm(figure: Take, { name, make, peer, cold = COLD }: One): Promise<void> {
  const first = await timesOf(cold, () => make().attest(peer, signal));
  const used = make();
  await used.attest(peer, signal);
  figure({ name: `${name}, cold`, unit: "ms", values: first });
  figure({ name: `${name}, warm`, unit: "ms", values: await timesOf(WARM, () => used.attest(peer, signal)) });
  const isReal = peer.isAlive() && peer.executable !== undefined;
  if (!isReal) return;
  const whole = new WorkloadAttestor({ attestors: [used], clock, log });
  const verified = await timesOf(WARM, () => whole.attest(peer, signal));
  figure({ name: `${name}, warm, between two looks at the caller`, unit: "ms", values: verified });
}

async function timesOf(count: number, work: () => Promise<unknown>): Promise<readonly number[]> {
  return (await calls({ count }, work)).ms;
}
