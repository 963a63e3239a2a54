import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { duration, flag, integer, parsed, text, texts, unsupported } from "../../src/runtime/config-keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { filePath } from "../../src/runtime/program-config.ts";
import { cgroupMatcher } from "./cgroup-matchers.ts";
import { type K8sBrokerConfig, k8sExperimental } from "./k8s-broker.ts";
import { type SigstoreConfig, sigstore } from "./sigstore.ts";

const PORT_MAX = 65_535;
const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";
const NODE_NAME_ENV = "MY_NODE_NAME";
const POLL_ATTEMPTS = 60;
const POLL_RETRY_MS = 500;
const RELOAD_MS = 60_000;

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

const unix = {
  doc: "User, groups and program of the calling process.",
  keys: {
    discover_workload_path: flag({
      doc: "Adds the program's path and, unless the limit forbids, its SHA-256.",
      default: false,
    }),
    workload_size_limit: integer(
      -1,
      Number.MAX_SAFE_INTEGER,
    )({ doc: "Largest program that is hashed, in bytes; 0 is no limit, -1 hashes none.", default: 0 }),
  },
};

const port = integer(0, PORT_MAX);

const k8s = {
  doc: "Pod and container of the calling process, as the kubelet of its node knows them.",
  keys: {
    kubelet_read_only_port: port({ doc: "The kubelet's port without TLS; instead of the secure one." }),
    kubelet_secure_port: port({ doc: "The kubelet's port.", shown: "10250" }),
    kubelet_ca_path: filePath({
      doc: "PEM file of the authorities that sign kubelets' certificates.",
      shown: `${SERVICE_ACCOUNT}/ca.crt`,
    }),
    skip_kubelet_verification: flag({ doc: "Believes any certificate of the kubelet's.", default: false }),
    token_path: filePath({
      doc: "File with the bearer token shown to the kubelet.",
      shown: `${SERVICE_ACCOUNT}/token`,
    }),
    certificate_path: filePath({ doc: "PEM certificate shown to the kubelet, instead of a token." }),
    private_key_path: filePath({ doc: "PEM private key of that certificate." }),
    use_anonymous_authentication: flag({ doc: "Shows the kubelet nothing.", default: false }),
    node_name_env: text({ doc: "Variable of the environment that holds the node's name.", shown: NODE_NAME_ENV }),
    node_name: text({
      doc: "Host that the kubelet is dialled at, which its certificate must name.",
      shown: "node_name_env's value, otherwise 127.0.0.1 and any name",
    }),
    max_poll_attempts: integer(
      0,
      1_000_000,
    )({ doc: "How many retry intervals a new container is waited for; 0 is the default.", default: POLL_ATTEMPTS }),
    poll_retry_interval: duration(
      0,
      "0s",
    )({ doc: "Longest time between two questions to the kubelet while a container is waited for.", shown: "500ms" }),
    reload_interval: duration(0, "0s")({ doc: "How often token and certificates are read again.", shown: "1m" }),
    disable_container_selectors: flag({ doc: "Leaves out the selectors of the container itself.", default: false }),
    disable_kubelet_client: flag({ doc: "Never asks a kubelet, so that no caller can be attested.", default: false }),
    enable_namespace_labels: flag({ doc: "Adds the namespace's labels, by the API server.", default: false }),
    use_new_container_locator: flag({
      doc: "false is SPIRE's older way of reading control groups, which Steeple does not have: it warns, and finds containers by the rules for known runtimes all the same.",
      default: true,
    }),
    verbose_container_locator_logs: flag({ doc: "Logs, at debug level, where each caller was found.", default: false }),
    sigstore,
    experimental: k8sExperimental,
  },
};

const DOCKER_SOCKET = "unix:///var/run/docker.sock";
const PODMAN_SOCKET = "unix:///run/podman/podman.sock";
const PODMAN_TEMPLATE = "unix:///run/user/%d/podman/podman.sock";

