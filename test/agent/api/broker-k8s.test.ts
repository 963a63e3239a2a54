import { randomBytes, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { BrokerPolicy } from "../../../agent/workload/kube-references.ts";
import type { Channel } from "../../../src/rpc/dial.ts";
import { BrokerApi } from "../../../src/rpc/protos.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import {
  BROKER_HEADER,
  dialBroker,
  dialBrokerTcp,
  objectReference,
  pidReference,
  spiffeReasonOf,
} from "../../support/broker.ts";
import { collect } from "../../support/collect.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { KubeApiServer } from "../../support/kube-apiserver.ts";
import { Kubelet, type KubePod, podJson } from "../../support/kubelet.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { ProcRoot } from "../../support/proc-root.ts";
import { tlsIdentity } from "../../support/scripted-server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const AGENT = "system:serviceaccount:spire:spire-agent";
const NODE_BROKER = parseSpiffeId("spiffe://example.org/node-broker");
const CLUSTER_BROKER = parseSpiffeId("spiffe://example.org/cluster-broker");
const UNKNOWN_BROKER = parseSpiffeId("spiffe://example.org/unknown-broker");
const TYPE_URL = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";
const PODS = { plural: "pods", group: "core" };
const DEPLOYMENTS = { plural: "deployments", group: "apps" };
type Object = Parameters<typeof objectReference>[0];

const scope = new AsyncDisposableStack();
let apiserver: KubeApiServer;
let kubelet: Kubelet;
let proc: ProcRoot;
let root: TestCa;
let endpoint: Endpoint;
let enforced: Endpoint;
let unnamed: Endpoint;
let identities: ReadonlyMap<string, Issued>;

beforeAll(async () => {
  apiserver = scope.use(await KubeApiServer.open());
  kubelet = scope.use(await Kubelet.open(apiserver));
  proc = scope.use(await ProcRoot.open());
  root = await createCa({ trustDomain: "example.org" });
  const ids = [NODE_BROKER, CLUSTER_BROKER, UNKNOWN_BROKER];
  identities = new Map(await Promise.all(ids.map(async (id) => [id, await root.issue({ id })] as const)));
  const { path: directory } = scope.use(await temporaryDirectory());
  await writeFile(join(directory, "ca.crt"), apiserver.ca.pem);
  await writeFile(join(directory, "token"), apiserver.token("spire", "spire-agent"));
  apiserver.rules.push({ user: AGENT, verb: "get", resource: "nodes", subresource: "pods" });
  for (const resource of ["pods", "nodes", "deployments"])
    for (const verb of ["get", "list"]) apiserver.rules.push({ user: AGENT, verb, resource });
  const started = [start(directory, "permissive"), start(directory, "enforced"), start(directory)] as const;
  [endpoint, enforced, unnamed] = await Promise.all(started);
});
afterAll(() => scope.disposeAsync());

async function start(directory: string, policy?: "permissive" | "enforced"): Promise<Endpoint> {
  const credentials = { type: "token", path: join(directory, "token") } as const;
  const tls = { secure: true, caPath: join(directory, "ca.crt"), credentials, nodeName: undefined };
  const brokers: BrokerPolicy["brokers"] = new Map([
    [NODE_BROKER, "agent_node"],
    [CLUSTER_BROKER, "cluster"],
  ]);
  const allowed = [{ typeUrl: "*", overTcp: false }];
  const afar = [{ typeUrl: TYPE_URL, overTcp: true }];
  const opened = scope.use(
    await Endpoint.start({
      bundles: bundlesOf(root),
      k8s: {
        procRoot: proc.path,
        api: { host: "127.0.0.1", port: apiserver.port, directory },
        kubelet: { port: kubelet.port, reloadIntervalMs: 60_000, ...tls },
        broker: policy && { enforced: policy === "enforced", brokers },
      },
      broker: {
        svid: await root.issue({ id: "spiffe://example.org/spire/agent/a" }),
        brokers: [
          { id: NODE_BROKER, allowed },
          { id: CLUSTER_BROKER, allowed: afar },
          { id: UNKNOWN_BROKER, allowed },
        ],
      },
    }),
  );
  await opened.brokerPort();
  return opened;
}

/** Grants one identity to who has these selectors. */
async function grant(...selectors: readonly string[]): Promise<void> {
  const entry = cachedEntry({ id: "web", selectors });
  for (const each of [endpoint, enforced, unnamed]) {
    await each.replace([entry], bundlesOf(root));
    await each.accept([entry, await root.issue({ id: entry.spiffeId })]);
  }
}

