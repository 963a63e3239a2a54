import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { flag, parsed, text, texts, unsupported } from "../../src/runtime/config-keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { cgroupMatcher } from "./cgroup-matchers.ts";
import { sigstore } from "./sigstore.ts";

const socketAddress = parsed("unix:// address", socketOf);
const socketTemplate = parsed("unix:// address", templateOf);

/** Path of the socket that `unix://` and a path, or a path alone, name. Throws `invalid`. */
function socketOf(address: string): string {
  const path = address.replace(/^unix:\/\//, "");
  if (path.startsWith("/")) return path;
  const message = `${JSON.stringify(address)} is not the address of a Unix socket, such as unix:///run/docker.sock`;
  throw new Fault("invalid", message, { code: "config-invalid" });
}

/** `%d` stands for a uid, `%%` for a per cent sign. Throws `invalid`. */
function templateOf(address: string): (uid: number) => string {
  const path = socketOf(address);
  const wrong = path.replaceAll(/%[%d]/g, "").includes("%");
  if (wrong || path.match(/(?<!%)(?:%%)*%d/g)?.length !== 1)
    throw new Fault("invalid", "template must contain exactly one %d UID placeholder, and %% for a per cent sign", {
      code: "config-invalid",
    });
  return (uid) => path.replaceAll(/%[%d]/g, (sign) => (sign === "%d" ? String(uid) : "%"));
}

const DOCKER_SOCKET = "unix:///var/run/docker.sock";
const PODMAN_SOCKET = "unix:///run/podman/podman.sock";
const PODMAN_TEMPLATE = "unix:///run/user/%d/podman/podman.sock";

export const docker = {
  doc: "The container of the calling process, as Docker or Podman has it.",
  keys: {
    docker_socket_path: socketAddress({
      doc: "Docker's socket.",
      default: socketOf(DOCKER_SOCKET),
      shown: DOCKER_SOCKET,
    }),
    docker_version: text({ doc: "Version of the Engine API, such as 1.40. Default: the engine's choice." }),
    podman_socket_path: socketAddress({
      doc: "Socket of the system's Podman.",
      default: socketOf(PODMAN_SOCKET),
      shown: PODMAN_SOCKET,
    }),
    podman_socket_path_template: socketTemplate({
      doc: "Socket of a user's Podman, with %d for the uid. It says what its user wants it to say: pair its selectors with unix:uid.",
      default: templateOf(PODMAN_TEMPLATE),
      shown: PODMAN_TEMPLATE,
    }),
    container_id_cgroup_matchers: texts({
      doc: "Patterns for control group paths, such as /my.slice/*/<id>; with use_new_container_locator = false.",
    }),
    use_new_container_locator: flag({ doc: "Finds containers by the rules for known runtimes.", default: true }),
    verbose_container_locator_logs: flag({ doc: "Logs, at debug level, where each caller was found.", default: false }),
    sigstore,
    docker_host: unsupported("Docker's named pipe on Windows."),
  },
};

type DockerValues = Values<typeof docker.keys>;

/** What the docker workload attestor is made with. */
export function dockerConfig(values: DockerValues, reader: ConfigReader) {
  const fault = (message: string): void => reader.fault("plugins.WorkloadAttestor.docker", message);
  return {
    type: "docker" as const,
    dockerSocketPath: values.docker_socket_path,
    podmanSocketPath: values.podman_socket_path,
    podmanSocketOf: values.podman_socket_path_template,
    dockerVersion: values.docker_version,
    matcher: dockerMatcher(values, fault),
    verboseContainerLocatorLogs: values.verbose_container_locator_logs,
    ...(values.sigstore === undefined ? {} : { sigstore: values.sigstore }),
  };
}

function dockerMatcher(
  { container_id_cgroup_matchers: patterns = [], use_new_container_locator: usesRules }: DockerValues,
  fault: (message: string) => void,
): RegExp | undefined {
  if (patterns.length === 0) return undefined;
  if (usesRules) {
    fault(
      "the new container locator and custom cgroup matchers cannot both be used; set use_new_container_locator = false",
    );
    return undefined;
  }
  try {
    return cgroupMatcher(patterns);
  } catch (error) {
    fault(Fault.from(error).message);
    return undefined;
  }
}
