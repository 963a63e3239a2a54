import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { K8sAttestor, K8sAttestorOptions } from "../../../agent/workload/k8s.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { eventually } from "../../support/eventually.ts";
import { AGENT, K8sNode, type RunningPod } from "../../support/k8s-node.ts";
import type { KubeApiServer } from "../../support/kube-apiserver.ts";
import { RecordingLog } from "../../support/recording-log.ts";

let node: K8sNode;
let apiserver: KubeApiServer;
let log: RecordingLog;

beforeAll(async () => {
  node = await K8sNode.open("localhost");
  ({ apiserver } = node);
});
afterAll(() => node[Symbol.asyncDispose]());

const MAY_WATCH = ["list", "watch"].map((verb) => ({ user: AGENT, verb, resource: "pods" }));

beforeEach(() => {
  log = new RecordingLog();
  apiserver.isAway = false;
  apiserver.rules.splice(
    0,
    Infinity,
    { user: AGENT, verb: "get", resource: "nodes", subresource: "pods" },
    ...MAY_WATCH,
  );
});

/** An attestor that watches, once it does. */
async function watching(held: AsyncDisposableStack, options: Partial<K8sAttestorOptions> = {}): Promise<K8sAttestor> {
  const stop = new AbortController();
  held.defer(() => stop.abort());
  const kubelet = node.kubeletConfig({ nodeName: "localhost" });
  const { signal } = stop;
  const before = apiserver.pods.watchedFrom.length;
  const attestor = node.attestor({ kubelet, api: node.api(signal), signal, log, watches: true, ...options });
  await eventually("the pods are watched", () => apiserver.pods.watchedFrom.length > before);
  return attestor;
}

async function published(pod?: Parameters<K8sNode["pod"]>[0]): Promise<RunningPod> {
  const made = await node.pod(pod);
  node.publish(made.pod);
  return made;
}

function valuesOrNone(attestor: K8sAttestor, peer: PeerProcess): Promise<readonly string[]> {
  return node.valuesOf(attestor, peer).catch(() => []);
}

describe("the pods of a node by a watch of the API server's", () => {
  test("are known without a question to the kubelet", async () => {
    await using held = new AsyncDisposableStack();
    const early = await published({ labels: { app: "early" } });
    const asked = node.kubelet.answered;
    const attestor = await watching(held);
    const late = await published();
    for (const { pod, peer } of [early, late])
      await eventually(`${pod.name} is known`, async () =>
        (await node.valuesOf(attestor, peer)).includes(`pod-uid:${pod.uid}`),
      );
    expect(await node.valuesOf(attestor, early.peer)).toEqual(
      expect.arrayContaining(["pod-label:app:early", "container-name:web", "node-name:localhost"]),
    );
    expect(node.kubelet.answered - asked).toBeLessThanOrEqual(1);
  });

  test("let the caller in a new pod wait for its event, with one question to the kubelet", async () => {
    await using held = new AsyncDisposableStack();
    const attestor = await watching(held);
    const { pod, peer } = await node.pod();
    const asked = node.kubelet.answered;
    const waiting = node.valuesOf(attestor, peer);
    await eventually("the kubelet was asked", () => node.kubelet.answered > asked);
    node.publish({ ...pod, containers: [{ name: "web" }] });
    node.publish(pod);
    expect(await waiting).toContain(`pod-uid:${pod.uid}`);
    expect(node.kubelet.answered - asked).toBe(1);
  });

  test("change with every event, and those of other nodes are none of them", async () => {
    await using held = new AsyncDisposableStack();
    const attestor = await watching(held, { maxPollAttempts: 1, pollRetryIntervalMs: 20 });
    const { pod, peer } = await published({ labels: { stage: "one" } });
    const values = (): Promise<readonly string[]> => valuesOrNone(attestor, peer);
    await eventually("it is there", async () => (await values()).includes("pod-label:stage:one"));
    node.publish({ ...pod, labels: { stage: "two" } });
    await eventually("it is another", async () => (await values()).includes("pod-label:stage:two"));
    expect(await values()).not.toContain("pod-label:stage:one");
    node.publish(pod, "node-2");
    await eventually("it has gone to another node", async () => (await values()).length === 0);
    node.publish(pod);
    await eventually("it is back", async () => (await values()).length > 0);
    node.unpublish(pod);
    await eventually("it is gone", async () => (await values()).length === 0);
    await expect(attestor.attest(peer, node.signal)).rejects.toMatchObject({ code: "container-unknown" });
  });

  test("do not keep the caller in a static pod from being found, however many events there are", async () => {
    await using held = new AsyncDisposableStack();
    const attestor = await watching(held, { pollRetryIntervalMs: 50, maxPollAttempts: 200 });
    await eventually("it is watched", () => apiserver.pods.watchers > 0);
    const { pod, peer } = await node.pod({ name: "static" });
    const other = await node.pod();
    const pump = setInterval(() => node.publish(other.pod), 20);
    held.defer(() => clearInterval(pump));
    const asked = node.kubelet.answered;
    const waiting = node.valuesOf(attestor, peer);
    await eventually("the kubelet was asked", () => node.kubelet.answered > asked);
    node.kubelet.set(pod);
    expect(await waiting).toContain("pod-name:static");
  });

  test("T-W4 leave static pods to the kubelet, and believe nobody who looks like one", async () => {
    await using held = new AsyncDisposableStack();
    const attestor = await watching(held, { disableContainerSelectors: true });
    const uid = randomUUID().replaceAll("-", "");
    const { pod, peer } = await node.running({ uid, name: "etcd" });
    const mirror = { "kubernetes.io/config.mirror": uid, "kubernetes.io/config.hash": uid };
    const fake = await published({ uid, name: "fake", annotations: mirror, containers: pod.containers ?? [] });
    const other = await published();
    await eventually("events have come", async () => (await node.valuesOf(attestor, other.peer)).length > 0);
    const values = await node.valuesOf(attestor, peer);
    expect(values).toContain("pod-name:etcd");
    expect(values).not.toContain(`pod-name:${fake.pod.name}`);
  });
});

