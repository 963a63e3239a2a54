/**
 * API server and kubelet with as many pods as the first argument says, as a process of their own. Says where they are,
 * and over IPC how often the kubelet has answered. Started by `startNode`.
 */
import { KubeApiServer } from "./kube-apiserver.ts";
import { Kubelet, podJson } from "./kubelet.ts";

export interface NodeFacts {
  readonly nodeName: string;
  readonly port: number;
  readonly apiPort: number;
  readonly ca: string;
  readonly token: string;
  readonly pods: readonly { readonly uid: string; readonly containerId: string }[];
}

const apiserver = await KubeApiServer.open();
const nodeName = "localhost";
const kubelet = await Kubelet.open(apiserver, { nodeName });
const user = "system:serviceaccount:spire:spire-agent";
apiserver.rules.push({ user, verb: "get", resource: "nodes", subresource: "pods" });
for (const verb of ["list", "watch"]) apiserver.rules.push({ user, verb, resource: "pods" });
const pods = Array.from({ length: Number(process.argv[2] ?? 0) }, (_, at) => ({
  uid: `00000000-0000-4000-8000-${String(at).padStart(12, "0")}`,
  containerId: String(at).padStart(64, "0"),
}));
for (const [at, { uid, containerId }] of pods.entries()) {
  // As large as pods are in the field, most of it what attestation has no use for.
  const padding = Array.from({ length: 60 }, (_, line) => [`example.org/annotation-${line}`, "x".repeat(80)] as const);
  const pod = {
    ...{ uid, name: `web-${at}`, labels: { app: "web", at: String(at) }, annotations: Object.fromEntries(padding) },
    containers: [
      { name: "web", image: "nginx:1", imageID: "nginx@sha256:aa", containerID: `containerd://${containerId}` },
    ],
  };
  kubelet.set(pod);
  apiserver.pods.set(`default/${pod.name}`, { uid, object: podJson(pod, nodeName) });
}
process.on("message", () => process.send?.({ answered: kubelet.answered }));
const token = apiserver.token("spire", "spire-agent");
const { port: apiPort, ca } = apiserver;
process.send?.({ nodeName, port: kubelet.port, apiPort, ca: ca.pem, token, pods } satisfies NodeFacts);
