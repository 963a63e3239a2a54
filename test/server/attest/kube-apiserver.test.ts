import { execFile, execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { request } from "node:https";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KubeApiServer, textOf } from "../../support/kube-apiserver.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const AGENT = { name: "agent-x7", uid: "p1" };
const SERVER = "system:serviceaccount:spire:server";

let api: KubeApiServer;
let folder: Awaited<ReturnType<typeof temporaryDirectory>>;

beforeAll(async () => {
  [api, folder] = await Promise.all([KubeApiServer.open(), temporaryDirectory()]);
  await writeFile(join(folder.path, "ca.crt"), api.ca.pem);
  const [metadata, spec] = [
    { ...AGENT, namespace: "spire" },
    { nodeName: "n1", serviceAccountName: "agent" },
  ];
  api.pods.set(`spire/${AGENT.name}`, { uid: AGENT.uid, object: { kind: "Pod", apiVersion: "v1", metadata, spec } });
  api.nodes.set("n1", { kind: "Node", apiVersion: "v1", metadata: { name: "n1", uid: "node-uid-1" } });
  for (const resource of ["pods", "nodes"]) api.rules.push({ user: SERVER, verb: "get", resource });
});
afterAll(async () => {
  for (const resource of [api, folder]) await resource[Symbol.asyncDispose]();
});

function hasKubectl(): boolean {
  try {
    execFileSync("kubectl", ["version", "--client"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** What it prints, or what it complains of. */
async function kubectl(account: string, ...args: readonly string[]): Promise<string> {
  const access = ["--server", `https://127.0.0.1:${api.port}`, "--certificate-authority", join(folder.path, "ca.crt")];
  const token = ["--token", api.token("spire", account)];
  const env = { ...process.env, KUBECONFIG: join(folder.path, "none"), HOME: folder.path };
  const run = promisify(execFile)("kubectl", [...access, ...token, ...args], { env });
  return run.then(
    ({ stdout }) => stdout.trim(),
    (error: { readonly stderr: string }) => error.stderr.trim(),
  );
}

async function review(token: string, audience = "spire-server"): Promise<unknown> {
  const path = join(folder.path, "review.json");
  const request = {
    apiVersion: "authentication.k8s.io/v1",
    kind: "TokenReview",
    spec: { token, audiences: [audience] },
  };
  await writeFile(path, JSON.stringify(request));
  const answer = await kubectl("server", "create", "--raw", "/apis/authentication.k8s.io/v1/tokenreviews", "-f", path);
  return JSON.parse(answer).status;
}

/** So that what attests against the double attests against Kubernetes. */
describe.skipIf(!hasKubectl())("the double of an API server, for kubectl", () => {
  test("has the pod and the node that a token's owner runs on, for who may see them", async () => {
    expect(await kubectl("server", "get", "pod", AGENT.name, "-n", "spire", "-o", "jsonpath={.spec.nodeName}")).toBe(
      "n1",
    );
    expect(await kubectl("server", "get", "node", "n1", "-o", "jsonpath={.metadata.uid}")).toBe("node-uid-1");
    expect(await kubectl("agent", "get", "node", "n1")).toMatch(/Forbidden.*system:serviceaccount:spire:agent/);
    expect(await kubectl("server", "get", "node", "n2")).toContain("NotFound");
  });

  test("T-N10 reviews tokens as Kubernetes 1.32 does, and knows none of another audience, time or pod", async () => {
    const token = api.token("spire", "agent", { audience: "spire-server", pod: AGENT });
    expect(await review(token)).toMatchObject({
      authenticated: true,
      audiences: ["spire-server"],
      user: {
        username: "system:serviceaccount:spire:agent",
        extra: {
          "authentication.kubernetes.io/pod-name": [AGENT.name],
          "authentication.kubernetes.io/pod-uid": [AGENT.uid],
          "authentication.kubernetes.io/node-name": ["n1"],
          "authentication.kubernetes.io/node-uid": ["node-uid-1"],
        },
      },
    });
    const unknown = { user: {}, error: "[invalid bearer token, token lookup failed]" };
    expect(await review(token, "other")).toEqual(unknown);
    expect(await review(api.token("spire", "agent", { audience: "spire-server", seconds: -1 }))).toEqual(unknown);
    const gone = { audience: "spire-server", pod: { ...AGENT, uid: "p0" } };
    expect(await review(api.token("spire", "agent", gone))).toEqual(unknown);
  });
});

/** A field of a Protobuf message with a length. */
function field(number: number, ...parts: readonly (Buffer | string)[]): Buffer {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const length = body.length < 128 ? [body.length] : [(body.length & 127) | 128, body.length >> 7];
  return Buffer.concat([Buffer.of((number << 3) | 2, ...length), body]);
}

test("the double of an API server reads a token review as a client in Go writes it", async () => {
  const token = api.token("spire", "agent", { audience: "spire-server", pod: AGENT });
  const spec = field(2, field(1, token), field(2, "spire-server"));
  const type = field(1, field(1, "authentication.k8s.io/v1"), field(2, "TokenReview"));
  const body = Buffer.concat([Buffer.from("k8s\0"), type, field(2, field(1), spec, field(3)), field(3), field(4)]);
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    const path = "/apis/authentication.k8s.io/v1/tokenreviews";
    const headers = {
      authorization: `Bearer ${api.token("spire", "server")}`,
      "content-type": "application/vnd.kubernetes.protobuf",
    };
    request({ host: "127.0.0.1", port: api.port, path, method: "POST", ca: api.ca.pem, headers }, resolve)
      .on("error", reject)
      .end(body);
  });
  expect(JSON.parse(await textOf(answer))).toMatchObject({
    kind: "TokenReview",
    status: { authenticated: true, user: { username: "system:serviceaccount:spire:agent" } },
  });
});