describe("a watch goes on", () => {
  const ends = {
    "that the server ended": () => apiserver.pods.endWatches(),
    "that broke": () => apiserver.pods.breakWatches(),
  };
  test.each(Object.entries(ends))("after one %s, from where it was, without a new list", async (_, end) => {
    await using held = new AsyncDisposableStack();
    const lists = apiserver.pods.lists;
    const attestor = await watching(held);
    const watched = apiserver.pods.watchedFrom.length;
    await eventually("it is watched", () => apiserver.pods.watchers > 0);
    end();
    const { pod, peer } = await published();
    expect(await node.valuesOf(attestor, peer)).toContain(`pod-uid:${pod.uid}`);
    expect(apiserver.pods.watchedFrom.length).toBeGreaterThan(watched);
    expect(apiserver.pods.lists - lists).toBe(1);
    expect(log.lines.filter(({ level }) => level === "warn")).toEqual([]);
  });

  test("from its last bookmark, when the server has forgotten what was before", async () => {
    await using held = new AsyncDisposableStack();
    const lists = apiserver.pods.lists;
    const attestor = await watching(held);
    await eventually("it is watched", () => apiserver.pods.watchers > 0);
    const elsewhere = await node.pod();
    node.publish(elsewhere.pod, "node-2");
    const watched = apiserver.pods.watchedFrom.length;
    apiserver.pods.forget();
    apiserver.pods.endWatches();
    await eventually("it is watched again", () => apiserver.pods.watchedFrom.length > watched);
    const { peer } = await published();
    expect(await node.valuesOf(attestor, peer)).toContain("container-name:web");
    expect(apiserver.pods.lists - lists).toBe(1);
  });

  test.each([false, true])("by a new list, when its version is gone (said by status: %s)", async (byStatus) => {
    await using held = new AsyncDisposableStack();
    const gone = await published();
    const attestor = await watching(held, { maxPollAttempts: 1, pollRetryIntervalMs: 20 });
    await eventually("it is watched", () => apiserver.pods.watchers > 0);
    const lists = apiserver.pods.lists;
    apiserver.pods.refusesByStatus = byStatus;
    held.defer(() => {
      apiserver.pods.refusesByStatus = false;
    });
    apiserver.isAway = true;
    apiserver.pods.breakWatches();
    node.unpublish(gone.pod);
    const { peer } = await published();
    apiserver.pods.forget();
    apiserver.isAway = false;
    await eventually("it was listed anew", () => apiserver.pods.lists > lists);
    await eventually("the new pod is known", async () =>
      (await valuesOrNone(attestor, peer)).includes("container-name:web"),
    );
    await expect(attestor.attest(gone.peer, node.signal)).rejects.toMatchObject({ code: "container-unknown" });
  });

  test.each([
    { what: "no JSON", text: "<html>\n" },
    { what: "longer than any object", text: "x".repeat(5 * 1024 * 1024) },
  ])("by a new list, when it was told what is $what", async ({ text }) => {
    await using held = new AsyncDisposableStack();
    const attestor = await watching(held);
    await eventually("it is watched", () => apiserver.pods.watchers > 0);
    const lists = apiserver.pods.lists;
    apiserver.pods.garble(text);
    await eventually("it was listed anew", () => apiserver.pods.lists > lists);
    const { peer } = await published();
    expect(await node.valuesOf(attestor, peer)).toContain("container-name:web");
    expect(log.lines).toContainEqual(expect.objectContaining({ level: "warn" }));
  });
});

