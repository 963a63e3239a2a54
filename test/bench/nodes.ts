import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tpmAttestor } from "../../agent/node/tpm.ts";
import { writeEvidence as psatEvidence } from "../../src/evidence/k8s-psat.ts";
import { endorsementHash, readEvidence as readTpmEvidence } from "../../src/evidence/tpm.ts";
import { answerChallenge, writeEvidence } from "../../src/evidence/x509pop.ts";
import { attestWith, type Evidence } from "../support/attest.ts";
import { issueTls, KubeApiServer } from "../support/kube-apiserver.ts";
import { createCa } from "../support/pki.ts";
import { type Simulator, startSimulator, withoutSwtpm } from "../support/swtpm.ts";
import type { Limit } from "./figures.ts";
import { type MeasuredServer, type Report, scenario } from "./scenario.ts";
import { calls } from "./stats.ts";

const MACHINES = 4;

/** Whole attestations over TLS by this process, so many at once, and what the server's CPU spends on each. */
export const nodes = scenario({
  summary: "node attestation over TLS, by method",
  parameters: {
    attestations: { doc: "By each method; fewer where the evidence takes long to make.", default: 200 },
    inFlight: { doc: "Nodes at the same time.", default: 8 },
  },
  async run({ parameters, onServers, limits }) {
    await using scope = new AsyncDisposableStack();
    const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
    scope.defer(() => rm(folder, { recursive: true, force: true }));
    const ca = await createCa({ uris: [] });
    await writeFile(join(folder, "ca.pem"), ca.pem);
    for (const name of ["hashes", "certs"]) await mkdir(join(folder, name));
    const kube = scope.use(await KubeApiServer.open());
    const nodeAttestors = {
      x509pop: { ca_bundle_path: join(folder, "ca.pem") },
      k8s_psat: { clusters: { one: await cluster(kube, folder) } },
      tpm: { hash_path: join(folder, "hashes"), ca_path: join(folder, "certs") },
    };
    const limit = await limits.signing("ec-p256", "sign and verify");
    const { attestations, inFlight } = parameters;
    await onServers({ nodeAttestors, anyStore: true, wireOnly: true }, async (server, report) => {
      const measure = async (name: string, make: () => Promise<Evidence>, count = attestations): Promise<void> => {
        const all = await Promise.all(Array.from({ length: count }, make));
        const options = { name, count, inFlight, limit };
        await reported(server, report, options, (index) => attest(server, all[index] as Evidence));
      };
      await measure("join_token", async () => ({ type: "join_token", payload: await server.createToken() }));
      if (!server.isOurs) return report.note("join_token alone: the other methods want its configuration");
      await measure("x509pop, ECDSA", async () => x509pop(await ca.issue({ uris: [] })));
      await measure("x509pop, RSA", async () => x509pop(await ca.issue({ uris: [], keyType: "rsa-2048" })), 40);
      await measure("k8s_psat", async () => psat(kube));
      if (withoutSwtpm) report.note("tpm: there is no swtpm on this machine");
      else await measureTpm(server, report, { folder, limit });
    });
  },
});

async function attest(server: MeasuredServer, evidence: Evidence): Promise<void> {
  using apis = server.connect();
  await attestWith(apis, evidence);
}

interface Measuring {
  readonly name: string;
  readonly count: number;
  readonly inFlight: number;
  readonly limit: Limit;
}

async function reported(
  server: MeasuredServer,
  report: Report,
  { name, count, inFlight, limit }: Measuring,
  work: (index: number, worker: number) => Promise<void>,
): Promise<void> {
  const { seconds, ms, cpuUs } = await calls({ count, inFlight, pid: server.pid }, work);
  report.figure({ name, unit: "/s", values: count / seconds });
  report.figure({ name: `${name}, one`, unit: "ms", values: ms });
  if (cpuUs !== undefined) report.figure({ name: `${name}, server CPU for one`, unit: "us", values: cpuUs, limit });
}

function x509pop({
  chain,
  signer,
}: {
  readonly chain: readonly Uint8Array[];
  readonly signer: { readonly privateKey: Parameters<typeof answerChallenge>[0] };
}): Evidence {
  const respond = (challenge: Buffer): Uint8Array => answerChallenge(signer.privateKey, challenge);
  return { type: "x509pop", payload: writeEvidence(chain), respond };
}

async function cluster(kube: KubeApiServer, folder: string): Promise<object> {
  const admin = await issueTls(kube.ca, { subject: { commonName: "system:admin" } });
  const base64 = (text: string): string => Buffer.from(text).toString("base64");
  const user = { "client-certificate-data": base64(admin.pem), "client-key-data": base64(admin.keyPem) };
  const place = { server: `https://localhost:${kube.port}`, "certificate-authority-data": base64(kube.ca.pem) };
  const config = {
    "current-context": "c",
    clusters: [{ name: "k", cluster: place }],
    users: [{ name: "u", user }],
    contexts: [{ name: "c", context: { cluster: "k", user: "u" } }],
  };
  const path = join(folder, "kubeconfig.yaml");
  await writeFile(path, JSON.stringify(config));
  const [metadata, spec] = [
    { name: "agent", namespace: "spire", uid: "p1" },
    { nodeName: "n1", serviceAccountName: "agent" },
  ];
  kube.pods.set("spire/agent", { uid: "p1", object: { kind: "Pod", apiVersion: "v1", metadata, spec, status: {} } });
  kube.nodes.set("n1", { kind: "Node", apiVersion: "v1", metadata: { name: "n1", uid: "n1" } });
  return { service_account_allow_list: ["spire:agent"], kube_config_file: path };
}

function psat(kube: KubeApiServer): Evidence {
  const token = kube.token("spire", "agent", { audience: "spire-server", pod: { name: "agent", uid: "p1" } });
  return { type: "k8s_psat", payload: psatEvidence({ cluster: "one", token }) };
}

/** The simulators' work is in the rate, and not in the server's CPU. */
async function measureTpm(
  server: MeasuredServer,
  report: Report,
  { folder, limit }: { readonly folder: string; readonly limit: Limit },
): Promise<void> {
  await using scope = new AsyncDisposableStack();
  const machines: Simulator[] = [];
  for (let count = 0; count < MACHINES; count += 1) machines.push(scope.use(await startSimulator()));
  const once = async (_: number, worker: number): Promise<void> => {
    const machine = machines[worker] as Simulator;
    const access = { devicePath: machine.devicePath, ownerPassword: "", endorsementPassword: "" };
    const attestor = tpmAttestor({ ...access, attestationKey: "ecc", eventLogPath: "/nowhere", requoteMs: 0 });
    const signal = new AbortController().signal;
    try {
      const payload = await attestor.evidence(signal);
      await writeFile(join(folder, "hashes", endorsementHash(readTpmEvidence(payload).endorsementKey)), "");
      await attest(server, { type: "tpm", payload, respond: (challenge) => attestor.respond(challenge, signal) });
    } finally {
      await attestor.done?.();
    }
  };
  const name = `tpm, ${MACHINES} simulators, quote of 8 PCRs`;
  await reported(server, report, { name, count: 40, inFlight: MACHINES, limit }, once);
}