const docker = {
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

const systemd = { doc: "The systemd unit of the calling process, by D-Bus.", keys: {} };

/** Every workload attestor of SPIRE's; undefined for those that are not built. */
export const workloadAttestors = {
  unix,
  k8s,
  docker,
  slurm: undefined,
  systemd,
  windows: undefined,
};

type Enabled = {
  readonly unix?: Values<typeof unix.keys>;
  readonly k8s?: Values<typeof k8s.keys>;
  readonly docker?: Values<typeof docker.keys>;
  readonly systemd?: Values<typeof systemd.keys>;
};

export interface UnixAttestorConfig {
  readonly type: "unix";
  readonly discoverWorkloadPath: boolean;
  /** Bytes; 0 is no limit, negative hashes nothing. */
  readonly workloadSizeLimit: number;
}

export interface K8sAttestorConfig {
  readonly type: "k8s";
  /** Undefined when no kubelet may be asked. */
  readonly kubelet?: {
    readonly port: number;
    readonly secure: boolean;
    /** Undefined: any certificate is believed. */
    readonly caPath: string | undefined;
    readonly credentials:
      | { readonly type: "token"; readonly path: string }
      | { readonly type: "certificate"; readonly certificatePath: string; readonly privateKeyPath: string }
      | { readonly type: "anonymous" };
    readonly nodeName: string | undefined;
    readonly reloadIntervalMs: number;
  };
  readonly maxPollAttempts: number;
  readonly pollRetryIntervalMs: number;
  readonly disableContainerSelectors: boolean;
  readonly enableNamespaceLabels: boolean;
  readonly verboseContainerLocatorLogs: boolean;
  /** Whether pods and namespaces are watched. */
  readonly watches: boolean;
  /** What brokers may point at; absent when they may not. */
  readonly broker?: K8sBrokerConfig;
  /** Absent when images need no signature. */
  readonly sigstore?: SigstoreConfig;
}

export interface DockerAttestorConfig {
  readonly type: "docker";
  readonly dockerSocketPath: string;
  readonly podmanSocketPath: string;
  readonly podmanSocketOf: (uid: number) => string;
  readonly dockerVersion: string | undefined;
  /** With a group `id`. */
  readonly matcher: RegExp | undefined;
  readonly verboseContainerLocatorLogs: boolean;
  /** Absent when images need no signature. */
  readonly sigstore?: SigstoreConfig;
}

export type WorkloadAttestorConfig =
  | UnixAttestorConfig
  | K8sAttestorConfig
  | DockerAttestorConfig
  | { readonly type: "systemd" };

/** The configured attestors; `unix` alone when none is. */
export function workloadAttestorConfigs(
  enabled: Enabled,
  reader: ConfigReader,
  env: NodeJS.ProcessEnv,
): readonly WorkloadAttestorConfig[] {
  const found = [
    ...(enabled.unix === undefined ? [] : [unixConfig(enabled.unix)]),
    ...(enabled.k8s === undefined ? [] : [k8sConfig(enabled.k8s, reader, env)]),
    ...(enabled.docker === undefined ? [] : [dockerConfig(enabled.docker, reader)]),
    ...(enabled.systemd === undefined ? [] : [{ type: "systemd" as const }]),
  ];
  return found.length > 0 ? found : [{ type: "unix", discoverWorkloadPath: false, workloadSizeLimit: 0 }];
}

function unixConfig(values: NonNullable<Enabled["unix"]>): UnixAttestorConfig {
  return {
    type: "unix",
    discoverWorkloadPath: values.discover_workload_path,
    workloadSizeLimit: values.workload_size_limit,
  };
}

type K8sValues = NonNullable<Enabled["k8s"]>;

function k8sConfig(values: K8sValues, reader: ConfigReader, env: NodeJS.ProcessEnv): K8sAttestorConfig {
  const place = "plugins.WorkloadAttestor.k8s";
  const fault = (message: string): void => reader.fault(place, message);
  const { broker, api_server } = values.experimental;
  if (values.disable_kubelet_client) checkDisabled(values, fault);
  const kubelet = values.disable_kubelet_client ? undefined : kubeletConfig(values, fault, env);
  for (const warning of k8sWarnings(values, kubelet)) reader.warn(place, warning);
  return {
    type: "k8s",
    ...(kubelet === undefined ? {} : { kubelet }),
    watches: api_server.cache.enabled,
    maxPollAttempts: values.max_poll_attempts || POLL_ATTEMPTS,
    pollRetryIntervalMs: values.poll_retry_interval || POLL_RETRY_MS,
    disableContainerSelectors: values.disable_container_selectors,
    enableNamespaceLabels: values.enable_namespace_labels,
    verboseContainerLocatorLogs: values.verbose_container_locator_logs,
    ...(broker === undefined ? {} : { broker }),
    ...(values.sigstore === undefined ? {} : { sigstore: values.sigstore }),
  };
}

/** What is set, but not so, or not to any effect. */
function k8sWarnings(
  { use_new_container_locator: isNew, experimental }: K8sValues,
  kubelet: K8sAttestorConfig["kubelet"],
): readonly string[] {
  const watchesNone = experimental.api_server.cache.enabled && kubelet !== undefined && kubelet.nodeName === undefined;
  return [
    ...(isNew
      ? []
      : [
          "use_new_container_locator = false has no effect: containers are found by the rules for known runtimes, since the older way takes the innermost container that a path names, which a container can make up",
        ]),
    ...(watchesNone
      ? [
          "experimental.api_server.cache: the pods of this node are not watched, for want of its name; set node_name or the variable named by node_name_env",
        ]
      : []),
  ];
}

function kubeletConfig(
  values: K8sValues,
  fault: (message: string) => void,
  env: NodeJS.ProcessEnv,
): NonNullable<K8sAttestorConfig["kubelet"]> {
  const { kubelet_read_only_port: plain = 0, kubelet_secure_port: secure = 0 } = values;
  if (plain > 0 && secure > 0) fault("cannot use both the read-only and secure port");
  return {
    port: plain || secure || 10_250,
    secure: plain === 0,
    caPath: values.skip_kubelet_verification ? undefined : (values.kubelet_ca_path ?? `${SERVICE_ACCOUNT}/ca.crt`),
    credentials: kubeletCredentials(values, fault),
    nodeName: values.node_name || env[values.node_name_env ?? NODE_NAME_ENV] || undefined,
    reloadIntervalMs: values.reload_interval || RELOAD_MS,
  };
}

function kubeletCredentials(
  { use_anonymous_authentication, certificate_path, private_key_path, token_path }: K8sValues,
  fault: (message: string) => void,
): NonNullable<K8sAttestorConfig["kubelet"]>["credentials"] {
  if (use_anonymous_authentication) return { type: "anonymous" };
  if (certificate_path !== undefined && private_key_path !== undefined)
    return { type: "certificate", certificatePath: certificate_path, privateKeyPath: private_key_path };
  if (certificate_path !== undefined) fault("the private key path is required with the certificate path");
  if (private_key_path !== undefined) fault("the certificate path is required with the private key path");
  return { type: "token", path: token_path ?? `${SERVICE_ACCOUNT}/token` };
}

const KUBELET_KEYS = [
  ...["kubelet_read_only_port", "kubelet_secure_port", "kubelet_ca_path", "skip_kubelet_verification"],
  ...["token_path", "certificate_path", "private_key_path", "use_anonymous_authentication"],
  ...["node_name_env", "node_name", "reload_interval"],
];

function checkDisabled(values: K8sValues, fault: (message: string) => void): void {
  const entries: Readonly<Record<string, unknown>> = { ...values };
  for (const key of KUBELET_KEYS) if (entries[key]) fault(`disable_kubelet_client cannot be used with ${key}`);
  for (const [id, scope] of values.experimental.broker?.brokers ?? [])
    if (scope !== "cluster")
      fault(
        `experimental.broker.brokers[${id}].pod_reference_scope must be "cluster" when disable_kubelet_client is true`,
      );
}

function dockerConfig(values: NonNullable<Enabled["docker"]>, reader: ConfigReader): DockerAttestorConfig {
  const fault = (message: string): void => reader.fault("plugins.WorkloadAttestor.docker", message);
  return {
    type: "docker",
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
  { container_id_cgroup_matchers: patterns = [], use_new_container_locator: usesRules }: NonNullable<Enabled["docker"]>,
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