async function dial(id = NODE_BROKER, at = endpoint): Promise<Channel> {
  const identity = tlsIdentity(identities.get(id)!);
  return id === CLUSTER_BROKER
    ? dialBrokerTcp(await at.brokerPort(), { identity })
    : dialBroker(at.brokerPath, { identity });
}

function svids(over: Channel, reference: ReturnType<typeof objectReference>) {
  const api = over.client(BrokerApi);
  return collect((options) => api.SubscribeToX509SVID({ reference }, { ...options, metadata: BROKER_HEADER }));
}

/** What a broker gets: `web`, or the kind of error with its reason, the same for SVIDs and bundles. */
async function outcome(object: Object | number, id = NODE_BROKER, at = endpoint): Promise<string> {
  const reference = typeof object === "number" ? pidReference(object) : objectReference(object);
  using over = await dial(id, at);
  using stream = svids(over, reference);
  const first = await Promise.race([stream.answer(1), stream.ended]);
  if (!("svids" in (first as object))) {
    const jwt = over.client(BrokerApi).FetchJWTSVID({ reference, audience: ["a"] }, { metadata: BROKER_HEADER });
    const error = await jwt.then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(error).toMatchObject({ kind: (first as { readonly kind: string }).kind });
    return [(first as { readonly kind: string }).kind, spiffeReasonOf(first)].filter(Boolean).join(" ");
  }
  return (first as Awaited<ReturnType<typeof stream.answer>>).svids.map(({ spiffe_id }) => spiffe_id).join();
}

const WEB = "spiffe://example.org/web";
const NOT_FOUND = "not_found WORKLOAD_NOT_FOUND";
const INVALID = "invalid WORKLOAD_REFERENCE_INVALID";

function pod(options: Partial<KubePod> = {}): KubePod {
  const uid = randomUUID();
  const containers = [
    { name: "web", image: "nginx:1", containerID: `containerd://${randomBytes(32).toString("hex")}` },
  ];
  return {
    uid,
    name: `web-${uid}`,
    namespace: "shop",
    serviceAccount: "web",
    labels: { app: "web" },
    containers,
    ...options,
  };
}

const keyOf = ({ namespace = "", name }: KubePod) => ({ namespace, name });

/** A pod of another node, which only the API server knows. */
function distant(options: Partial<KubePod> = {}): KubePod {
  const found = pod(options);
  apiserver.pods.set(`${found.namespace}/${found.name}`, { uid: found.uid, object: podJson(found, "node-2") });
  return found;
}

