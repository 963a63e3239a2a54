import { randomBytes, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startAgent, type TestAgent } from "../support/agent.ts";
import { Cgroup, hasCgroups } from "../support/cgroup.ts";
import { ContainerEngine } from "../support/engine.ts";
import { eventually } from "../support/eventually.ts";
import { KubeApiServer } from "../support/kube-apiserver.ts";
import { Kubelet } from "../support/kubelet.ts";
import { RawClient } from "../support/raw-client.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { NOBODY, startWorkload, temporaryDirectory } from "../support/workload.ts";

const POD: { readonly uid: string; readonly id: string } = { uid: randomUUID(), id: randomBytes(32).toString("hex") };
const CONTAINER = randomBytes(32).toString("hex");
const PERMISSION_DENIED = 7;
const SECRET = "PASSWORD=hunter2";
const scope = new AsyncDisposableStack();
let server: TestServer;
let agent: TestAgent;
let kubelet: Kubelet;
let folder: string;

beforeAll(async () => {
  if (!hasCgroups) return;
  folder = scope.use(await temporaryDirectory()).path;
  const apiserver = scope.use(await KubeApiServer.open());
  const account = { user: "system:serviceaccount:spire:spire-agent", verb: "get", resource: "nodes" };
  apiserver.rules.push({ ...account, subresource: "pods" });
  kubelet = scope.use(await Kubelet.open(apiserver));
  const engine = scope.use(
    await ContainerEngine.open({
      containers: [{ id: CONTAINER, image: "web:1", labels: { app: "web" }, env: [SECRET] }],
    }),
  );
  await writeFile(join(folder, "ca.crt"), apiserver.ca.pem);
  await writeFile(join(folder, "token"), apiserver.token("spire", "spire-agent"));
  server = scope.use(await startServer());
  agent = scope.use(
    await startAgent(server, {
      workloadAttestors: {
        unix: {},
        k8s: {
          ...{ kubelet_secure_port: kubelet.port, kubelet_ca_path: join(folder, "ca.crt") },
          ...{ token_path: join(folder, "token"), max_poll_attempts: 30, poll_retry_interval: "100ms" },
        },
        docker: { docker_socket_path: `unix://${engine.path}` },
      },
    }),
  );
  await entry("pod", "k8s:ns:shop", "k8s:sa:web", "k8s:container-name:web");
  await entry("container", "docker:label:app:web");
});
afterAll(() => scope.disposeAsync());

async function entry(name: string, ...selectors: readonly string[]): Promise<void> {
  const made = await server.createEntry({ spiffeId: `spiffe://example.org/${name}`, parentId: agent.id(), selectors });
  await agent.untilLogged("Entry created", { entry: made.id });
}

/** A process in a control group of this path, all of which is `owner`'s, with a client that speaks over its connection. */
async function inside(path: string, owner = 0) {
  const held = new AsyncDisposableStack();
  const group = held.use(new Cgroup(path));
  group.give(owner);
  const relay = join(folder, `${randomUUID()}.sock`);
  const workload = held.use(await startWorkload({ socket: agent.socketPath, relay }));
  group.add(workload.pid);
  const client = held.use(new RawClient(relay));
  return { workload, client, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

/** The IDs, or the status without any. */
async function outcome(client: RawClient): Promise<readonly string[] | number> {
  const call = client.svids();
  const status = call.status.then(({ code }) => code);
  return Promise.race([status, call.x509Svids().then(({ svids }) => svids.map(({ spiffe_id }) => spiffe_id))]);
}

async function ids(client: RawClient): Promise<readonly string[]> {
  const { svids } = await client.svids().x509Svids();
  return svids.map(({ spiffe_id }) => spiffe_id);
}

const web = { name: "web", image: "nginx:1", containerID: `containerd://${POD.id}` };
const podPath = `kubepods/burstable/pod${POD.uid}/${POD.id}`;

describe.skipIf(!hasCgroups)("workloads in containers", () => {
  test("a new pod's first call is answered as soon as the kubelet knows it", async () => {
    await using caller = await inside(podPath);
    const before = kubelet.answered;
    const call = caller.client.svids();
    await eventually("the kubelet was asked", () => kubelet.answered - before >= 2);
    expect(call.messages).toHaveLength(0);
    kubelet.set({ uid: POD.uid, name: "web-1", namespace: "shop", serviceAccount: "web", containers: [web] });
    expect((await call.x509Svids()).svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/pod"]);
  });

  test("a container is known by its labels, and its environment stays out of the log", async () => {
    await using caller = await inside(`system.slice/docker-${CONTAINER}.scope`);
    expect(await ids(caller.client)).toEqual(["spiffe://example.org/container"]);
    expect(agent.output()).not.toContain("hunter2");
    expect(agent.output()).not.toContain("docker:label");
  });

  test("T-W4 a process that leaves the container is known by nothing of it any more", async () => {
    await using caller = await inside(podPath);
    expect(await ids(caller.client)).toEqual(["spiffe://example.org/pod"]);
    using outside = new Cgroup(`steeple-${randomUUID()}`);
    outside.add(caller.workload.pid);
    expect((await caller.client.svids().status).code).toBe(7);
  });

  test("T-W4 a user who may make groups below his own makes himself no pod and no container", async () => {
    const own = `steeple-${randomUUID()}.service`;
    for (const path of [podPath, `docker-${CONTAINER}.scope`]) {
      await using caller = await inside(`${own}/${path}`, NOBODY);
      expect(await outcome(caller.client)).toBe(PERMISSION_DENIED);
    }
  });

  test("T-W4 a container that names groups like a node's pods makes itself none", async () => {
    const other = randomBytes(32).toString("hex");
    for (const outer of [`machine.slice/libpod-${other}.scope/container`, `docker/${other}`]) {
      await using caller = await inside(`${outer}/${podPath}`);
      expect(await outcome(caller.client)).toBe(PERMISSION_DENIED);
    }
  });

  test("T-W8 while the kubelet is away nothing is matched that needs it, and the reason is in the log", async () => {
    kubelet.override = (response) => void response.writeHead(503).end("starting");
    // A container that no list has yet, so that the kubelet has to be asked.
    await using caller = await inside(`kubepods/burstable/pod${POD.uid}/${randomBytes(32).toString("hex")}`);
    const status = await caller.client.svids().status;
    kubelet.override = undefined;
    expect(status.code).toBe(7);
    const failed = await agent.untilLogged('workload attestor "k8s" failed', { pid: caller.workload.pid });
    expect(failed["error"]).toMatch(/unexpected status code on pods response: 503 starting/);
    await using again = await inside(podPath);
    expect(await ids(again.client)).toEqual(["spiffe://example.org/pod"]);
  });
});
