import { fork } from "node:child_process";
import { once } from "node:events";
import { chmod, chown } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import { join } from "node:path";
import { temporaryDirectory } from "./workload.ts";

export interface EngineDoubleContainer {
  readonly id: string;
  readonly name?: string;
  readonly image: string;
  /** Of the image's configuration, with `sha256:`. */
  readonly imageId?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly env?: readonly string[];
}

export interface EngineDoubleOptions {
  readonly containers?: readonly EngineDoubleContainer[];
  /** Digest by image name. */
  readonly images?: Readonly<Record<string, string>>;
  /** Names in registries, by the digest of the image's configuration. */
  readonly repoDigests?: Readonly<Record<string, readonly string[]>>;
}

const API_VERSION = "1.47";
const OLDEST_VERSION = "1.24";

/** The part of the Engine API (v1.47) by which containers and images are inspected, as its specification has it. */
export function serveEngine(path: string, options: EngineDoubleOptions, onRequest: (url: string) => void) {
  return createServer((request, response) => {
    const url = request.url ?? "";
    onRequest(url);
    const [, version, route = ""] = /^(?:\/v(\d+\.\d+))?(\/[^?]*)/.exec(url) ?? [];
    const refused = version === undefined ? undefined : versionFault(version);
    if (refused === undefined) answer(route, options, response);
    else respond(response, 400, { message: refused });
  }).listen(path);
}

function versionFault(version: string): string | undefined {
  const number = (text: string): number => Number(text.split(".")[1]);
  if (number(version) > number(API_VERSION))
    return `client version ${version} is too new. Maximum supported API version is ${API_VERSION}`;
  if (number(version) < number(OLDEST_VERSION))
    return `client version ${version} is too old. Minimum supported API version is ${OLDEST_VERSION}`;
  return undefined;
}

function answer(route: string, options: EngineDoubleOptions, response: ServerResponse): void {
  if (route === "/_ping") {
    response.writeHead(200, { "api-version": API_VERSION, ostype: "linux" }).end("OK");
    return;
  }
  const [, kind, encoded = ""] = /^\/(containers|images)\/(.+)\/json$/.exec(route) ?? [];
  const name = decodeURIComponent(encoded);
  const found = kind === "images" ? imageJson(name, options) : kind === undefined ? undefined : find(name, options);
  if (found !== undefined) respond(response, 200, found);
  else
    respond(response, 404, {
      message: kind === undefined ? "page not found" : `No such ${kind.slice(0, -1)}: ${name}`,
    });
}

function imageJson(name: string, { images = {}, repoDigests = {} }: EngineDoubleOptions): object | undefined {
  const id = images[name] ?? Object.values(images).find((digest) => digest === name);
  if (id === undefined) return undefined;
  return { Id: id, RepoTags: [name], RepoDigests: repoDigests[id] ?? [], Os: "linux", Size: 1 };
}

function find(name: string, { containers = [] }: EngineDoubleOptions): object | undefined {
  const found = containers.find(({ id, name: own }) => id.startsWith(name) || own === name);
  return found === undefined ? undefined : containerJson(found);
}

function containerJson({ id, name, image, imageId, labels, env }: EngineDoubleContainer): object {
  return {
    ...{ Id: id, Created: "2026-11-01T10:00:00Z", Path: "sleep", Args: ["60"], Name: `/${name ?? "c"}` },
    State: { Status: "running", Running: true, Pid: 1, ExitCode: 0, StartedAt: "2026-11-01T10:00:01Z" },
    Image: imageId ?? image,
    HostConfig: { NetworkMode: "bridge" },
    Config: { Hostname: id.slice(0, 12), Env: env ?? [], Cmd: ["sleep", "60"], Image: image, Labels: labels ?? {} },
    NetworkSettings: { Networks: {} },
    Mounts: [],
  };
}

function respond(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json", "api-version": API_VERSION });
  response.end(JSON.stringify(body));
}

/** A container engine on a socket of its own, in this process. */
export class ContainerEngine implements AsyncDisposable {
  readonly path: string;
  readonly requests: string[] = [];
  readonly #scope: AsyncDisposableStack;

  private constructor(path: string, scope: AsyncDisposableStack) {
    this.path = path;
    this.#scope = scope;
  }

  static async open(options: EngineDoubleOptions): Promise<ContainerEngine> {
    const scope = new AsyncDisposableStack();
    const folder = scope.use(await temporaryDirectory());
    const engine = new ContainerEngine(join(folder.path, "engine.sock"), scope);
    const server = serveEngine(engine.path, options, (url) => engine.requests.push(url));
    scope.defer(() => {
      server.closeAllConnections();
      server.close();
    });
    await once(server, "listening");
    return engine;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#scope.disposeAsync();
  }
}

/** The same as a process of another user, who owns the folder too. Only root may. */
export async function startUserEngine(uid: number, options: EngineDoubleOptions) {
  const scope = new AsyncDisposableStack();
  const folder = scope.use(await temporaryDirectory());
  await chmod(folder.path, 0o755);
  await chown(folder.path, uid, uid);
  const path = join(folder.path, "podman.sock");
  const script = new URL("./engine-process.ts", import.meta.url);
  const child = fork(script, [path, JSON.stringify(options)], { uid, gid: uid, execArgv: [] });
  scope.defer(async () => {
    child.kill("SIGKILL");
    await once(child, "exit");
  });
  await once(child, "message");
  return { path, [Symbol.asyncDispose]: () => scope.disposeAsync() };
}