describe("pods", () => {
  let local: KubePod;
  beforeEach(async () => {
    local = pod();
    kubelet.set(local);
    await grant("k8s:ns:shop", "k8s:sa:web", "k8s:pod-label:app:web", "k8s:pod-image:nginx:1");
  });

  test("BRK-21 BRK-25 BRK-01 of the own node by UID, by name and by both have the pod's selectors", async () => {
    await grant(`k8s:pod-uid:${local.uid}`, "k8s:ns:shop", "k8s:sa:web", "k8s:node-name:node-1");
    expect(await outcome({ type: PODS, uid: local.uid })).toBe(WEB);
    expect(await outcome({ type: PODS, uid: local.uid.toUpperCase() })).toBe(WEB);
    expect(await outcome({ type: PODS, key: keyOf(local) })).toBe(WEB);
    expect(await outcome({ type: PODS, key: keyOf(local), uid: local.uid })).toBe(WEB);
  });

  test("BRK-14b have no selectors of a container, and none of an object that is no pod", async () => {
    for (const selector of ["k8s:container-name:web", `k8s:name:${local.name}`, "k8s:namespace:shop"]) {
      await grant(selector);
      expect(await outcome({ type: PODS, uid: local.uid })).toBe("denied WORKLOAD_NOT_ENTITLED");
    }
  });

  test("BRK-51 BRK-09 BRK-26 BRK-08 that are not here, are others by now, or run on another node are NotFound", async () => {
    const elsewhere = distant();
    for (const object of [
      { type: PODS, uid: randomUUID() },
      { type: PODS, key: { namespace: "shop", name: "nobody" } },
      { type: PODS, key: { namespace: "other", name: local.name } },
      { type: PODS, key: keyOf(local), uid: randomUUID() },
      { type: PODS, uid: elsewhere.uid },
      { type: PODS, key: keyOf(elsewhere) },
    ])
      expect(await outcome(object)).toBe(NOT_FOUND);
  });

  test("BRK-22 named without a namespace are InvalidArgument", async () => {
    expect(await outcome({ type: PODS, key: { name: local.name } })).toBe(INVALID);
    expect(await outcome({ type: PODS, key: { name: local.name }, uid: local.uid })).toBe(INVALID);
  });

  test("BRK-07 of which two have the name are told apart by UID only", async () => {
    const twin = pod({ name: local.name });
    kubelet.set(twin);
    await grant(`k8s:pod-uid:${twin.uid}`);
    expect(await outcome({ type: PODS, key: keyOf(local) })).toBe(INVALID);
    expect(await outcome({ type: PODS, key: keyOf(local), uid: twin.uid })).toBe(WEB);
    kubelet.remove(twin.uid);
  });

  test("BRK-10 are Unavailable, not gone, while the kubelet does not answer", async () => {
    kubelet.override = (response) => void response.writeHead(500).end("down");
    try {
      expect(await outcome({ type: PODS, uid: randomUUID() })).toBe("unavailable");
    } finally {
      kubelet.override = undefined;
    }
  });

  test("BRK-33 of another node are for brokers of the whole cluster, over TCP too", async () => {
    const elsewhere = distant();
    await grant("k8s:node-name:node-2", `k8s:pod-uid:${elsewhere.uid}`);
    expect(await outcome({ type: PODS, uid: elsewhere.uid }, CLUSTER_BROKER)).toBe(WEB);
    expect(await outcome({ type: PODS, key: keyOf(elsewhere) }, CLUSTER_BROKER)).toBe(WEB);
    expect(await outcome({ type: PODS, key: keyOf(elsewhere), uid: randomUUID() }, CLUSTER_BROKER)).toBe(NOT_FOUND);
    expect(await outcome({ type: PODS, uid: randomUUID() }, CLUSTER_BROKER)).toBe(NOT_FOUND);
  });

  test("BRK-39 BRK-56 BRK-59 whose end, or whose namesake, ends their stream and no other", async () => {
    const other = pod();
    kubelet.set(other);
    using over = await dial();
    using stays = svids(over, objectReference({ type: PODS, uid: other.uid }));
    using ends = svids(over, objectReference({ type: PODS, key: keyOf(local) }));
    await Promise.all([stays.answer(1), ends.answer(1)]);
    kubelet.set(pod({ name: local.name }));
    kubelet.remove(local.uid);
    const end = await ends.ended;
    expect(end).toMatchObject({ kind: "not_found" });
    expect(spiffeReasonOf(end)).toBe("WORKLOAD_NOT_FOUND");
    expect(ends.answers).toHaveLength(1);
    await grant("k8s:ns:shop", "k8s:sa:web");
    await stays.answer(2);
  });
});

test("BRK-18 a pid of a pod's pause process has no selectors of the pod, nor of any container", async () => {
  const local = pod();
  kubelet.set(local);
  await grant("k8s:ns:shop");
  await proc.place(process.pid, `0::/kubepods/pod${local.uid}/${local.containers?.[0]?.containerID?.slice(13)}`);
  expect(await outcome(process.pid)).toBe(WEB);
  await proc.place(process.pid, `0::/kubepods/pod${local.uid}/${randomBytes(32).toString("hex")}`);
  expect(await outcome(process.pid)).toBe("denied");
  await grant(`unix:uid:${process.getuid?.()}`);
  expect(await outcome(process.pid)).toBe("denied");
});

