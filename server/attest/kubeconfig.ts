import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { parseYaml } from "../../src/runtime/config-document.ts";
import type { ConfigValue } from "../../src/runtime/config-value.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";

/** Where a cluster's API server is, how it's recognised, and who asks. */
export interface KubeAccess {
  readonly server: URL;
  /** PEM; undefined means the system's roots. */
  readonly ca: string | undefined;
  readonly serverName: string | undefined;
  readonly token: string | undefined;
  /** PEM. */
  readonly cert: string | undefined;
  readonly key: string | undefined;
}

const IN_CLUSTER = "/var/run/secrets/kubernetes.io/serviceaccount";

/** Reads the kubeconfig anew, or what every container has. Throws `unavailable` with the reason. */
export async function kubeAccess(kubeConfigFile: string | undefined): Promise<KubeAccess> {
  try {
    return kubeConfigFile === undefined ? await inCluster() : await fromFile(kubeConfigFile);
  } catch (error) {
    throw new Fault("unavailable", `unable to get the Kubernetes configuration: ${messageOf(error)}`, {
      code: "kube-config",
      hint: "check kube_config_file, or run the server in the cluster with a service account",
      cause: error,
    });
  }
}

async function inCluster(): Promise<KubeAccess> {
  const { KUBERNETES_SERVICE_HOST: host = "", KUBERNETES_SERVICE_PORT: port = "443" } = process.env;
  if (host === "") throw new Error("the server does not run in a pod: KUBERNETES_SERVICE_HOST is not set");
  const server = new URL(`https://${host.includes(":") ? `[${host}]` : host}:${port}`);
  const [ca, token] = await Promise.all(["ca.crt", "token"].map((name) => readFile(`${IN_CLUSTER}/${name}`, "utf8")));
  return { server, ca, token: token?.trim(), serverName: undefined, cert: undefined, key: undefined };
}

async function fromFile(path: string): Promise<KubeAccess> {
  const config = new Section(plainOf(parseYaml(await readFile(path, "utf8"), path)), dirname(path));
  const context = config.named("contexts", config.text("current-context"), "context");
  const cluster = config.named("clusters", context.text("cluster"), "cluster");
  const user = config.named("users", context.text("user"), "user");
  for (const key of ["exec", "auth-provider", "username"])
    if (user.has(key)) throw new Error(`user credentials of kind "${key}" are not supported`);
  if (cluster.has("insecure-skip-tls-verify") && cluster.text("insecure-skip-tls-verify") !== "false")
    throw new Error("insecure-skip-tls-verify is not supported: whoever answers could vouch for any node");
  const server = new URL(cluster.text("server"));
  if (server.protocol !== "https:") throw new Error(`server ${server.protocol}//${server.host} is not https`);
  return {
    server,
    ca: await cluster.material("certificate-authority"),
    serverName: cluster.has("tls-server-name") ? cluster.text("tls-server-name") : undefined,
    token: await user.token(),
    cert: await user.material("client-certificate"),
    key: await user.material("client-key"),
  };
}

/** A part of a kubeconfig; paths in it are relative to the file. */
class Section {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #folder: string;

  constructor(value: unknown, folder: string) {
    this.#values = typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
    this.#folder = folder;
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#values, key) && this.#values[key] !== undefined && this.#values[key] !== "";
  }

  text(key: string): string {
    const value = this.has(key) ? this.#values[key] : undefined;
    if (typeof value !== "string") throw new Error(`"${key}" is missing`);
    return value;
  }

  named(list: string, name: string, key: string): Section {
    const items = this.has(list) ? this.#values[list] : [];
    for (const item of Array.isArray(items) ? items : []) {
      const section = new Section(item, this.#folder);
      if (section.has("name") && section.text("name") === name) return new Section(section.#values[key], this.#folder);
    }
    throw new Error(`${list} has no "${name}"`);
  }

  /** From `<key>-data`, base64, or the file of `<key>`. */
  async material(key: string): Promise<string | undefined> {
    if (this.has(`${key}-data`)) return Buffer.from(this.text(`${key}-data`), "base64").toString("utf8");
    return this.has(key) ? await readFile(resolve(this.#folder, this.text(key)), "utf8") : undefined;
  }

  async token(): Promise<string | undefined> {
    if (this.has("tokenFile")) return (await readFile(resolve(this.#folder, this.text("tokenFile")), "utf8")).trim();
    return this.has("token") ? this.text("token") : undefined;
  }
}

function plainOf(value: ConfigValue): unknown {
  if (value.kind === "object")
    return Object.fromEntries(value.entries.map((entry) => [entry.key, plainOf(entry.value)]));
  if (value.kind === "list") return value.items.map(plainOf);
  return value.kind === "null" ? undefined : value.text;
}
