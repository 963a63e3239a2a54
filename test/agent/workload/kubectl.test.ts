import { execFile, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../../support/eventually.ts";
import { AGENT, K8sNode } from "../../support/k8s-node.ts";

const hasKubectl = spawnSync("kubectl", ["version", "--client"]).status === 0;

let node: K8sNode;
beforeAll(async () => {
  node = await K8sNode.open();
});
afterAll(() => node[Symbol.asyncDispose]());

describe.skipIf(!hasKubectl)("the doubles are Kubernetes enough for kubectl", () => {
  async function flagsOf(...args: readonly string[]): Promise<string[]> {
    const kubeconfig = await node.file("config", "apiVersion: v1\nkind: Config\n");
    const token = ["--token", node.apiserver.token("spire", "spire-agent")];
    const server = ["--server", `https://127.0.0.1:${node.apiserver.port}`];
    return [
      ...args,
      "--kubeconfig",
      kubeconfig,
      ...server,
      "--certificate-authority",
      join(node.folder, "ca.crt"),
      ...token,
    ];
  }

  async function kubectl(...args: readonly string[]): Promise<string> {
    const { stdout } = await promisify(execFile)("kubectl", await flagsOf(...args));
    return stdout.trim();
  }

  test("to read and select", async () => {
    for (const resource of ["namespaces", "pods"])
      for (const verb of ["get", "list"]) node.apiserver.rules.push({ user: AGENT, verb, resource });
    const [here, there] = [await node.pod(), await node.pod()];
    node.publish(here.pod);
    node.publish(there.pod, "node-2");
    expect(await kubectl("get", "namespace", "default", "-o", "name")).toBe("namespace/default");
    const selected = await kubectl("get", "pods", "-A", "--field-selector", "spec.nodeName=node-1", "-o", "name");
    expect(selected).toBe(`pod/${here.pod.name}`);
    node.unpublish(here.pod);
    node.unpublish(there.pod);
  });

  test("to review tokens and access", async () => {
    const token = node.apiserver.token("spire", "spire-agent");
    const resourceAttributes = { verb: "get", resource: "nodes", subresource: "pods", name: "node-1" };
    const review = async (group: string, kind: string, spec: object): Promise<unknown> => {
      const body = JSON.stringify({ apiVersion: `${group}.k8s.io/v1`, kind, spec });
      const path = await node.file(`${kind}.json`, body);
      return JSON.parse(await kubectl("create", "--validate=false", "-f", path, "-o", "json"));
    };
    expect(await review("authentication", "TokenReview", { token })).toMatchObject({
      status: { authenticated: true, user: { username: AGENT } },
    });
    expect(await review("authorization", "SubjectAccessReview", { user: AGENT, resourceAttributes })).toMatchObject({
      status: { allowed: true },
    });
    expect(await review("authorization", "SubjectAccessReview", { user: "x", resourceAttributes })).toMatchObject({
      status: { allowed: false },
    });
  });

  test("to watch", async () => {
    for (const verb of ["list", "watch"]) node.apiserver.rules.push({ user: AGENT, verb, resource: "pods" });
    const args = ["get", "pods", "-A", "--watch", "--output-watch-events", "-o", "json"];
    const child = spawn("kubectl", await flagsOf(...args), { stdio: ["ignore", "pipe", "inherit"] });
    let said = "";
    child.stdout.on("data", (chunk: Buffer) => {
      said += chunk.toString();
    });
    const ended = once(child, "close");
    await eventually("it watches", () => node.apiserver.pods.watchers > 0);
    const { pod } = await node.pod();
    node.publish(pod);
    node.publish({ ...pod, labels: { a: "b" } });
    node.unpublish(pod);
    const types = (): string[] => [...said.matchAll(/"type": ?"([A-Z]+)"/g)].map(([, type]) => String(type));
    await eventually("it was told everything", () => types().includes("DELETED"));
    child.kill("SIGKILL");
    await ended;
    expect(types()).toEqual(expect.arrayContaining(["ADDED", "MODIFIED", "DELETED"]));
    expect(said).toContain(pod.name);
  });
});
