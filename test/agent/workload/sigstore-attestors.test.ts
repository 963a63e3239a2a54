import { randomBytes, randomUUID } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadAgentConfig } from "../../../agent/config.ts";
import { openWorkloadAttestors } from "../../../agent/parts.ts";
import { type Attestor, WorkloadAttestor } from "../../../agent/workload/attest.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { formatSelector } from "../../../src/spiffe/selector.ts";
import { ContainerEngine } from "../../support/engine.ts";
import { KubeApiServer } from "../../support/kube-apiserver.ts";
import { Kubelet } from "../../support/kubelet.ts";
import { ProcRoot } from "../../support/proc-root.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { RegistryDouble } from "../../support/registry.ts";
import { ISSUER, publish, SigstoreDouble, SUBJECT } from "../../support/sigstore.ts";
import { PinningSocket, startWorkload, temporaryDirectory } from "../../support/workload.ts";

const stop = new AbortController();
const scope = new AsyncDisposableStack();
const REPOSITORY = "team/app";
let sigstore: SigstoreDouble;
let registry: RegistryDouble;
let kubelet: Kubelet;
let proc: ProcRoot;
let folder: string;

beforeAll(async () => {
  sigstore = scope.use(await SigstoreDouble.open());
  registry = scope.use(await RegistryDouble.open());
  kubelet = scope.use(await Kubelet.open(scope.use(await KubeApiServer.open()), { anonymous: true }));
  proc = scope.use(await ProcRoot.open());
  folder = scope.use(await temporaryDirectory()).path;
  await writeFile(join(folder, "trusted_root.json"), JSON.stringify(sigstore.trustedRoot()));
});

afterAll(async () => {
  stop.abort();
  await scope.disposeAsync();
});

/** As an agent with this configuration opens them. */
async function attestors(name: string, data: string, sigstoreKeys = ""): Promise<readonly Attestor[]> {
  const block = `sigstore {
    allowed_identities { "${ISSUER}" = ["${SUBJECT}"] }
    rekor_url = "${sigstore.rekorUrl}"
    trusted_root_path = "${folder}/trusted_root.json"
    ${sigstoreKeys}
  }`;
  const path = join(folder, `${randomUUID()}.conf`);
  const agent = 'agent { trust_domain = "a.test" server_address = "s" server_port = 8081 insecure_bootstrap = true }';
  const plugins = `plugins { WorkloadAttestor "${name}" { plugin_data { ${data} ${block} } } WorkloadAttestor "unix" {} }`;
  await writeFile(path, `${agent}\n${plugins}\n`);
  const { workloadAttestors } = loadAgentConfig({ path, flags: {}, env: {} });
  const parts = {
    clock: systemClock,
    log: new RecordingLog(),
    procRoot: proc.path,
    dataDir: folder,
    signal: stop.signal,
  };
  return openWorkloadAttestors(workloadAttestors, parts);
}

async function theOne(name: string, data: string, sigstoreKeys?: string): Promise<Attestor> {
  const found = (await attestors(name, data, sigstoreKeys)).find((attestor) => attestor.name === name);
  if (found === undefined) throw new Error(`no attestor ${name}`);
  return found;
}

function newImage(): { readonly digest: string; readonly name: string } {
  const digest = registry.image(REPOSITORY, randomUUID());
  return { digest, name: `${registry.host}/${REPOSITORY}@${digest}` };
}

async function signedImage(): Promise<string> {
  const { digest, name } = newImage();
  const place = { repository: REPOSITORY, digest };
  publish(registry, { ...place, suffix: "sig" }, [await sigstore.signature(digest)]);
  publish(registry, { ...place, suffix: "att" }, [await sigstore.attestation(digest)]);
  return name;
}

function containerId(): string {
  return randomBytes(32).toString("hex");
}

const verified = (type: string): readonly string[] => [
  ...[`${type}:image-signature:verified`, `${type}:image-attestations:verified`],
  ...[`${type}:image-signature-subject:${SUBJECT}`, `${type}:image-signature-issuer:${ISSUER}`],
];

