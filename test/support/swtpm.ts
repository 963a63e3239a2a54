import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { type OpenTpm, openTpm } from "../../src/keys/tpm-device.ts";
import { HANDLE, type Tpm } from "../../src/tpm/commands.ts";
import { parsePublic, TEMPLATE } from "../../src/tpm/structures.ts";
import { eventually } from "./eventually.ts";
import type { CertificateOptions, Issued, TestCa } from "./pki.ts";
import { freePort } from "./server-process.ts";

interface Program {
  readonly path: string;
  readonly libraries: readonly string[];
}

const PACKAGES = ["swtpm", "swtpm-libs", "libtpms0"];

/** $SWTPM, the PATH, the cache, or packages of Debian that are unpacked there; undefined elsewhere. */
function findSwtpm(): Program | undefined {
  const own = process.env["SWTPM"];
  if (own !== undefined && own !== "") return { path: own, libraries: [] };
  const installed = (process.env["PATH"] ?? "").split(delimiter).map((folder) => join(folder, "swtpm"));
  const found = installed.find((path) => existsSync(path));
  if (found !== undefined) return { path: found, libraries: [] };
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "steeple", "swtpm");
  try {
    if (!existsSync(cache)) unpackInto(cache);
    return unpacked(cache);
  } catch (error) {
    if (process.env["REQUIRE_SWTPM"] === "1") throw error;
    return undefined;
  }
}

/** Needs neither root nor a change of the system; two runs at once do no harm. */
function unpackInto(cache: string): void {
  mkdirSync(join(cache, ".."), { recursive: true });
  const work = mkdtempSync(join(cache, "..", "swtpm-"));
  try {
    download(work);
    for (const name of readdirSync(work).filter((file) => file.endsWith(".deb")))
      execFileSync("dpkg", ["-x", join(work, name), join(work, "root")], { stdio: "pipe" });
    renameSync(join(work, "root"), cache);
  } catch (error) {
    // Another run was faster.
    if (!existsSync(cache)) throw error;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function download(work: string): void {
  const fetch = (...options: readonly string[]): void =>
    void execFileSync("apt-get", [...options, "download", ...PACKAGES], { cwd: work, stdio: "pipe" });
  try {
    fetch();
  } catch {
    // The system's lists are empty: lists of our own.
    mkdirSync(join(work, "state", "lists", "partial"), { recursive: true });
    mkdirSync(join(work, "cache", "archives", "partial"), { recursive: true });
    const own = ["-o", `Dir::State=${join(work, "state")}`, "-o", `Dir::Cache=${join(work, "cache")}`];
    execFileSync("apt-get", [...own, "-o", "Dir::State::status=/var/lib/dpkg/status", "update"], { stdio: "pipe" });
    fetch(...own);
  }
}

function unpacked(cache: string): Program {
  const base = join(cache, "usr", "lib");
  const folders = readdirSync(base).map((name) => join(base, name));
  return {
    path: join(cache, "usr", "bin", "swtpm"),
    libraries: [...folders, ...folders.map((path) => join(path, "swtpm"))],
  };
}

const program = findSwtpm();
if (program === undefined && process.env["REQUIRE_SWTPM"] === "1")
  throw new Error("REQUIRE_SWTPM is set, and there is no swtpm");

/** For programs that start the simulator themselves. */
export const swtpmEnv: Readonly<Record<string, string>> =
  program === undefined ? {} : { SWTPM: program.path, LD_LIBRARY_PATH: program.libraries.join(":") };

/** For `describe.skipIf`. */
export const withoutSwtpm = program === undefined;

export interface Simulator extends AsyncDisposable {
  /** As `tpm_device_path` has it. */
  readonly devicePath: string;
  /** One user at a time. */
  use<T>(work: (tpm: Tpm) => Promise<T>): Promise<T>;
}

/** A TPM of its own, blank, behind a Unix socket or a TCP port. */
export async function startSimulator({ over = "unix" }: { readonly over?: "unix" | "tcp" } = {}): Promise<Simulator> {
  if (program === undefined) throw new Error("there is no swtpm");
  const folder = await mkdtemp(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "steeple-tpm-"));
  const socket = join(folder, "tpm.sock");
  await mkdir(join(folder, "state"));
  const args = ["socket", "--tpm2", "--tpmstate", `dir=${join(folder, "state")}`, "--flags", "startup-clear"];
  const port = over === "tcp" ? await freePort() : undefined;
  const place = port === undefined ? `type=unixio,path=${socket}` : `type=tcp,port=${port}`;
  const child: ChildProcess = spawn(program.path, [...args, "--server", place], {
    stdio: "ignore",
    env: { ...process.env, LD_LIBRARY_PATH: program.libraries.join(":") },
  });
  const ended = once(child, "exit");
  const devicePath = port === undefined ? `unix:${socket}` : `tcp:127.0.0.1:${port}`;
  await eventually("the simulator answers", async () => {
    await (await openTpm(devicePath))[Symbol.asyncDispose]();
    return true;
  });
  return {
    devicePath,
    async use(work) {
      await using opened: OpenTpm = await openTpm(devicePath);
      return await work(opened.tpm);
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Puts a certificate for its endorsement key into a simulator, as a maker does; returns it. */
export async function certifyEndorsement(
  simulator: Simulator,
  maker: TestCa,
  options: CertificateOptions = {},
): Promise<Uint8Array> {
  return simulator.use(async (tpm) => {
    const { handle, publicArea } = await tpm.createPrimary(HANDLE.endorsement, TEMPLATE.ekRsa);
    const publicKey = parsePublic(publicArea).key.export({ type: "spki", format: "der" });
    const { der } = await maker.issue({
      ...{ uris: [], publicKey, keyUsage: ["keyEncipherment"], extKeyUsage: ["2.23.133.8.1"], subject: {} },
      ...options,
    });
    await tpm.nvProvision(0x01c00002, der);
    await tpm.flush(handle);
    return der;
  });
}

export interface DevId {
  readonly certPath: string;
  readonly privPath: string;
  readonly pubPath: string;
  readonly certificate: Issued;
}

/** A DevID key in a simulator, with its certificate and blobs in files. */
export async function makeDevId(
  simulator: Simulator,
  authority: TestCa,
  { folder, kind = "ecc", template, options = {} }: DevIdOptions,
): Promise<DevId> {
  const [root, own] = kind === "rsa" ? [TEMPLATE.srkRsa, TEMPLATE.devidRsa] : [TEMPLATE.srkEcc, TEMPLATE.devidEcc];
  const made = await simulator.use(async (tpm) => {
    const { handle } = await tpm.createPrimary(HANDLE.owner, root);
    const key = await tpm.create(handle, template ?? own);
    await tpm.flush(handle);
    return key;
  });
  const publicKey = parsePublic(made.publicArea).key.export({ type: "spki", format: "der" });
  const certificate = await authority.issue({ uris: [], publicKey, subject: { commonName: "device-1" }, ...options });
  const name = `devid-${randomUUID()}`;
  const [certPath, privPath, pubPath] = ["crt", "priv", "pub"].map((ending) => join(folder, `${name}.${ending}`)) as [
    string,
    string,
    string,
  ];
  await writeFile(certPath, certificate.pem);
  await writeFile(privPath, made.privateBlob);
  await writeFile(pubPath, made.publicArea);
  return { certPath, privPath, pubPath, certificate };
}

export interface DevIdOptions {
  readonly folder: string;
  readonly kind?: "rsa" | "ecc";
  /** Of the key, instead of the kind's own. */
  readonly template?: Uint8Array;
  readonly options?: CertificateOptions;
}
