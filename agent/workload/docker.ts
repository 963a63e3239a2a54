import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { retry } from "../../src/runtime/task.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import { type Attestor, atOnce, type Remote } from "./attest.ts";
import { type ContainerPlace, cgroupPaths, ownerOf, readContainer, refuseConflict, withDelegate } from "./container.ts";
import { Engine, type EngineConfig, type EngineContainer } from "./engine.ts";
import { type ImageVerifier, verified } from "./image-verifier.ts";
import { readProcText } from "./process.ts";

export interface DockerAttestorConfig {
  /** Paths of sockets. */
  readonly dockerSocketPath: string;
  readonly podmanSocketPath: string;
  /** The socket of a user's own Podman. */
  readonly podmanSocketOf: (uid: number) => string;
  readonly dockerVersion: string | undefined;
  /** Finds the group `id` in a control group's path, instead of the rules for known runtimes. */
  readonly matcher: RegExp | undefined;
  readonly verboseContainerLocatorLogs: boolean;
}

export interface DockerAttestorOptions extends DockerAttestorConfig {
  readonly clock: Clock;
  readonly log: Log;
  readonly procRoot: string;
  /** Undefined when images need no signature. */
  readonly images?: ImageVerifier | undefined;
}

/** As SPIRE's agent: once, and three more times. */
const RETRY = { firstMs: 100, maxMs: 400, factor: 2, giveUpAfterMs: 1_000 } as const;

/** An image that was pulled from several repositories is looked for in one after the other. */
const VERIFY_MS = 60_000;

/** Selectors of type `docker`: the caller's container as its engine, Docker or Podman, has it. */
export class DockerAttestor implements Attestor {
  readonly name = "docker";
  readonly timeoutMs?: number;
  readonly #options: DockerAttestorOptions;

  constructor(options: DockerAttestorOptions) {
    this.#options = options;
    if (options.images !== undefined) this.timeoutMs = VERIFY_MS;
  }

  /** Nothing for a caller outside of containers. Throws when it is in one that the engine does not know. */
  async attest(peer: PeerProcess, signal: AbortSignal, remote: Remote = atOnce): Promise<readonly Selector[]> {
    const place = await this.#locate(peer);
    const { log, verboseContainerLocatorLogs } = this.#options;
    if (verboseContainerLocatorLogs)
      log.debug("Container located", { pid: peer.pid, container_id: place?.containerId });
    if (place === undefined) return [];
    const config = this.#engineOf(place);
    const { container, names } = await remote(config.socketPath, () => this.#ask(config, place, signal));
    const values = [...valuesOf(container), ...(await this.#signed(container, names, { signal, remote }))];
    return values.map((value) => ({ type: this.name, value }));
  }

  /** The names by digest of the container's image only where its signatures count. */
  async #ask(config: EngineConfig, place: ContainerPlace, signal: AbortSignal) {
    const { clock, images } = this.#options;
    const engine = new Engine(config, clock);
    const container = await retry(clock, { ...RETRY, retryable }, (stop) => find(engine, place, stop), signal);
    return { container, names: images === undefined ? [] : await engine.repoDigests(container, signal) };
  }

  /** One repository in which the image is signed is enough. */
  async #signed(
    { image }: EngineContainer,
    names: readonly string[],
    { signal, remote }: { readonly signal: AbortSignal; readonly remote: Remote },
  ): Promise<readonly string[]> {
    const { images, log } = this.#options;
    if (images === undefined) return [];
    const failures: string[] = [];
    for (const name of names) {
      try {
        return await verified(images, name, remote);
      } catch (error) {
        signal.throwIfAborted();
        log.warn("Error verifying sigstore image signature", { image_id: name, error: messageOf(error) });
        failures.push(messageOf(error));
      }
    }
    const reason = failures.join("; ") || "no repo digest found";
    throw new Fault("denied", `sigstore signature verification failed for image ${image}: ${reason}`, {
      code: "image-signature",
    });
  }

  async #locate(peer: PeerProcess): Promise<ContainerPlace | undefined> {
    const { matcher, procRoot } = this.#options;
    if (matcher === undefined) return readContainer(peer, procRoot);
    const cgroup = readProcText(peer, "cgroup", procRoot);
    const place = matchContainer(cgroup, matcher);
    return place === undefined ? undefined : withDelegate(place, cgroup);
  }

  /** In a user's slice only that user's engine knows: anybody can name a control group like another one's container. */
  #engineOf({ podman, user }: ContainerPlace): EngineConfig {
    const { dockerSocketPath, podmanSocketPath, podmanSocketOf, dockerVersion } = this.#options;
    const podmanPath = user === undefined ? podmanSocketPath : podmanSocketOf(user);
    return {
      socketPath: podman ? podmanPath : dockerSocketPath,
      version: podman ? undefined : dockerVersion,
      mustRunAs: user,
    };
  }
}

/** The container by a pattern's group `id`. Undefined when it fits no path; throws `precondition` when paths disagree. */
function matchContainer(cgroup: string, matcher: RegExp): ContainerPlace | undefined {
  const found = cgroupPaths(cgroup).flatMap((path) => {
    const containerId = matcher.exec(path)?.groups?.["id"];
    return containerId === undefined ? [] : [{ containerId, chain: [containerId], ...ownerOf(path) }];
  });
  refuseConflict("container IDs", new Set(found.map(({ containerId }) => containerId)));
  return found[0];
}

/**
 * A container may name groups below its own like any other container: one inside another that the engine knows is not
 * what it seems.
 */
async function find(
  engine: Engine,
  { chain, containerId }: ContainerPlace,
  signal: AbortSignal,
): Promise<EngineContainer> {
  for (const id of chain.slice(0, chain.indexOf(containerId) + 1)) {
    const container = await engine.container(id, signal);
    if (container !== undefined && id !== containerId)
      throw new Fault("precondition", `the caller is in a container inside the container ${id}`, {
        code: "container-nested",
      });
    if (container !== undefined) return container;
  }
  throw new Fault("unavailable", `no such container: ${containerId}`, {
    code: "container-unknown",
    hint: "see whether the engine at this socket runs the container",
  });
}

function retryable(error: unknown): boolean {
  return !(error instanceof Fault && error.code === "container-nested");
}

function valuesOf({ labels, env, image, imageDigest }: EngineContainer): readonly string[] {
  return [
    ...labels.map(([key, value]) => `label:${key}:${value}`),
    ...env.map((line) => `env:${line}`),
    ...(image === "" ? [] : [`image_id:${image}`]),
    ...(imageDigest === undefined ? [] : [`image_config_digest:${imageDigest}`]),
  ];
}
