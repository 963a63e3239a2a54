import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { kubeAccess } from "../../../server/attest/kubeconfig.ts";
import { writeEvidence } from "../../../src/evidence/k8s-psat.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import { faultFrom } from "../../support/faults.ts";
import { issueTls, KubeApiServer } from "../../support/kube-apiserver.ts";
import { createCa } from "../../support/pki.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PREFIX = "nodeattestor(k8s_psat): ";
const AUDIENCE = "spire-server";

let one: KubeApiServer;
let two: KubeApiServer;
let folder: Awaited<ReturnType<typeof temporaryDirectory>>;
let server: TestServer;
let anonymous: Apis;

const pod = { name: "agent-x7", uid: "11111111-aaaa-4bbb-8ccc-000000000001" };

interface PodOptions {
  readonly uid?: string;
  readonly account?: string;
  readonly node?: string;
}

function putPod(api: KubeApiServer, { uid = pod.uid, account = "agent", node = "node-1" }: PodOptions = {}): void {
  const metadata = { name: pod.name, namespace: "spire", uid, labels: { app: "agent", secret: "no" } };
  const object = {
    ...{ kind: "Pod", apiVersion: "v1", metadata },
    spec: { ...(node === "" ? {} : { nodeName: node }), serviceAccountName: account },
    status: { phase: "Running", hostIP: "10.0.0.7" },
  };
  api.pods.set(`spire/${pod.name}`, { uid, object });
}

/** What the server of Steeple may ask this API server, with which credentials. */
async function kubeconfig(name: string, api: KubeApiServer, user: object): Promise<string> {
  const path = join(folder.path, `${name}.yaml`);
  await writeFile(join(folder.path, `${name}.ca`), api.ca.pem);
  const config = {
    ...{ apiVersion: "v1", kind: "Config", "current-context": "c" },
    clusters: [
      { name: "k", cluster: { server: `https://localhost:${api.port}`, "certificate-authority": `${name}.ca` } },
    ],
    users: [{ name: "u", user }],
    contexts: [{ name: "c", context: { cluster: "k", user: "u" } }],
  };
  await writeFile(path, JSON.stringify(config));
  return path;
}

beforeAll(async () => {
  folder = await temporaryDirectory();
  [one, two] = await Promise.all([KubeApiServer.open(), KubeApiServer.open()]);
  const user = "system:serviceaccount:spire:server";
  for (const api of [one, two])
    for (const resource of ["pods", "nodes"]) api.rules.push({ user, verb: "get", resource });
  await writeFile(join(folder.path, "token"), one.token("spire", "server"));
  const admin = await issueTls(two.ca, { subject: { commonName: "system:admin" } });
  const base64 = (text: string): string => Buffer.from(text).toString("base64");
  const byCertificate = { "client-certificate-data": base64(admin.pem), "client-key-data": base64(admin.keyPem) };
  const accounts = { service_account_allow_list: ["spire:agent"] };
  server = await startServer({
    nodeAttestors: {
      k8s_psat: {
        clusters: {
          one: {
            ...accounts,
            kube_config_file: await kubeconfig("one", one, { tokenFile: "token" }),
            allowed_node_label_keys: ["zone", "absent"],
            allowed_pod_label_keys: ["app"],
          },
          two: {
            ...accounts,
            kube_config_file: await kubeconfig("two", two, byCertificate),
            use_pod_uid_for_agent_id: true,
            audience: ["other", AUDIENCE],
          },
          away: { ...accounts, kube_config_file: "/nowhere/kubeconfig" },
        },
      },
    },
  });
  anonymous = server.connect();
});

beforeEach(() => {
  for (const api of [one, two]) {
    putPod(api);
    api.nodes.clear();
    const metadata = { name: "node-1", uid: "node-uid-1", labels: { zone: "a/b:c", other: "no" } };
    api.nodes.set("node-1", { kind: "Node", apiVersion: "v1", metadata });
    api.tellsNodes = true;
  }
});

afterAll(async () => {
  anonymous[Symbol.dispose]();
  for (const resource of [server, one, two, folder]) await resource[Symbol.asyncDispose]();
});

function evidence(token: string, cluster = "one"): Evidence {
  return { type: "k8s_psat", payload: writeEvidence({ cluster, token }) };
}

const honest = (api = one, audience = AUDIENCE): string => api.token("spire", "agent", { audience, pod });