describe("other objects", () => {
  const uid = randomUUID();
  const key = { namespace: "shop", name: "web" };
  const selectors = [
    ...[`k8s:uid:${uid}`, "k8s:resource:deployments.apps", "k8s:plural:deployments", "k8s:group:apps"],
    ...["k8s:version:v1", "k8s:apiVersion:apps/v1", "k8s:kind:Deployment", "k8s:name:web"],
    ...["k8s:namespace:shop", "k8s:key:shop/web", "k8s:label:app:web", "k8s:owner-key:argoproj.io/App/shop"],
    ...["k8s:owner-uid:argoproj.io/App/o1", "k8s:owner-key:core/ConfigMap/c", "k8s:owner-uid:core/ConfigMap/o2"],
    ...["k8s:controller-key:argoproj.io/App/shop", "k8s:controller-uid:argoproj.io/App/o1"],
  ];
  beforeEach(() => {
    const ownerReferences = [
      { apiVersion: "argoproj.io/v1alpha1", kind: "App", name: "shop", uid: "o1", controller: true },
      { apiVersion: "v1", kind: "ConfigMap", name: "c", uid: "o2" },
    ];
    const metadata = { ...key, uid, labels: { app: "web" }, ownerReferences };
    apiserver.deployments.clear();
    for (let each = 0; each < 600; each += 1)
      apiserver.deployments.set(`a/${each}`, { metadata: { namespace: "a", name: String(each), uid: `u-${each}` } });
    apiserver.deployments.set("shop/web", { metadata });
    apiserver.nodes.set("node-1", { metadata: { name: "node-1", uid: "8f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0" } });
  });

  test("BRK-20 BRK-25 by UID, by name and by both have every selector of an object", async () => {
    await grant(...selectors);
    expect(await outcome({ type: DEPLOYMENTS, uid })).toBe(WEB);
    expect(await outcome({ type: DEPLOYMENTS, key })).toBe(WEB);
    expect(await outcome({ type: DEPLOYMENTS, key, uid })).toBe(WEB);
    await grant("k8s:controller-key:core/ConfigMap/c");
    expect(await outcome({ type: DEPLOYMENTS, uid })).toBe("denied WORKLOAD_NOT_ENTITLED");
  });

  test("BRK-23 without a namespace have selectors without one", async () => {
    await grant("k8s:resource:nodes.core", "k8s:apiVersion:v1", "k8s:key:node-1", "k8s:kind:Node");
    const type = { plural: "nodes", group: "core" };
    expect(await outcome({ type, key: { name: "node-1" } })).toBe(WEB);
    expect(await outcome({ type, key: { namespace: "x", name: "node-1" } })).toBe(INVALID);
    await grant("k8s:namespace:");
    expect(await outcome({ type, key: { name: "node-1" } })).toBe("denied WORKLOAD_NOT_ENTITLED");
  });

  test("BRK-51 BRK-09 BRK-26 that are not there, or have another UID, are NotFound", async () => {
    expect(await outcome({ type: DEPLOYMENTS, uid: randomUUID() })).toBe(NOT_FOUND);
    expect(await outcome({ type: DEPLOYMENTS, key: { ...key, name: "none" } })).toBe(NOT_FOUND);
    expect(await outcome({ type: DEPLOYMENTS, key, uid: randomUUID() })).toBe(NOT_FOUND);
  });

  test.each([
    { what: "BRK-20 a type of another group", type: { plural: "deployments", group: "core" } },
    { what: "BRK-20 a group that is part of a plural", type: { plural: "deployments.apps", group: "apps" } },
    { what: "BRK-21 a version for a group", type: { plural: "deployments", group: "v1" } },
    { what: "BRK-21 Core", type: { plural: "pods", group: "Core" } },
    { what: "a subresource", type: { plural: "deployments/scale", group: "apps" } },
    { what: "a path", type: { plural: "deployments", group: "../api" } },
    { what: "BRK-22 no namespace", type: DEPLOYMENTS, at: { name: "web" } },
    { what: "a path for a name", type: DEPLOYMENTS, at: { namespace: "shop", name: "../../secrets" } },
    { what: "a path for a namespace", type: DEPLOYMENTS, at: { namespace: "..", name: "web" } },
  ])("$what is InvalidArgument", async ({ type, at = key }) => {
    await grant("k8s:name:web");
    expect(await outcome({ type, key: at })).toBe(INVALID);
  });

  test("BRK-07 of which two have the UID are InvalidArgument", async () => {
    apiserver.deployments.set("shop/twin", { metadata: { namespace: "shop", name: "twin", uid } });
    expect(await outcome({ type: DEPLOYMENTS, uid })).toBe(INVALID);
  });

  test("BRK-10 that the agent may not look at are Unavailable", async () => {
    const at = apiserver.rules.findIndex(({ verb, resource }) => verb === "get" && resource === "deployments");
    const [rule] = apiserver.rules.splice(at, 1);
    expect(await outcome({ type: DEPLOYMENTS, key })).toBe("unavailable");
    apiserver.rules.push(rule!);
  });

  test("BRK-56 BRK-59 whose end ends their stream within seconds", async () => {
    await grant("k8s:kind:Deployment");
    using over = await dial();
    using stream = svids(over, objectReference({ type: DEPLOYMENTS, key }));
    await stream.answer(1);
    apiserver.deployments.set("shop/web", { metadata: { ...key, uid: randomUUID() } });
    expect(await stream.ended).toMatchObject({ kind: "not_found" });
    expect(stream.answers).toHaveLength(1);
  });
});

