import { fork } from "node:child_process";
import { once } from "node:events";
import { statSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Attestor, WorkloadAttestor } from "../../agent/workload/attest.ts";
import { DockerAttestor } from "../../agent/workload/docker.ts";
import { K8sAttestor } from "../../agent/workload/k8s.ts";
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
import { spread } from "./stats.ts";

const PODS = 250;
const CALLERS = 10;
const COLD = 20;
const WARM = 500;
const STEADY_MS = 10_000;
/** Each pod calls about once a minute; streams are attested once, when they open. */
const STEADY_PER_SECOND = 5;
const CONTAINER = "c".repeat(64);
const UNIT = "steeple-bench.service";

const stop = new AbortController();
const log = new RecordingLog();
const clock = systemClock;
const { signal } = stop;

/** Attestation by each attestor, new and in use, and a whole node of pods. */
export async function measureAttestation(): Promise<string[]> {
  await using scope = new AsyncDisposableStack();
  const socket = scope.use(await PinningSocket.open());
  const workload = scope.use(await startWorkload({ socket: socket.path }));
  if (hasCgroups) scope.use(new Cgroup(`system.slice/${UNIT}`)).add(workload.pid);
  const peer = await socket.next();
  const lines = [...(await unix(peer)), ...(await systemd(peer, scope)), ...(await docker(scope))];
  lines.push(...(await kubernetes(scope)));
  stop.abort();
  return lines;
}

async function unix(peer: PeerProcess): Promise<string[]> {
  const make =
    (discoverWorkloadPath: boolean, workloadSizeLimit = 0) =>
    (): Attestor =>
      new UnixAttestor({ discoverWorkloadPath, workloadSizeLimit, clock, signal });
  const megabytes = Math.round(statSync(process.execPath).size / 2 ** 20);
  return [
    ...(await coldAndWarm("unix", make(false), peer)),
    ...(await coldAndWarm(`unix, path and SHA-256 of a program of ${megabytes} MiB`, make(true), peer, 5)),
  ];
}

async function systemd(peer: PeerProcess, scope: AsyncDisposableStack): Promise<string[]> {
  const bus = hasCgroups ? await startBus() : undefined;
  if (bus === undefined) return ["systemd: not measured, for want of control groups or dbus-daemon"];
  scope.use(bus);
  scope.use(await startSystemd({ busPath: bus.path, fragments: { [UNIT]: "/x" }, knowsPidfds: true }));
  return coldAndWarm("systemd", () => new SystemdAttestor({ signal, address: bus.address }), peer);
}

async function docker(scope: AsyncDisposableStack): Promise<string[]> {
  const container = { id: CONTAINER, image: "web", imageId: `sha256:${CONTAINER}`, labels: { app: "web" } };
  const engine = scope.use(await ContainerEngine.open({ containers: [container] }));
  const proc = scope.use(await ProcRoot.open());
  const sockets = { dockerSocketPath: engine.path, podmanSocketPath: engine.path, podmanSocketOf: () => engine.path };
  const rest = { dockerVersion: undefined, matcher: undefined, verboseContainerLocatorLogs: false };
  const make = (): Attestor => new DockerAttestor({ ...sockets, ...rest, clock, log, procRoot: proc.path });
  return coldAndWarm("docker", make, await proc.caller(`0::/docker/${CONTAINER}`));
}

async function kubernetes(scope: AsyncDisposableStack): Promise<string[]> {
  const node = await startNode(scope);
  const { path: folder } = scope.use(await temporaryDirectory());
  await writeFile(join(folder, "ca.crt"), node.ca);
  await writeFile(join(folder, "token"), node.token);
  const proc = scope.use(await ProcRoot.open());
  const make = (): Attestor =>
    new K8sAttestor({
      kubelet: {
        ...{ port: node.port, secure: true, caPath: join(folder, "ca.crt"), nodeName: undefined },
        ...{ credentials: { type: "token", path: join(folder, "token") }, reloadIntervalMs: 60_000 },
      },
      ...{ maxPollAttempts: 60, pollRetryIntervalMs: 500, disableContainerSelectors: false },
      ...{ enableNamespaceLabels: false, verboseContainerLocatorLogs: false },
      ...{ clock, log, signal, procRoot: proc.path },
    });
  const callers = await Promise.all(
    node.pods.map(({ uid, containerId }) => proc.caller(`0::/kubepods/burstable/pod${uid}/${containerId}`)),
  );
  const [first] = callers;
  if (first === undefined) throw new Error("no pods");
  return [
    ...(await coldAndWarm(`k8s, ${PODS} pods`, make, first)),
    await allAtOnce(make(), callers, node),
    await steadily(make(), callers, node),
  ];
}

async function allAtOnce(attestor: Attestor, callers: readonly PeerProcess[], node: Node): Promise<string> {
  const before = await node.answered();
  const times: number[] = [];
  const cpu = process.cpuUsage();
  await Promise.all(
    Array.from({ length: CALLERS }, () => callers)
      .flat()
      .map(async (peer) => void times.push(await timed(() => attestor.attest(peer, signal)))),
  );
  const { user, system } = process.cpuUsage(cpu);
  const asked = (await node.answered()) - before;
  return `${PODS} pods x ${CALLERS} callers at once: ${spread(times)}; ${asked} pod lists, ${Math.round((user + system) / 1000)} ms of CPU`;
}

async function steadily(attestor: Attestor, callers: readonly PeerProcess[], node: Node): Promise<string> {
  await attestor.attest(callers[0] as PeerProcess, signal);
  const before = await node.answered();
  const [started, cpu] = [performance.now(), process.cpuUsage()];
  for (let count = 0; performance.now() - started < STEADY_MS; count += 1) {
    await attestor.attest(callers[count % callers.length] as PeerProcess, signal);
    await clock.sleep(1000 / STEADY_PER_SECOND);
  }
  const { user, system } = process.cpuUsage(cpu);
  const share = (user + system) / 1000 / (performance.now() - started);
  const asked = (await node.answered()) - before;
  return `${PODS} pods, ${STEADY_PER_SECOND} calls a second: ${(share * 100).toFixed(2)} % of a core, ${asked} pod lists in ${STEADY_MS / 1000} s`;
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

async function coldAndWarm(name: string, make: () => Attestor, peer: PeerProcess, cold = COLD): Promise<string[]> {
  const first: number[] = [];
  for (let count = 0; count < cold; count += 1) first.push(await timed(() => make().attest(peer, signal)));
  const used = make();
  await used.attest(peer, signal);
  const warm: number[] = [];
  for (let count = 0; count < WARM; count += 1) warm.push(await timed(() => used.attest(peer, signal)));
  const isReal = peer.isAlive() && peer.executable !== undefined;
  const lines = [`${name}, cold: ${spread(first)}`, `${name}, warm: ${spread(warm)}`];
  if (!isReal) return lines;
  const whole = new WorkloadAttestor({ attestors: [used], clock, log });
  const verified: number[] = [];
  for (let count = 0; count < WARM; count += 1) verified.push(await timed(() => whole.attest(peer, signal)));
  return [...lines, `${name}, warm, between two looks at the caller: ${spread(verified)}`];
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}
