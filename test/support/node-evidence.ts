import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { lookup } from "node:dns/promises";
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname } from "node:os";
import { join } from "node:path";
import type { NodeAttestor } from "../../agent/node/attestor.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { readChallenge, writeEvidence as writeHttp } from "../../src/evidence/http-challenge.ts";
import { writeEvidence as writePsat } from "../../src/evidence/k8s-psat.ts";
import { readPrivateKey } from "../../src/evidence/ssh-key.ts";
import { answerChallenge as answerSsh, writeEvidence as writeSsh } from "../../src/evidence/sshpop.ts";
import { answerChallenge, writeEvidence } from "../../src/evidence/x509pop.ts";
import type { Evidence } from "./attest.ts";
import { AwsDouble, SERVER_ACCOUNT } from "./aws.ts";
import { AzureDouble, TENANT } from "./azure.ts";
import { CloudNet } from "./cloud-net.ts";
import { GcpDouble } from "./gcp.ts";
import { issueTls, KubeApiServer } from "./kube-apiserver.ts";
import { createCa, type TestCa } from "./pki.ts";
import { certifyEndorsement, makeDevId, type Simulator, startSimulator, withoutSwtpm } from "./swtpm.ts";
import { devidAgentOf, signal, tpmAgentOf } from "./tpm-agents.ts";

/** What an honest node shows, once. */
export interface Shown extends Evidence, AsyncDisposable {}

/** One way to attest, with somebody who vouches for its nodes. */
export interface NodeMethod {
  readonly name: string;
  /** Of the server's NodeAttestor of the evidence's type; none for join tokens. */
  readonly config?: Readonly<Record<string, object>>;
  /** Of the server. */
  readonly env?: Readonly<Record<string, string>>;
  /** Evidence takes long to make. */
  readonly isSlow?: boolean;
  /** Evidence takes hold of a machine until it is disposed of. */
  readonly isOnMachine?: boolean;
  /** Honest evidence, new each time. `worker` tells apart who asks at the same time: each has a machine of its own. */
  show(worker?: number): Promise<Shown>;
}

export interface NodeMethodsOptions {
  readonly folder: string;
  readonly createToken: () => Promise<string>;
  /** How many ask at the same time, at most. */
  readonly machines?: number;
}

export const withoutKeygen = !existsSync("/usr/bin/ssh-keygen");

/** Every method that this machine can show. */
export const nodeMethodNames: readonly string[] = [
  "join_token",
  ...["x509pop, ECDSA", "x509pop, RSA"],
  ...(withoutKeygen ? [] : ["sshpop"]),
  ...["http_challenge", "k8s_psat", "aws_iid", "gcp_iit", "azure_imds", "azure_msi"],
  ...(withoutSwtpm ? [] : ["tpm_devid", "tpm, without a quote", "tpm, quote of 8 PCRs"]),
];

/** Each of them, in the same order; the scope ends what vouches for them. */
export async function openNodeMethods(
  scope: AsyncDisposableStack,
  options: NodeMethodsOptions,
): Promise<readonly NodeMethod[]> {
  const { folder, createToken } = options;
  const net = scope.use(await CloudNet.open());
  return [
    { name: "join_token", show: async () => shown({ type: "join_token", payload: await createToken() }) },
    ...(await x509pop(folder)),
    ...(withoutKeygen ? [] : [await sshpop(folder)]),
    await httpChallenge(scope),
    await k8sPsat(scope, folder),
    await awsIid(scope, net),
    await gcpIit(scope, net),
    ...(await azure(scope, net)),
    ...(withoutSwtpm ? [] : await tpms(scope, options)),
  ];
}

/** What a server takes all of them with. */
export function attestorsOf(methods: readonly NodeMethod[]): {
  readonly nodeAttestors: Readonly<Record<string, object>>;
  readonly env: Readonly<Record<string, string>>;
} {
  return {
    nodeAttestors: Object.assign({}, ...methods.map(({ config }) => config)),
    env: Object.assign({}, ...methods.map(({ env }) => env)),
  };
}

function shown(evidence: Evidence, done: () => unknown = () => undefined): Shown {
  return { ...evidence, [Symbol.asyncDispose]: async () => void (await done()) };
}

