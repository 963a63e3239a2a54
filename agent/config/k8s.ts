import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { duration, flag, integer, text } from "../../src/runtime/config-keys.ts";
import { filePath } from "../../src/runtime/program-config.ts";
import { k8sExperimental } from "./k8s-broker.ts";
import { sigstore } from "./sigstore.ts";

const PORT_MAX = 65_535;
const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";
const NODE_NAME_ENV = "MY_NODE_NAME";
const POLL_ATTEMPTS = 60;
const POLL_RETRY_MS = 500;
const RELOAD_MS = 60_000;

const port = integer(0, PORT_MAX);

export const k8s = {
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

type K8sValues = Values<typeof k8s.keys>;

/** What the k8s workload attestor is made with. */
export function k8sConfig(values: K8sValues, reader: ConfigReader, env: NodeJS.ProcessEnv) {
  const place = "plugins.WorkloadAttestor.k8s";
  const fault = (message: string): void => reader.fault(place, message);
  const { broker, api_server } = values.experimental;
  if (values.disable_kubelet_client) checkDisabled(values, fault);
  const kubelet = values.disable_kubelet_client ? undefined : kubeletConfig(values, fault, env);
  for (const warning of k8sWarnings(values, kubelet)) reader.warn(place, warning);
  return {
    type: "k8s" as const,
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
  kubelet: { readonly nodeName: string | undefined } | undefined,
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

function kubeletConfig(values: K8sValues, fault: (message: string) => void, env: NodeJS.ProcessEnv) {
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
) {
  if (use_anonymous_authentication) return { type: "anonymous" as const };
  if (certificate_path !== undefined && private_key_path !== undefined)
    return { type: "certificate" as const, certificatePath: certificate_path, privateKeyPath: private_key_path };
  if (certificate_path !== undefined) fault("the private key path is required with the certificate path");
  if (private_key_path !== undefined) fault("the certificate path is required with the private key path");
  return { type: "token" as const, path: token_path ?? `${SERVICE_ACCOUNT}/token` };
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
