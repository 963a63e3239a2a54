import type { ClientRequest } from "node:http";
import { listenerUid } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { withDeadline } from "./deadline.ts";
import { excerpt, type HttpAnswer, httpAsk, jsonOf } from "./http.ts";
import { objectOf, textEntries, textOf } from "./pods.ts";

/** What attestation uses of a container. */
export interface EngineContainer {
  readonly labels: readonly (readonly [key: string, value: string])[];
  /** As `NAME=value`. */
  readonly env: readonly string[];
  /** As configured; empty when the engine does not say. */
  readonly image: string;
  /** `sha256:` and the digest of the image's configuration; absent when the engine does not say. */
  readonly imageDigest: string | undefined;
}

export interface EngineConfig {
  /** Path of the socket. */
  readonly socketPath: string;
  /** Such as `1.40`; undefined leaves the choice to the engine. */
  readonly version: string | undefined;
  /** The only user whose engine is believed; undefined when the socket's place is proof enough. */
  readonly mustRunAs: number | undefined;
}

const REQUEST_MS = 10_000;
const MAX_BYTES = 16 * 1024 * 1024;
const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** Asks a container engine by the Engine API, which Docker and Podman speak. */
export class Engine {
  readonly #config: EngineConfig;
  readonly #clock: Clock;

  constructor(config: EngineConfig, clock: Clock) {
    this.#config = config;
    this.#clock = clock;
  }

  /** Undefined when the engine knows no such container. Throws `unavailable` when it cannot be asked. */
  async container(id: string, signal: AbortSignal): Promise<EngineContainer | undefined> {
    const found = await this.#get(`/containers/${encodeURIComponent(id)}/json`, signal);
    if (found === undefined) return undefined;
    if (!names(found, id)) throw this.#failed(`it answered for container ${JSON.stringify(found["Id"])}`);
    const config = objectOf(found["Config"]);
    const image = textOf(config["Image"]);
    return {
      image,
      labels: textEntries(config["Labels"]),
      env: Array.isArray(config["Env"]) ? config["Env"].map(textOf).filter((line) => line !== "") : [],
      imageDigest: await this.#digest(textOf(found["Image"]), image, signal),
    };
  }

  /** Names of the container's image by digest, in the repositories that it was pulled from. Throws `unavailable`. */
  async repoDigests({ imageDigest, image }: EngineContainer, signal: AbortSignal): Promise<readonly string[]> {
    const found = await this.#image(imageDigest ?? image, signal);
    const digests = found?.["RepoDigests"];
    return Array.isArray(digests) ? digests.map(textOf).filter((name) => name !== "") : [];
  }

  /** The image that the container was made of; its name may mean another one by now. */
  async #digest(ofContainer: string, name: string, signal: AbortSignal): Promise<string | undefined> {
    if (DIGEST.test(ofContainer)) return ofContainer;
    const image = ofContainer || name;
    if (image === "") return undefined;
    const found = await this.#image(image, signal);
    const id = textOf(found?.["Id"]);
    return id === "" ? undefined : id.replace(/^(?!sha256:)/, "sha256:");
  }

  #image(name: string, signal: AbortSignal): Promise<Readonly<Record<string, unknown>> | undefined> {
    return this.#get(`/images/${encodeURIComponent(name)}/json`, signal);
  }

  async #get(path: string, signal: AbortSignal): Promise<Readonly<Record<string, unknown>> | undefined> {
    const deadline = { ms: REQUEST_MS, clock: this.#clock, signal };
    const answer = await withDeadline(deadline, (limit) => this.#ask(path, limit));
    if (answer.status === 404) return undefined;
    if (answer.status !== 200) throw this.#failed(`status ${answer.status} ${excerpt(answer.body)}`);
    return objectOf(jsonOf(answer.body, this.#peer));
  }

  #ask(path: string, signal: AbortSignal): Promise<HttpAnswer> {
    const { socketPath, version, mustRunAs } = this.#config;
    const options = {
      socketPath,
      path: version === undefined ? path : `/v${version}${path}`,
      headers: { host: "localhost", accept: "application/json" },
      agent: false,
    } as const;
    const check = (request: ClientRequest): void => this.#checkUser(request, mustRunAs);
    const question = { secure: false, options, maxBytes: MAX_BYTES, peer: this.#peer, onConnected: check };
    return httpAsk(question, signal);
  }

  /** Whoever owns the folder of a socket can put another engine's in its place. */
  #checkUser(request: ClientRequest, mustRunAs: number | undefined): void {
    if (mustRunAs === undefined || request.socket === null) return;
    const uid = listenerUid(request.socket);
    if (uid !== mustRunAs)
      throw this.#failed(`it runs as uid ${uid}, and the container is in the slice of ${mustRunAs}`);
  }

  get #peer(): string {
    return `the container engine at ${this.#config.socketPath}`;
  }

  #failed(reason: string): Fault {
    return new Fault("unavailable", `${this.#peer} cannot be used: ${reason}`, { code: "engine-refused" });
  }
}

/** By id, the beginning of one, or name: what a pattern of the configuration's finds may be any of them. */
function names(container: Readonly<Record<string, unknown>>, id: string): boolean {
  return textOf(container["Id"]).startsWith(id) || container["Name"] === `/${id}`;
}