async function x509pop(folder: string): Promise<readonly NodeMethod[]> {
  const ca = await createCa({ uris: [] });
  const path = join(folder, "nodes.pem");
  await writeFile(path, ca.pem);
  const config = { x509pop: { ca_bundle_path: path } };
  return (["ec-p256", "rsa-2048"] as const).map((keyType) => ({
    name: keyType === "ec-p256" ? "x509pop, ECDSA" : "x509pop, RSA",
    config,
    isSlow: keyType === "rsa-2048",
    async show() {
      const { chain, signer } = await ca.issue({ uris: [], keyType });
      const respond = (challenge: Buffer) => answerChallenge(signer.privateKey, challenge);
      return shown({ type: "x509pop", payload: writeEvidence(chain), respond });
    },
  }));
}

async function sshpop(folder: string): Promise<NodeMethod> {
  const keygen = (...args: readonly string[]): void => void execFileSync("ssh-keygen", ["-q", ...args]);
  const authority = join(folder, "ssh-ca");
  keygen("-t", "ed25519", "-N", "", "-f", authority);
  return {
    name: "sshpop",
    config: { sshpop: { cert_authorities_path: `${authority}.pub` } },
    async show() {
      const path = join(folder, `host-${randomUUID()}`);
      keygen("-t", "ed25519", "-N", "", "-f", path);
      keygen("-s", authority, "-I", "host", "-h", "-n", "web-1.test", `${path}.pub`);
      const certificate = Buffer.from((await readFile(`${path}-cert.pub`, "utf8")).split(" ")[1] ?? "", "base64");
      const key = readPrivateKey(await readFile(path, "utf8"));
      return shown({ type: "sshpop", payload: writeSsh(certificate), respond: (asked) => answerSsh(key, asked) });
    },
  };
}

/** One host with one key, which attests again and again: there is one name here, and the first to use it is trusted. */
async function httpChallenge(scope: AsyncDisposableStack): Promise<NodeMethod> {
  const host = hostname().toLowerCase();
  const { address, family } = await lookup(host);
  const nonces = new Map<string, string>();
  const signer = await generateKey("ec-p256");
  const web = createServer((request, response) => {
    response.end(nonces.get((request.url ?? "").split("/").at(-2) ?? ""));
  });
  await new Promise<void>((done) => web.listen(0, done));
  scope.defer(() => {
    web.closeAllConnections();
    web.close();
  });
  const { port } = web.address() as AddressInfo;
  let asked = 0;
  return {
    name: "http_challenge",
    config: { http_challenge: { allowed_networks: [`${address}/${family === 4 ? 32 : 128}`] } },
    async show() {
      const agentname = `a${asked++}`;
      const respond = (challenge: Buffer): string => {
        nonces.set(agentname, readChallenge(challenge));
        return "\n";
      };
      const payload = writeHttp({ hostname: host, agentname, port });
      return shown({ type: "http_challenge", payload, respond, signer }, () => nonces.delete(agentname));
    },
  };
}

async function k8sPsat(scope: AsyncDisposableStack, folder: string): Promise<NodeMethod> {
  const kube = scope.use(await KubeApiServer.open());
  const admin = await issueTls(kube.ca, { subject: { commonName: "system:admin" } });
  const base64 = (text: string): string => Buffer.from(text).toString("base64");
  const user = { "client-certificate-data": base64(admin.pem), "client-key-data": base64(admin.keyPem) };
  const place = { server: `https://localhost:${kube.port}`, "certificate-authority-data": base64(kube.ca.pem) };
  const kubeconfig = {
    "current-context": "c",
    clusters: [{ name: "k", cluster: place }],
    users: [{ name: "u", user }],
    contexts: [{ name: "c", context: { cluster: "k", user: "u" } }],
  };
  const path = join(folder, "kubeconfig.yaml");
  await writeFile(path, JSON.stringify(kubeconfig));
  const metadata = { name: "agent", namespace: "spire", uid: "p1" };
  const spec = { nodeName: "n1", serviceAccountName: "agent" };
  kube.pods.set("spire/agent", { uid: "p1", object: { kind: "Pod", apiVersion: "v1", metadata, spec, status: {} } });
  kube.nodes.set("n1", { kind: "Node", apiVersion: "v1", metadata: { name: "n1", uid: "n1" } });
  const one = { service_account_allow_list: ["spire:agent"], kube_config_file: path };
  return {
    name: "k8s_psat",
    config: { k8s_psat: { clusters: { one } } },
    async show() {
      const token = kube.token("spire", "agent", { audience: "spire-server", pod: { name: "agent", uid: "p1" } });
      return shown({ type: "k8s_psat", payload: writePsat({ cluster: "one", token }) });
    },
  };
}