describe("BRK-32 what the cluster lets a broker have", () => {
  const impersonate = { verb: "impersonate-via-spire", resource: "pods", group: "", namespace: "shop" };

  test("a pod needs impersonate-via-spire for the broker's SPIFFE ID, by reference and by pid", async () => {
    const container = randomBytes(32).toString("hex");
    const local = pod({ containers: [{ name: "web", image: "nginx:1", containerID: `containerd://${container}` }] });
    kubelet.set(local);
    await proc.place(process.pid, `0::/kubepods/pod${local.uid}/${container}`);
    await grant(`k8s:pod-uid:${local.uid}`);
    const objects = [{ type: PODS, uid: local.uid }, { type: PODS, key: keyOf(local) }, process.pid];
    for (const object of objects) expect(await outcome(object, NODE_BROKER, enforced)).toBe("denied");
    apiserver.rules.push({ user: NODE_BROKER, ...impersonate, name: "another" });
    for (const object of objects) expect(await outcome(object, NODE_BROKER, enforced)).toBe("denied");
    apiserver.rules.push({ user: NODE_BROKER, ...impersonate, name: local.name });
    for (const object of objects) expect(await outcome(object, NODE_BROKER, enforced)).toBe(WEB);
    for (const object of objects) expect(await outcome(object)).toBe(WEB);
  });

  test("T-W8 a process in a pod is nobody's while it cannot be found out which pod that is", async () => {
    const [local, container] = [pod({ containers: [] }), randomBytes(32).toString("hex")];
    kubelet.set(local);
    await proc.place(process.pid, `0::/kubepods/pod${local.uid}/${container}`);
    await grant(`unix:uid:${process.getuid?.()}`);
    kubelet.override = (response) => void response.writeHead(503).end("starting");
    expect(await outcome(process.pid, NODE_BROKER, enforced)).toBe("unavailable");
    kubelet.override = undefined;
    const containers = [{ name: "web", image: "nginx:1", containerID: `containerd://${container}` }];
    kubelet.set({ ...local, containers });
    expect(await outcome(process.pid, NODE_BROKER, enforced)).toBe("denied");
  });

  test("another object does too, by its group and resource", async () => {
    const key = { namespace: "shop", name: "guarded" };
    apiserver.deployments.set("shop/guarded", { metadata: { ...key, uid: randomUUID() } });
    await grant("k8s:name:guarded");
    expect(await outcome({ type: DEPLOYMENTS, key }, NODE_BROKER, enforced)).toBe("denied");
    apiserver.rules.push({
      user: NODE_BROKER,
      ...impersonate,
      resource: "deployments",
      group: "apps",
      name: "guarded",
    });
    expect(await outcome({ type: DEPLOYMENTS, key }, NODE_BROKER, enforced)).toBe(WEB);
  });

  test("a broker that the attestor does not name has nothing of the cluster, and what is in no pod as before", async () => {
    const local = pod();
    kubelet.set(local);
    await grant("k8s:ns:shop");
    expect(await outcome({ type: PODS, uid: local.uid }, UNKNOWN_BROKER)).toBe("denied");
    await proc.place(process.pid, `0::/kubepods/pod${local.uid}/${local.containers?.[0]?.containerID?.slice(13)}`);
    expect(await outcome(process.pid, UNKNOWN_BROKER)).toBe("denied");
    await proc.place(process.pid, "0::/system.slice/cron.service");
    await grant(`unix:uid:${process.getuid?.()}`);
    expect(await outcome(process.pid, UNKNOWN_BROKER)).toBe(WEB);
  });

  test("an attestor that names no brokers gives them no selectors of a process's pod, and those that it has besides", async () => {
    const local = pod();
    kubelet.set(local);
    await proc.place(process.pid, `0::/kubepods/pod${local.uid}/${local.containers?.[0]?.containerID?.slice(13)}`);
    await grant("k8s:ns:shop");
    expect(await outcome(process.pid)).toBe(WEB);
    expect(await outcome(process.pid, NODE_BROKER, unnamed)).toBe("denied WORKLOAD_NOT_ENTITLED");
    await grant(`unix:uid:${process.getuid?.()}`);
    expect(await outcome(process.pid, NODE_BROKER, unnamed)).toBe(WEB);
  });
});
