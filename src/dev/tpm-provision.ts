import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { type CertificateTemplate, signCertificate } from "../crypto/certificate-template.ts";
import type { KeyUsage } from "../crypto/extensions.ts";
import { generateKey, type LocalSigner, subjectKeyId } from "../crypto/key.ts";
import { encodePem } from "../crypto/pem.ts";
import { openTpm } from "../keys/tpm-device.ts";
import { systemClock } from "../runtime/clock.ts";
import { Fault, messageOf } from "../runtime/fault.ts";
import { ensurePrivateDirectory, writePrivateFile, writePublicFile } from "../runtime/files.ts";
import type { Io } from "../runtime/terminal.ts";
import { HANDLE, type Tpm } from "../tpm/commands.ts";
import { parsePublic, TEMPLATE } from "../tpm/structures.ts";
import { EK_CERTIFICATE, endorsementOf } from "./tpm-endorsement.ts";

export interface ProvisionOptions {
  readonly folder: string;
  readonly once: boolean;
}

const EK_PURPOSE = "2.23.133.8.1";
const DAY_MS = 86_400_000;
const YEARS_MS = 10 * 365 * DAY_MS;
const START_MS = 10_000;
const LOOK_MS = 20;

/** Makes the machine if it is not there yet, and runs it. Throws `invalid` or `precondition`. */
export async function runProvisioning(
  { folder, once: isOnce }: ProvisionOptions,
  io: Io,
  signal: AbortSignal,
): Promise<void> {
  if (folder === "")
    throw new Fault("invalid", "--simulator needs a folder", {
      code: "tpm-folder",
      hint: "name one that does not exist yet",
    });
  const place = resolve(folder);
  await ensurePrivateDirectory(place);
  await using simulator = await Simulator.start(place, io, signal);
  const device = simulator.device;
  if (!existsSync(join(place, "devid.crt"))) {
    await using opened = await openTpm(device);
    await provision(opened.tpm, place);
  }
  io.stdout.write(describe(place, device));
  if (!isOnce) await simulator.untilStopped(signal);
}

/** As the makers of TPM and device do: certificates, and the DevID key's blobs. */
async function provision(tpm: Tpm, place: string): Promise<void> {
  const [maker, devices] = [await Authority.create("Simulated TPM maker"), await Authority.create("Simulated devices")];
  const { spki, hash } = await endorsementOf(tpm);
  await tpm.nvProvision(EK_CERTIFICATE, await maker.issue(spki, "Simulated TPM", ["keyEncipherment"], [EK_PURPOSE]));
  const { handle } = await tpm.createPrimary(HANDLE.owner, TEMPLATE.srkEcc);
  const devid = await tpm.create(handle, TEMPLATE.devidEcc);
  await tpm.flush(handle);
  const key = parsePublic(devid.publicArea).key.export({ type: "spki", format: "der" });
  const certificate = await devices.issue(key, "simulated-device", ["digitalSignature"], []);
  for (const name of ["certs", "hashes"]) await mkdir(join(place, name), { recursive: true });
  await writePublicFile(join(place, "certs", "maker.pem"), maker.pem);
  await writePublicFile(join(place, "hashes", hash), "");
  await writePublicFile(join(place, "devices.pem"), devices.pem);
  await writePrivateFile(join(place, "devid.priv"), devid.privateBlob);
  await writePublicFile(join(place, "devid.pub"), devid.publicArea);
  // Last: it says that the machine is whole.
  await writePublicFile(join(place, "devid.crt"), encodePem("CERTIFICATE", certificate));
}

/** A self-signed authority whose key is forgotten at the end: it vouches for one machine. */
class Authority {
  readonly #key: LocalSigner;
  readonly #name: string;
  readonly pem: string;

  private constructor(key: LocalSigner, name: string, der: Uint8Array) {
    this.#key = key;
    this.#name = name;
    this.pem = encodePem("CERTIFICATE", der);
  }

  static async create(name: string): Promise<Authority> {
    const key = await generateKey("ec-p256");
    const subject = { commonName: name };
    const template = templateOf({ key, name, subject, publicKey: key.publicKey, keyUsage: ["keyCertSign", "cRLSign"] });
    return new Authority(key, name, await signCertificate({ ...template, kind: "ca" }, key));
  }

