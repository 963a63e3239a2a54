import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parse } from "yaml";
import { PROJECT } from "./imports.ts";
import { swtpmEnv } from "./swtpm.ts";

interface Service {
  readonly command?: readonly string[];
  readonly image?: string;
  readonly build?: { readonly target?: string };
  readonly user?: string;
  readonly environment?: Readonly<Record<string, string>>;
  readonly healthcheck?: { readonly test: readonly string[] };
  readonly configs?: readonly { readonly source: string; readonly target: string }[];
  readonly volumes?: readonly string[];
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
}

interface Compose {
  readonly "x-image": { readonly build: { readonly dockerfile_inline: string } };
  readonly services: Readonly<Record<string, Service>>;
  readonly configs: Readonly<Record<string, { readonly content: string }>>;
  readonly volumes: Readonly<Record<string, unknown>>;
}

/** `docker-compose.yml`, with two dollar signs read as one. */
export const compose: Compose = parse(readFileSync(join(PROJECT, "docker-compose.yml"), "utf8").replaceAll("$$", "$"), {
  merge: true,
});

/** As in the image. */
const USER = 1000;
const START_MS = 120_000;
/** As the file has it for every service. */
const INTERVAL_MS = 2000;

/** Whether this machine lets us make what a container is made of. */
export const withoutNamespaces =
  process.getuid?.() !== 0 || spawnSync("unshare", ["--mount", "--net", "ip", "link", "set", "lo", "up"]).status !== 0;

interface Running {
  readonly child: ChildProcess;
  readonly output: () => string;
}

/**
 * The services of `docker-compose.yml` without Docker: each with a root of its own that holds this machine's /usr, the
 * checkout and its volumes, as user 1000, all of them in one network in which every service's name is 127.0.0.1. What the
 * Dockerfile does is not tried, and the database is this machine's own.
 */
export class ComposeProject implements AsyncDisposable {
  readonly #folder = mkdtempSync("/dev/shm/steeple-compose-");
  readonly #running = new Map<string, Running>();
  readonly #network: ChildProcess;
  readonly #postgres: string;

  private constructor(network: ChildProcess, postgres: string) {
    this.#network = network;
    this.#postgres = postgres;
    chmodSync(this.#folder, 0o755);
  }

  /** Nothing runs yet. `postgres` is the folder of its programs. */
  static async open(postgres: string): Promise<ComposeProject> {
    const script = "ip link set lo up && echo ready && exec sleep infinity";
    const network = spawn("unshare", ["--net", "setpriv", "--pdeathsig=KILL", "sh", "-c", script]);
    await once(network.stdout, "data");
    return new ComposeProject(network, postgres);
  }

  /** Starts the service after those that it depends on, each in the state that the file asks for. */
  async up(name: string): Promise<void> {
    if (this.#running.has(name)) return;
    const service = serviceOf(name);
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      await this.up(other);
      await (condition === "service_healthy" ? this.#untilHealthy(other) : this.#untilCompleted(other));
    }
    const command = name === "postgres" ? this.#database(service) : (service.command ?? []);
    this.#running.set(name, this.#start(name, command));
  }

  /** Everything that the service wrote. */
  output(name: string): string {
    return this.#running.get(name)?.output() ?? "";
  }

  /** As `docker compose exec` does. */
  async exec(name: string, command: readonly string[]): Promise<string> {
    const { child, output } = this.#start(name, command);
    const [code] = await once(child, "close");
    if (code !== 0) throw new Error(`${command.join(" ")} in ${name}: ${output()}`);
    return output();
  }

  async #untilHealthy(name: string): Promise<void> {
    const [kind, ...test] = serviceOf(name).healthcheck?.test ?? [];
    const command = kind === "CMD-SHELL" ? ["sh", "-c", ...test] : test;
    const until = performance.now() + START_MS;
    for (;;) {
      this.#checkRuns(name);
      const { child, output } = this.#start(name, command);
      const [code] = await once(child, "close");
      if (code === 0) return;
      if (performance.now() > until) throw new Error(`${name} is not healthy: ${output()}`);
      await delay(INTERVAL_MS);
    }
  }

  async #untilCompleted(name: string): Promise<void> {
    const { child, output } = this.#running.get(name) as Running;
    if (child.exitCode === null) await once(child, "close");
    if (child.exitCode !== 0) throw new Error(`${name} ended with status ${child.exitCode}: ${output()}`);
  }