describe("the kubelet is asked instead", () => {
  test("while the API server is away, and the log says so once", async () => {
    await using held = new AsyncDisposableStack();
    const attestor = await watching(held);
    await eventually("it is watched", () => apiserver.pods.watchers > 0);
    apiserver.isAway = true;
    apiserver.pods.breakWatches();
    const { pod, peer } = await node.running();
    expect(await node.valuesOf(attestor, peer)).toContain(`pod-uid:${pod.uid}`);
    const warned = (): number => log.lines.filter(({ message }) => message.startsWith("Unable to watch")).length;
    await eventually("it is told", () => warned() > 0);
    const asked = apiserver.requests.length;
    await eventually("it is tried again and again", () => apiserver.requests.length > asked + 1);
    expect(warned()).toBe(1);
    apiserver.isAway = false;
    await eventually("it is watched again", () => apiserver.pods.watchers > 0);
    await eventually("that is told, too", () =>
      log.lines.some(({ message }) => message === "Watching Kubernetes objects again"),
    );
  });

  test("where the agent may not watch", async () => {
    await using held = new AsyncDisposableStack();
    apiserver.rules.splice(1);
    const stop = new AbortController();
    held.defer(() => stop.abort());
    const kubelet = node.kubeletConfig({ nodeName: "localhost" });
    const { signal } = stop;
    const attestor = node.attestor({ kubelet, api: node.api(signal), signal, log, watches: true });
    const { pod, peer } = await node.running();
    expect(await node.valuesOf(attestor, peer)).toContain(`pod-uid:${pod.uid}`);
    await eventually("the reason is told", () =>
      log.lines.some(({ fields }) => String(fields["error"]).includes('cannot list resource "pods"')),
    );
  });
});

test("labels of namespaces by a watch are new at once, and a namespace that is newer still is asked for", async () => {
  await using held = new AsyncDisposableStack();
  for (const verb of ["list", "watch", "get"]) apiserver.rules.push({ user: AGENT, verb, resource: "namespaces" });
  apiserver.namespaces.set("team", { tier: "silver" });
  const attestor = await watching(held, { enableNamespaceLabels: true });
  await eventually("namespaces are watched", () => apiserver.namespaces.watchers > 0);
  const { peer } = await published({ namespace: "team" });
  const values = (): Promise<readonly string[]> => node.valuesOf(attestor, peer);
  await eventually("its labels", async () => (await values()).includes("ns-label:tier:silver"));
  const asked = (): number => apiserver.requests.filter((each) => each === "GET /api/v1/namespaces/team").length;
  const before = asked();
  apiserver.namespaces.set("team", { tier: "gold" });
  await eventually("its new labels", async () => (await values()).includes("ns-label:tier:gold"));
  expect(asked()).toBe(before);
  apiserver.rules.splice(0, Infinity, ...MAY_WATCH, { user: AGENT, verb: "get", resource: "namespaces" });
  apiserver.namespaces.breakWatches();
  await eventually("nobody watches namespaces", () => apiserver.namespaces.watchers === 0);
  apiserver.namespaces.set("newer", { tier: "tin" });
  const newer = await published({ namespace: "newer" });
  expect(await node.valuesOf(attestor, newer.peer)).toContain("ns-label:tier:tin");
});