  issue(publicKey: Uint8Array, name: string, keyUsage: readonly KeyUsage[], extKeyUsage: readonly string[]) {
    const subject = { commonName: name };
    const template = templateOf({ key: this.#key, name: this.#name, subject, publicKey, keyUsage });
    return signCertificate({ ...template, extKeyUsage }, this.#key);
  }
}

interface Request {
  readonly key: LocalSigner;
  readonly name: string;
  readonly subject: { readonly commonName: string };
  readonly publicKey: Uint8Array;
  readonly keyUsage: readonly KeyUsage[];
}

function templateOf({ key, name, subject, publicKey, keyUsage }: Request): CertificateTemplate {
  const now = systemClock.now().getTime();
  return {
    ...{ subject, publicKey, keyUsage, kind: "leaf", uris: [], dnsNames: [], extKeyUsage: [] },
    serialNumber: BigInt(`0x${randomBytes(15).toString("hex")}`) + 1n,
    issuer: { commonName: name },
    notBefore: new Date(now - DAY_MS),
    notAfter: new Date(now + YEARS_MS),
    subjectKeyId: subjectKeyId(publicKey),
    authorityKeyId: subjectKeyId(key.publicKey),
  };
}

/** swtpm with its state in the folder. */
class Simulator implements AsyncDisposable {
  readonly device: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  private constructor(socket: string, child: ChildProcess) {
    this.device = `unix:${socket}`;
    this.#child = child;
    this.#ended = exitOf(child);
  }

  static async start(place: string, io: Io, signal: AbortSignal): Promise<Simulator> {
    const socket = join(place, "tpm.sock");
    await mkdir(join(place, "state"), { recursive: true, mode: 0o700 });
    await rm(socket, { force: true });
    const state = ["--tpm2", "--tpmstate", `dir=${join(place, "state")}`, "--flags", "startup-clear"];
    const program = io.env["SWTPM"] ?? "swtpm";
    const child = spawn(program, ["socket", ...state, "--server", `type=unixio,path=${socket}`], { stdio: "ignore" });
    const failed = once(child, "error").then(([error]) => Promise.reject(noSimulator(program, messageOf(error))));
    const exited = exitOf(child).then(() => Promise.reject(noSimulator(program, "it ended at once")));
    const stop = new AbortController();
    try {
      await Promise.race([untilThere(socket, AbortSignal.any([signal, stop.signal])), failed, exited]);
    } finally {
      stop.abort();
      for (const promise of [failed, exited]) promise.catch(() => undefined);
    }
    return new Simulator(socket, child);
  }

  async untilStopped(signal: AbortSignal): Promise<void> {
    const stopped = new Promise<void>((done) => {
      if (signal.aborted) done();
      signal.addEventListener("abort", () => done(), { once: true });
    });
    await Promise.race([stopped, this.#ended]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGTERM");
    await this.#ended;
  }
}

/** Unlike `once`, not rejected by the event of an error. */
function exitOf(child: ChildProcess): Promise<void> {
  return new Promise((done) => child.once("exit", () => done()));
}

async function untilThere(path: string, signal: AbortSignal): Promise<void> {
  for (let waited = 0; !existsSync(path); waited += LOOK_MS) {
    if (waited > START_MS) throw noSimulator("swtpm", "it does not listen");
    await systemClock.sleep(LOOK_MS, signal);
  }
}

function noSimulator(program: string, reason: string): Fault {
  return new Fault("precondition", `could not start ${program}: ${reason}`, {
    code: "tpm-no-simulator",
    hint: 'install it, on Debian with "apt-get install swtpm", or name it in SWTPM',
  });
}

function describe(place: string, device: string): string {
  return `The machine is in ${place}, its TPM at ${device}

Server:
  NodeAttestor "tpm"       { plugin_data { ca_path = "${join(place, "certs")}" hash_path = "${join(place, "hashes")}" } }
  NodeAttestor "tpm_devid" { plugin_data { devid_ca_path = "${join(place, "devices.pem")}" endorsement_ca_path = "${join(place, "certs", "maker.pem")}" } }
Agent, one of:
  NodeAttestor "tpm"       { plugin_data { tpm_device_path = "${device}" } }
  NodeAttestor "tpm_devid" { plugin_data { tpm_device_path = "${device}" devid_cert_path = "${join(place, "devid.crt")}" devid_priv_path = "${join(place, "devid.priv")}" devid_pub_path = "${join(place, "devid.pub")}" } }
`;
}