describe("k8s with sigstore", () => {
  async function attest(imageID: string, sigstoreKeys = ""): Promise<readonly string[]> {
    const attestor = await theOne("k8s", `kubelet_read_only_port = ${kubelet.readOnlyPort}`, sigstoreKeys);
    const [id, uid] = [containerId(), randomUUID()];
    kubelet.set({
      uid,
      name: "web",
      containers: [{ name: "web", image: "app:1", imageID, containerID: `containerd://${id}` }],
    });
    const selectors = await attestor.attest(await proc.caller(`0::/kubepods/pod${uid}/${id}`), stop.signal);
    return selectors.map(formatSelector);
  }

  test("adds the selectors of the calling container's image, by the kubelet's imageID", async () => {
    const selectors = await attest(await signedImage());
    expect(selectors).toEqual(expect.arrayContaining(["k8s:ns:default", "k8s:container-name:web", ...verified("k8s")]));
  });

  test("gives no selector at all for an image that is not signed, as SPIRE", async () => {
    await expect(attest(newImage().name)).rejects.toMatchObject({ kind: "denied", code: "image-signature" });
    await expect(attest("app:1")).rejects.toMatchObject({ kind: "invalid", code: "image-name" });
  });

  test("T-W8 is not satisfied with a pod whose container, and so whose image, the kubelet does not know yet", async () => {
    const data = `kubelet_read_only_port = ${kubelet.readOnlyPort} disable_container_selectors = true
      max_poll_attempts = 2 poll_retry_interval = "50ms"`;
    const attestor = await theOne("k8s", data);
    const uid = randomUUID();
    kubelet.set({ uid, name: "web", containers: [{ name: "web", image: "app:1", imageID: newImage().name }] });
    const early = attestor.attest(await proc.caller(`0::/kubepods/pod${uid}/${containerId()}`), stop.signal);
    await expect(early).rejects.toMatchObject({ code: "container-unknown" });
  });

  test("asks nothing of images that are skipped", async () => {
    const { name } = newImage();
    const selectors = await attest(name, `skipped_images = ["${name}"]`);
    expect(selectors).toContain("k8s:container-name:web");
    expect(selectors.join()).not.toMatch(/image-signature/);
  });
});

describe("docker with sigstore", () => {
  async function engine(...repoDigests: readonly string[]): Promise<{ readonly path: string; readonly id: string }> {
    const [id, imageId] = [containerId(), `sha256:${containerId()}`];
    const held = await ContainerEngine.open({
      containers: [{ id, image: "app:1", imageId }],
      images: { "app:1": `sha256:${containerId()}`, "app:old": imageId },
      repoDigests: { [imageId]: repoDigests },
    });
    return { id, path: scope.use(held).path };
  }

  async function attest({ id, path }: { readonly path: string; readonly id: string }): Promise<readonly string[]> {
    const attestor = await theOne("docker", `docker_socket_path = "${path}"`);
    const selectors = await attestor.attest(await proc.caller(`0::/docker/${id}`), stop.signal);
    return selectors.map(formatSelector);
  }

  test("adds the selectors of the image that the container was made of, by its repository digests", async () => {
    const selectors = await attest(await engine(newImage().name, await signedImage()));
    expect(selectors).toEqual(expect.arrayContaining(["docker:image_id:app:1", ...verified("docker")]));
  });

  test("gives no selector at all for an image that is not signed, or was never in a registry", async () => {
    await expect(attest(await engine(newImage().name))).rejects.toMatchObject({
      kind: "denied",
      code: "image-signature",
    });
    await expect(attest(await engine())).rejects.toMatchObject({ message: /no repo digest found/ });
  });

  test("leaves the selectors of other attestors alone", async () => {
    const { id, path } = await engine(newImage().name);
    const log = new RecordingLog();
    const socket = scope.use(await PinningSocket.open());
    const workload = scope.use(await startWorkload({ socket: socket.path }));
    await proc.place(workload.pid, `0::/docker/${id}`);
    await writeFile(join(proc.path, String(workload.pid), "status"), await readFile(`/proc/${workload.pid}/status`));
    const all = await attestors("docker", `docker_socket_path = "${path}"`);
    const selectors = await new WorkloadAttestor({ attestors: all, clock: systemClock, log }).attest(
      await socket.next(),
      stop.signal,
    );
    expect(selectors.map(({ type }) => type)).toContain("unix");
    expect(selectors.map(({ type }) => type)).not.toContain("docker");
    expect(log.lines).toContainEqual(
      expect.objectContaining({ level: "error", message: 'workload attestor "docker" failed' }),
    );
  });
});
