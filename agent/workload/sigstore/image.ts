import { Fault } from "../../../src/runtime/fault.ts";

/** An image by its digest, in the repository that holds it. */
export interface Image {
  /** Host of the registry, with a port where it is not the usual one. */
  readonly registry: string;
  readonly repository: string;
  /** `sha256:` and 64 hexadecimal digits: of the manifest, or of the index of a multi-platform image. */
  readonly digest: string;
}

const DOCKER_HUB = "index.docker.io";
const SHAPE = /^(?:docker-pullable:\/\/)?([^@]+)@(sha256:[0-9a-f]{64})$/;
const TAG = /:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?$/;
const COMPONENT = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const REPOSITORY = new RegExp(`^${COMPONENT}(?:/${COMPONENT})*$`);
const MAX_NAME = 255;

/**
 * Reads `repository@sha256:…` as Docker and Kubernetes write it; a name without a registry is Docker Hub's. Throws
 * `invalid`, also for an image without a digest: what a tag means can change after it was started.
 */
export function parseImage(text: string): Image {
  const [, name = "", digest = ""] = SHAPE.exec(text.slice(0, 2 * MAX_NAME)) ?? [];
  if (digest === "") throw invalid(text, "it is not named by repository and SHA-256 digest");
  const slash = name.indexOf("/");
  const first = slash < 0 ? "" : name.slice(0, slash);
  const isHost = /[.:]/.test(first) || first === "localhost";
  const path = (isHost ? name.slice(slash + 1) : name).replace(TAG, "");
  const registry = isHost ? registryHost(first) : DOCKER_HUB;
  const repository = registry === DOCKER_HUB && !path.includes("/") ? `library/${path}` : path;
  if (!HOST.test(registry) || !URL.canParse(`https://${registry}/`))
    throw invalid(text, "the registry's name is malformed");
  if (repository.length > MAX_NAME || !REPOSITORY.test(repository))
    throw invalid(text, "the repository's name is malformed");
  return { registry, repository, digest };
}

/** Of a registry's name or address. Docker Hub has several; they mean one registry. */
export function registryHost(name: string): string {
  const host = name
    .toLowerCase()
    .replace(/^https?:\/\//, "")
    .replace(/\/.*$/, "");
  return host === "docker.io" ? DOCKER_HUB : host;
}

/** The tag under which cosign keeps what belongs to an image: `sha256-<hex>.sig`, `.att`. */
export function companionTag({ digest }: Image, suffix: "sig" | "att"): string {
  return `${digest.replace(":", "-")}.${suffix}`;
}

function invalid(text: string, reason: string): Fault {
  const message = `image ${JSON.stringify(text.slice(0, MAX_NAME))} cannot be verified: ${reason}`;
  return new Fault("invalid", message, { code: "image-name" });
}