describe("k8s_psat", () => {
  test("an agent's pod attests as its node, with every selector, as often as it likes", async () => {
    const first = await attestWith(anonymous, evidence(honest()));
    expect(first).toMatchObject({ id: "spiffe://example.org/spire/agent/k8s_psat/one/node-uid-1", reattestable: true });
    expect(await selectorsOf(server, first.id)).toEqual(
      [
        "k8s_psat:cluster:one",
        "k8s_psat:agent_ns:spire",
        "k8s_psat:agent_sa:agent",
        `k8s_psat:agent_pod_name:${pod.name}`,
        `k8s_psat:agent_pod_uid:${pod.uid}`,
        "k8s_psat:agent_node_ip:10.0.0.7",
        "k8s_psat:agent_node_name:node-1",
        "k8s_psat:agent_node_uid:node-uid-1",
        "k8s_psat:agent_node_label:zone:a/b:c",
        "k8s_psat:agent_pod_label:app:agent",
      ].sort(),
    );
    expect((await attestWith(anonymous, evidence(honest()))).id).toBe(first.id);
  });

  test("clusters have their own credentials, audiences and kind of ID; older ones do not tell the node", async () => {
    two.tellsNodes = false;
    const attested = await attestWith(anonymous, evidence(honest(two), "two"));
    expect(attested.id).toBe(`spiffe://example.org/spire/agent/k8s_psat/two/pod/${pod.uid}`);
    expect((await attestWith(anonymous, evidence(honest(two, "other"), "two"))).id).toBe(attested.id);
  });

  test("an agent attests by the token in its file", async () => {
    const path = join(folder.path, "agent-token");
    await writeFile(path, `${honest()}\n`);
    await using agent = await startAgent(server, { nodeAttestor: { k8s_psat: { cluster: "one", token_path: path } } });
    expect(agent.id()).toBe("spiffe://example.org/spire/agent/k8s_psat/one/node-uid-1");
    expect(agent.output() + server.output()).not.toContain(honest().slice(0, 40));
  });

  test("credentials that are replaced count at once", async () => {
    const path = join(folder.path, "token");
    await writeFile(path, "expired");
    expect(await refused(anonymous, evidence(honest()))).toEqual({
      kind: "unavailable",
      message: `${PREFIX}unable to validate token with TokenReview API for cluster "one": status 401`,
    });
    await writeFile(path, one.token("spire", "server"));
    expect((await attestWith(anonymous, evidence(honest()))).reattestable).toBe(true);
  });

  const cut = (token: string): string => token.slice(0, token.lastIndexOf(".") + 1);
  const NOT_AUTHENTICATED = 'token not authenticated according to TokenReview API for cluster "one"';
  const FORGED: Readonly<Record<string, { kind?: string; message: string; make: () => Evidence }>> = {
    "no token": { kind: "invalid", message: "missing token in attestation data", make: () => evidence("") },
    "no cluster": { kind: "invalid", message: "missing cluster in attestation data", make: () => evidence("x", "") },
    "an unknown cluster": {
      kind: "invalid",
      message: 'not configured for cluster "three"',
      make: () => evidence(honest(), "three"),
    },
    "a cluster with the name of a property": {
      kind: "invalid",
      message: 'not configured for cluster "__proto__"',
      make: () => evidence(honest(), "__proto__"),
    },
    "no JSON": {
      kind: "invalid",
      message: "failed to unmarshal data payload: not JSON",
      make: () => ({ type: "k8s_psat", payload: "secret" }),
    },
    "T-N8 a token without a signature": { message: NOT_AUTHENTICATED, make: () => evidence(cut(honest())) },
    "T-N10 a token of another cluster": { message: NOT_AUTHENTICATED, make: () => evidence(honest(two)) },
    "T-N10 a token for another audience": {
      message: NOT_AUTHENTICATED,
      make: () => evidence(honest(one, "https://kubernetes.default.svc.cluster.local")),
    },
    "T-N10 a token of the other cluster, at that cluster's neighbour": {
      message: 'token not authenticated according to TokenReview API for cluster "two"',
      make: () => evidence(honest(one), "two"),
    },
    "a token that is cut": { message: NOT_AUTHENTICATED, make: () => evidence(honest().slice(0, -8)) },
    "T-N8 a token that says it needs no signature": {
      message: NOT_AUTHENTICATED,
      make: () => {
        const [, claims] = honest().split(".");
        return evidence(`${Buffer.from('{"alg":"none"}').toString("base64url")}.${claims}.`);
      },
    },
    "a token longer than any": {
      kind: "invalid",
      message: "token in attestation data is too long",
      make: () => evidence("x".repeat(16 * 1024 + 1)),
    },
    "an expired token": {
      message: NOT_AUTHENTICATED,
      make: () => evidence(one.token("spire", "agent", { audience: AUDIENCE, pod, seconds: -1 })),
    },
    "T-N10 another service account": {
      message: '"spire:other" is not an allowed service account for cluster "one"',
      make: () => evidence(one.token("spire", "other", { audience: AUDIENCE, pod })),
    },
    "T-N10 the same service account's name in another namespace": {
      message: '"prod:agent" is not an allowed service account for cluster "one"',
      make: () => evidence(one.token("prod", "agent", { audience: AUDIENCE })),
    },
    "a token that is bound to no pod": {
      message: 'token is not bound to a pod for cluster "one"',
      make: () => evidence(one.token("spire", "agent", { audience: AUDIENCE })),
    },
    "T-N10 a pod that was deleted and made again": {
      message: NOT_AUTHENTICATED,
      make: () => {
        const token = honest();
        putPod(one, { uid: "another" });
        return evidence(token);
      },
    },
    "a pod that runs as another service account": {
      message: `service account mismatch for pod "${pod.name}" in cluster "one"`,
      make: () => {
        putPod(one, { account: "default" });
        return evidence(honest());
      },
    },
    "a pod that has no node yet": {
      message: `node is not known yet for pod "${pod.name}" in cluster "one"`,
      make: () => {
        putPod(one, { node: "" });
        return evidence(honest());
      },
    },
    "a node that is gone": {
      kind: "unavailable",
      message: 'failed to get node from k8s API server for cluster "one": status 404',
      make: () => {
        one.nodes.clear();
        return evidence(honest());
      },
    },
    "a cluster that cannot be asked": {
      kind: "unavailable",
      message:
        "unable to reach the API server for cluster \"away\": unable to get the Kubernetes configuration: ENOENT: no such file or directory, open '/nowhere/kubeconfig'",
      make: () => evidence(honest(), "away"),
    },
  };

  test.each(Object.entries(FORGED))("%s is refused", async (_, { kind = "denied", message, make }) => {
    expect(await refused(anonymous, make())).toEqual({ kind, message: PREFIX + message });
  });
});