  #checkRuns(name: string): void {
    const { child, output } = this.#running.get(name) as Running;
    if (child.exitCode !== null) throw new Error(`${name} ended with status ${child.exitCode}: ${output()}`);
  }

  /** What the image of PostgreSQL does with its environment. */
  #database({ environment = {}, volumes = [] }: Service): readonly string[] {
    const { POSTGRES_USER: user = "", POSTGRES_PASSWORD: password = "", POSTGRES_DB: database = "" } = environment;
    const data = `${volumes[0]?.split(":")[1]}/pg`;
    const script = `
      echo ${password} > /tmp/password
      initdb -D ${data} -U ${user} --auth=scram-sha-256 --pwfile=/tmp/password --locale=C.UTF-8 --no-sync
      [ ${database} = postgres ] || echo 'create database ${database}' | postgres --single -D ${data} postgres
      exec postgres -D ${data} -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp`;
    return ["sh", "-ec", script];
  }

  #start(name: string, command: readonly string[]): Running {
    const { volumes = [], configs = [] } = serviceOf(name);
    const binds = volumes.map((volume) => {
      const [source = "", target = "", mode] = volume.split(":");
      return `bind ${this.#volume(source)} ${target}${mode === "ro" ? " ro" : ""}`;
    });
    const files = configs.map(({ source, target }) => {
      const path = join(this.#folder, `${source}.conf`);
      writeFileSync(path, compose.configs[source]?.content ?? "");
      return `mkdir -p .${dirname(target)}; cp ${path} .${target}`;
    });
    const path = `/bin-of-image:${this.#postgres}:/usr/bin:/bin`;
    const env = { ...swtpmEnv, PATH: path, PGHOST: "127.0.0.1" };
    const settings = Object.entries(env).map(([key, value]) => `${key}=${value}`);
    const script = [ROOT, ...binds, ...files, 'exec chroot --userspec=$user "$PWD" env -i "$@"'].join("\n");
    const child = spawn(
      "nsenter",
      [
        ...[`--net=/proc/${this.#network.pid}/ns/net`, "unshare", "--mount", "sh", "-ec", script],
        ...["sh", ...settings, ...command],
      ],
      { env: { ...process.env, project: PROJECT, user: `${USER}:${USER}`, hosts: HOSTS, libraries: LIBRARIES } },
    );
    const chunks: string[] = [];
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => chunks.push(String(chunk)));
    return { child, output: () => chunks.join("") };
  }

  #volume(name: string): string {
    const path = join(this.#folder, "volumes", name);
    mkdirSync(path, { recursive: true });
    chownSync(path, USER, USER);
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { child } of [...this.#running.values()].reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const ended = once(child, "close");
      child.kill("SIGTERM");
      await ended;
    }
    this.#network.kill("SIGKILL");
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

function serviceOf(name: string): Service {
  const service = compose.services[name];
  if (service === undefined) throw new Error(`docker-compose.yml has no service ${name}`);
  return service;
}

const HOSTS = Object.keys({ localhost: {}, ...compose.services })
  .map((name) => `127.0.0.1 ${name}\n`)
  .join("");
/** Of the simulator, when it is not installed. */
const LIBRARIES = swtpmEnv["SWTPM"]?.replace(/\/usr\/bin\/swtpm$/, "") ?? "";

/** Runs in a mount namespace of its own, and ends with it. */
const ROOT = `
bind() { mkdir -p ".$2"; mount --bind "$1" ".$2"; [ -z "$3" ] || mount -o remount,bind,ro ".$2"; }
mount -t tmpfs -o mode=755 tmpfs /mnt
cd /mnt
for link in bin sbin lib lib64; do [ ! -e /usr/$link ] || ln -s usr/$link $link; done
for name in /usr /dev /proc; do bind $name $name; done
mkdir -p -m 1777 tmp dev/shm
mkdir -p etc bin-of-image
printf '%s' "$hosts" > etc/hosts
echo 'node:x:1000:1000::/tmp:/bin/sh' > etc/passwd
bind "$project" /steeple
[ -z "$libraries" ] || bind "$libraries" "$libraries"
for program in steeple steeple-server steeple-agent; do ln -s /steeple/src/runtime/launch.sh bin-of-image/$program; done
`;
