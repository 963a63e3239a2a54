import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import pg from "pg";
import { eventually } from "./eventually.ts";

/** Where the cluster of this test run is, by `postgres-setup.ts`; unset when the machine has no PostgreSQL. */
const ADMIN_URL = process.env["STEEPLE_TEST_POSTGRES"];

/** For `describe.skipIf`. With REQUIRE_POSTGRES=1 the run fails before it gets here. */
export const withoutPostgres = ADMIN_URL === undefined;

export interface TestDatabase extends AsyncDisposable {
  readonly url: string;
  dispose(): Promise<void>;
}

/** A fresh, empty database in the cluster of this test run, or of the given one. */
export async function createDatabase(adminUrl: string | undefined = ADMIN_URL): Promise<TestDatabase> {
  if (adminUrl === undefined) throw new Error("there is no PostgreSQL here");
  const name = `t${randomUUID().replaceAll("-", "")}`;
  await administer(adminUrl, `create database ${name}`);
  const url = new URL(adminUrl);
  url.pathname = `/${name}`;
  const dispose = (): Promise<void> => administer(adminUrl, `drop database if exists ${name} with (force)`);
  return { url: url.href, dispose, [Symbol.asyncDispose]: dispose };
}

/** One statement as the superuser. */
export async function administer(url: string, statement: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => undefined);
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}

export interface Cluster extends AsyncDisposable {
  /** Of the superuser, over TCP on the loopback. */
  readonly url: string;
  /** Folder of the Unix socket. */
  readonly socketDirectory: string;
  readonly port: number;
  stop(): Promise<void>;
  start(): Promise<void>;
  /** SIGSTOP or SIGCONT to the server and all its sessions. */
  freeze(frozen: boolean): Promise<void>;
  /** Copies the data of a cluster that is stopped; what is returned puts the copy back in its place. */
  copy(): Promise<() => Promise<void>>;
}

/** Folder of the newest installed server, or undefined. */
export async function findPostgres(): Promise<string | undefined> {
  const releases = await readdir("/usr/lib/postgresql").catch(() => []);
  const newest = releases
    .map(Number)
    .filter(Number.isInteger)
    .sort((a, b) => b - a)[0];
  return newest === undefined ? undefined : `/usr/lib/postgresql/${newest}/bin`;
}

export interface ClusterOptions {
  /** PEM. With it the server speaks TLS. */
  readonly tls?: { readonly certificate: string; readonly key: string };
  /** A read-only standby of this running cluster, until `select pg_promote()`. */
  readonly standbyOf?: Cluster;
}

/** A throwaway cluster that ends with this process. The server refuses to run as root, so it becomes another user. */
export async function startCluster(bin: string, { tls, standbyOf }: ClusterOptions = {}): Promise<Cluster> {
  const home = await mkdtemp(join(tmpdir(), "steeple-pg-"));
  const data = join(home, "data");
  const user = await unprivilegedUser();
  await mkdir(data, { mode: 0o700 });
  await chmod(home, 0o711);
  if (user !== undefined) await chown(data, user.uid, user.gid);
  const as = [
    "--pdeathsig=QUIT",
    ...(user === undefined ? [] : [`--reuid=${user.uid}`, `--regid=${user.gid}`, "--clear-groups"]),
  ];
  const options = [
    "--auth=trust",
    "--username=postgres",
    "--encoding=UTF8",
    "--locale=C.UTF-8",
    "--no-sync",
    "--no-instructions",
  ];
  const command =
    standbyOf === undefined
      ? [join(bin, "initdb"), ...options]
      : [
          join(bin, "pg_basebackup"),
          "--dbname",
          standbyOf.url,
          "--write-recovery-conf",
          "--checkpoint=fast",
          "--no-sync",
        ];
  await promisify(execFile)("setpriv", [...as, ...command, "-D", data], { cwd: "/" });
  const port = await freePort();
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  const settings = {
    listen_addresses: "127.0.0.1",
    port,
    unix_socket_directories: data,
    max_connections: 200,
    ...(tls === undefined ? {} : { ssl: "on" }),
  };
  for (const [name, pem] of [
    ["server.crt", tls?.certificate],
    ["server.key", tls?.key],
  ] as const) {
    if (pem === undefined) continue;
    await writeFile(join(data, name), pem, { mode: 0o600 });
    if (user !== undefined) await chown(join(data, name), user.uid, user.gid);
  }
  const args = Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
  let server: ChildProcess | undefined;

  const start = async (): Promise<void> => {
    server = spawn("setpriv", [...as, join(bin, "postgres"), "-D", data, ...args], { cwd: "/", stdio: "ignore" });
    await eventually("PostgreSQL answers", () => administer(url, "select 1").then(() => true));
  };
  const stop = async (): Promise<void> => {
    if (server?.exitCode !== null || server.signalCode !== null) return;
    const exited = once(server, "exit");
    server.kill("SIGINT");
    await exited;
  };
  const freeze = async (frozen: boolean): Promise<void> => {
    const pid = server?.pid ?? 0;
    const children = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8");
    for (const one of [pid, ...children.trim().split(" ").map(Number)])
      process.kill(one, frozen ? "SIGSTOP" : "SIGCONT");
  };
  const copy = async (): Promise<() => Promise<void>> => {
    const kept = `${data}.copy`;
    const replace = (from: string, to: string): Promise<unknown> => promisify(execFile)("cp", ["-a", from, to]);
    await replace(data, kept);
    return async () => {
      await rm(data, { recursive: true });
      await replace(kept, data);
    };
  };
  const dispose = async (): Promise<void> => {
    await stop();
    await rm(home, { recursive: true, force: true });
  };
  await start();
  return { url, socketDirectory: data, port, start, stop, freeze, copy, [Symbol.asyncDispose]: dispose };
}

async function unprivilegedUser(): Promise<{ readonly uid: number; readonly gid: number } | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const passwd = await readFile("/etc/passwd", "utf8");
  const line = /^postgres:.*$/m.exec(passwd) ?? /^nobody:.*$/m.exec(passwd);
  const [, , uid, gid] = line?.[0].split(":") ?? [];
  return { uid: Number(uid), gid: Number(gid) };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  return typeof address === "object" && address !== null ? address.port : 0;
}