describe("what an API server answers that has been bent", () => {
  test("T-N10 an answer for an audience that was not asked for, or of a node that the pod is not on, is refused", async () => {
    one.bend = (status) => ({ ...status, audiences: ["another"] });
    expect(await refused(anonymous, evidence(honest()))).toMatchObject({
      message: `${PREFIX}token is for another audience according to TokenReview API for cluster "one"`,
    });
    one.bend = (status) => {
      const user = status["user"] as { readonly extra: object };
      return {
        ...status,
        user: { ...user, extra: { ...user.extra, "authentication.kubernetes.io/node-name": ["node-9"] } },
      };
    };
    expect(await refused(anonymous, evidence(honest()))).toMatchObject({
      message: `${PREFIX}node name mismatch for pod "${pod.name}" in cluster "one"`,
    });
    const extra = (change: object) => {
      one.bend = (status) => {
        const user = status["user"] as { readonly extra: object };
        return { ...status, user: { ...user, extra: { ...user.extra, ...change } } };
      };
    };
    extra({ "authentication.kubernetes.io/node-uid": ["another"] });
    expect(await refused(anonymous, evidence(honest()))).toMatchObject({
      message: `${PREFIX}node mismatch for pod "${pod.name}" in cluster "one"`,
    });
    for (const name of ["pod-name", "pod-uid"]) {
      extra({ [`authentication.kubernetes.io/${name}`]: [pod.name, pod.uid] });
      expect(await refused(anonymous, evidence(honest()))).toMatchObject({
        message: `${PREFIX}token is not bound to a pod for cluster "one"`,
      });
    }
    extra({ "authentication.kubernetes.io/pod-uid": ["another"] });
    expect((await refused(anonymous, evidence(honest()))).message).toContain("pod UID mismatch");
    one.bend = undefined;
  });
});

describe("kubeconfig", () => {
  test.each([
    ["exec", { exec: { command: "aws" } }, 'user credentials of kind "exec" are not supported'],
    ["a password", { username: "u", password: "p" }, 'user credentials of kind "username" are not supported'],
  ])("with %s is refused with the reason", async (_, user, reason) => {
    const path = await kubeconfig("bad", one, user);
    expect((await faultFrom(kubeAccess(path))).message).toBe(`unable to get the Kubernetes configuration: ${reason}`);
  });

  test("that believes any server is refused", async () => {
    const path = await kubeconfig("loose", one, {});
    const config = JSON.parse(await readFile(path, "utf8"));
    config.clusters[0].cluster["insecure-skip-tls-verify"] = true;
    await writeFile(path, JSON.stringify(config));
    expect((await faultFrom(kubeAccess(path))).message).toContain("insecure-skip-tls-verify is not supported");
  });

  test("an API server that another authority vouches for is not asked", async () => {
    const stranger = await createCa();
    await writeFile(join(folder.path, "one.ca"), stranger.pem);
    expect((await refused(anonymous, evidence(honest()))).message).toContain("unable to validate token");
    await writeFile(join(folder.path, "one.ca"), one.ca.pem);
  });
});