/** Each time another instance, which attests once. */
async function awsIid(scope: AsyncDisposableStack, net: CloudNet): Promise<NodeMethod> {
  const aws = scope.use(await AwsDouble.open(net));
  const keys = { access_key_id: "AKIASERVER", secret_access_key: "server-secret" };
  return {
    name: "aws_iid",
    config: { aws_iid: { ...keys, regions: aws.regions } },
    env: aws.env,
    async show() {
      return shown({ type: "aws_iid", payload: await aws.evidence(aws.launch({ account: SERVER_ACCOUNT })) });
    },
  };
}

/** Each time another instance, which attests once. */
async function gcpIit(scope: AsyncDisposableStack, net: CloudNet): Promise<NodeMethod> {
  const gcp = scope.use(await GcpDouble.open(net));
  return {
    name: "gcp_iit",
    config: { gcp_iit: { projectid_allow_list: ["project-1"] } },
    env: gcp.env,
    show: async () => shown({ type: "gcp_iit", payload: gcp.evidence(gcp.launch()) }),
  };
}

/** Each time another machine, which attests once. */
async function azure(scope: AsyncDisposableStack, net: CloudNet): Promise<readonly NodeMethod[]> {
  const double = scope.use(await AzureDouble.open(net));
  const imds = { tenants: { [TENANT.domain]: {} }, trust_bundle_path: double.rootPath };
  return [
    {
      name: "azure_imds",
      ...{ config: { azure_imds: imds }, env: double.env },
      async show() {
        const machine = double.launch();
        const respond = (nonce: Buffer) => double.answer(double.sign(double.document(machine, nonce.toString())));
        return shown({ type: "azure_imds", payload: "non_empty_payload", respond });
      },
    },
    {
      name: "azure_msi",
      ...{ config: { azure_msi: { tenants: { [TENANT.id]: {} } } }, env: double.env },
      async show() {
        const token = double.token(double.claims(double.launch(), "https://management.azure.com/"));
        return shown({ type: "azure_msi", payload: JSON.stringify({ token }) });
      },
    },
  ];
}

/** With an RSA attestation key for `tpm_devid`, as SPIRE's server wants it, and an ECC one for `tpm`. */
async function tpms(
  scope: AsyncDisposableStack,
  { folder, machines = 1 }: NodeMethodsOptions,
): Promise<readonly NodeMethod[]> {
  const [maker, devices] = [await createCa({ uris: [] }), await createCa({ uris: [] })];
  for (const name of ["certs", "hashes"]) await mkdir(join(folder, name));
  await writeFile(join(folder, "certs", "maker.pem"), maker.pem);
  await writeFile(join(folder, "devices.pem"), devices.pem);
  const made = await Promise.all(Array.from({ length: machines }, () => startMachine(scope, maker, devices, folder)));
  const at = (worker: number) => made[worker % machines] as (typeof made)[number];
  const show = (attestor: NodeAttestor): Promise<Shown> => showTpm(attestor);
  const devid = {
    devid_ca_path: join(folder, "devices.pem"),
    endorsement_ca_path: join(folder, "certs", "maker.pem"),
  };
  const tpm = { ca_path: join(folder, "certs"), hash_path: join(folder, "hashes") };
  const ways = { isSlow: true, isOnMachine: true };
  return [
    {
      name: "tpm_devid",
      ...{ ...ways, config: { tpm_devid: devid } },
      show: (worker = 0) => show(devidAgentOf(at(worker).simulator, at(worker).devid)),
    },
    {
      name: "tpm, without a quote",
      ...{ ...ways, config: { tpm } },
      show: async (worker = 0) => withoutQuote(await show(tpmAgentOf(at(worker).simulator))),
    },
    {
      name: "tpm, quote of 8 PCRs",
      ...ways,
      config: { tpm },
      show: (worker = 0) => show(tpmAgentOf(at(worker).simulator)),
    },
  ];
}

async function startMachine(scope: AsyncDisposableStack, maker: TestCa, devices: TestCa, folder: string) {
  const simulator: Simulator = scope.use(await startSimulator());
  await certifyEndorsement(simulator, maker);
  return { simulator, devid: await makeDevId(simulator, devices, { folder }) };
}

async function showTpm(attestor: NodeAttestor): Promise<Shown> {
  const payload = await attestor.evidence(signal);
  const respond = (challenge: Buffer) => attestor.respond(challenge, signal);
  return shown({ type: attestor.type, payload, respond }, () => attestor.done?.());
}

/** As the community's plug-in answers. */
function withoutQuote(evidence: Shown): Shown {
  return {
    ...evidence,
    async respond(challenge) {
      const answer = JSON.parse(Buffer.from((await evidence.respond?.(challenge)) ?? "").toString());
      return JSON.stringify({ Secret: answer.Secret });
    },
  };
}
