/**
 * API server and kubelet with as many pods as the first argument says, as a process of their own. Says where they are,
 * and over IPC how often the kubelet has answered. Started by `startNode`.
 */
import { KubeApiServer } from "./kube-apiserver.ts";
import { Kubelet } from "./kubelet.ts";

export interface NodeFacts {
  readonly port: number;
  readonly ca: string;
  readonly token: string;
  readonly pods: readonly { readonly uid: string; readonly containerId: string }[];
}

const apiserver = await KubeApiServer.open();
const kubelet = await Kubelet.open(apiserver);
apiserver.rules.push({
  ...{ user: "system:serviceaccount:spire:spire-agent", verb: "get" },
  ...{ resource: "nodes", subresource: "pods" },
});
const pods = Array.from({ length: Number(process.argv[2] ?? 0) }, (_, at) => ({
  uid: `00000000-0000-4000-8000-${String(at).padStart(12, "0")}`,
  containerId: String(at).padStart(64, "0"),
}));
for (const [at, { uid, containerId }] of pods.entries()) {
  // As large as pods are in the field, most of it what attestation has no use for.
  const padding = Array.from({ length: 60 }, (_, line) => [`example.org/annotation-${line}`, "x".repeat(80)] as const);
  kubelet.set({
    ...{ uid, name: `web-${at}`, labels: { app: "web", at: String(at) }, annotations: Object.fromEntries(padding) },
    containers: [
      { name: "web", image: "nginx:1", imageID: "nginx@sha256:aa", containerID: `containerd://${containerId}` },
    ],
  });
}
process.on("message", () => process.send?.({ answered: kubelet.answered }));
const token = apiserver.token("spire", "spire-agent");
process.send?.({ port: kubelet.port, ca: apiserver.ca.pem, token, pods } satisfies NodeFacts);
