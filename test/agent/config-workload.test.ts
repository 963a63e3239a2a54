import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type AgentConfig, loadAgentConfig } from "../../agent/config.ts";
import { faultOf } from "../support/faults.ts";

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-agent-config-"));
});
afterEach(() => rm(folder, { recursive: true }));

const AGENT = 'agent { trust_domain = "a.test" server_address = "s" server_port = 8081 insecure_bootstrap = true }\n';

async function load(attestors: string, env: NodeJS.ProcessEnv = {}): Promise<AgentConfig["workloadAttestors"]> {
  const path = join(folder, "agent.conf");
  await writeFile(path, `${AGENT}plugins {\n${attestors}\n}\n`);
  return loadAgentConfig({ path, flags: {}, env }).workloadAttestors;
}

async function warnings(attestors: string): Promise<readonly string[]> {
  const path = join(folder, "agent.conf");
  await writeFile(path, `${AGENT}plugins {\n${attestors}\n}\n`);
  return loadAgentConfig({ path, flags: {}, env: {} }).warnings;
}

async function refused(attestors: string): Promise<string> {
  const path = join(folder, "agent.conf");
  await writeFile(path, `${AGENT}plugins {\n${attestors}\n}\n`);
  return faultOf(() => loadAgentConfig({ path, flags: {}, env: {} })).message;
}

function plugin(name: string, data = ""): string {
  return `WorkloadAttestor "${name}" { plugin_data { ${data} } }`;
}

describe("workload attestors", () => {
  test("are those that are configured, and unix when none is", async () => {
    expect((await load("")).map(({ type }) => type)).toEqual(["unix"]);
    expect((await load(plugin("k8s"))).map(({ type }) => type)).toEqual(["k8s"]);
    expect((await load(plugin("k8s") + plugin("unix"))).map(({ type }) => type)).toEqual(["unix", "k8s"]);
    expect(await load(plugin("systemd"))).toEqual([{ type: "systemd" }]);
  });
});

describe("k8s", () => {
  const directory = "/var/run/secrets/kubernetes.io/serviceaccount";
  const defaults = {
    type: "k8s",
    kubelet: {
      port: 10_250,
      secure: true,
      caPath: `${directory}/ca.crt`,
      credentials: { type: "token", path: `${directory}/token` },
      nodeName: undefined,
      reloadIntervalMs: 60_000,
    },
    maxPollAttempts: 60,
    pollRetryIntervalMs: 500,
    disableContainerSelectors: false,
    enableNamespaceLabels: false,
    verboseContainerLocatorLogs: false,
    watches: false,
  };

  const brokers = '[{ id = "spiffe://a.test/b" }, { id = "spiffe://a.test/c" pod_reference_scope = "cluster" }]';

  test("may let brokers refer to its objects", async () => {
    const data = (policy: string): string =>
      `experimental { broker { access_policy = "${policy}" brokers = ${brokers} } }`;
    const scopes = new Map([
      ["spiffe://a.test/b", "agent_node"],
      ["spiffe://a.test/c", "cluster"],
    ]);
    for (const policy of ["enforced", "permissive"])
      expect(await load(plugin("k8s", data(policy)))).toMatchObject([
        { broker: { enforced: policy === "enforced", brokers: scopes } },
      ]);
    expect(await load(plugin("k8s"))).not.toMatchObject([{ broker: {} }]);
  });

  test.each([
    [`brokers = ${brokers}`, /broker\.access_policy: must be specified as one of \[permissive, enforced\]/],
    [`access_policy = "some" brokers = ${brokers}`, /"some" is not one of permissive, enforced/],
    ['access_policy = "enforced"', /broker\.brokers: at least one broker is required/],
    ['access_policy = "enforced" brokers = [{ }]', /brokers\[0\]\.id: must be specified/],
    ['access_policy = "enforced" brokers = [{ id = "x" }]', /brokers\[x\]\.id/],
    ['access_policy = "enforced" brokers = [{ id = "spiffe://a.test/b" }, { id = "spiffe://a.test/b" }]', /duplicate/],
  ])("brokers are refused with %s", async (broker, message) =>
    expect(await refused(plugin("k8s", `experimental { broker { ${broker} } }`))).toMatch(message),
  );

  test("without a kubelet every broker needs the whole cluster", async () => {
    const data = `disable_kubelet_client = true experimental { broker { access_policy = "enforced" brokers = ${brokers} } }`;
    expect(await refused(plugin("k8s", data))).toMatch(/brokers\[spiffe:\/\/a\.test\/b\]\.pod_reference_scope must be/);
  });

  test("has SPIRE's defaults; zero means them too", async () => {
    expect(await load(plugin("k8s"))).toEqual([defaults]);
    const zeros = 'max_poll_attempts = 0 poll_retry_interval = "0s" reload_interval = "0s" kubelet_secure_port = 0';
    expect(await load(plugin("k8s", zeros))).toEqual([defaults]);
  });

  test.each([
    { data: "kubelet_read_only_port = 10255", kubelet: { port: 10_255, secure: false } },
    { data: "skip_kubelet_verification = true", kubelet: { caPath: undefined } },
    { data: "use_anonymous_authentication = true", kubelet: { credentials: { type: "anonymous" } } },
    {
      data: 'certificate_path = "/c" private_key_path = "/k"',
      kubelet: { credentials: { type: "certificate", certificatePath: "/c", privateKeyPath: "/k" } },
    },
    { data: 'node_name = "n"', kubelet: { nodeName: "n" } },
    { data: "", kubelet: { nodeName: "by-env" }, env: { MY_NODE_NAME: "by-env" } },
    { data: 'node_name_env = "N"', kubelet: { nodeName: "other" }, env: { N: "other", MY_NODE_NAME: "by-env" } },
  ])("$data $env", async ({ data, kubelet, env }) => {
    expect(await load(plugin("k8s", data), env)).toMatchObject([{ kubelet }]);
  });

  test("watches the API server when told so, which needs the name of the node", async () => {
    const cache = "experimental { api_server { cache { enabled = true } } }";
    expect(await load(plugin("k8s", `${cache} node_name = "n"`))).toMatchObject([{ watches: true }]);
    expect(await warnings(plugin("k8s", `${cache} node_name = "n"`))).toEqual([]);
    expect(await warnings(plugin("k8s", cache))).toEqual([expect.stringContaining("set node_name or")]);
  });

  test("warns that there is no older way of finding containers", async () => {
    expect(await warnings(plugin("k8s", "use_new_container_locator = true"))).toEqual([]);
    const [warning] = await warnings(plugin("k8s", "use_new_container_locator = false"));
    expect(warning).toMatch(/use_new_container_locator = false has no effect/);
  });

  test("asks no kubelet when told so", async () => {
    expect(await load(plugin("k8s", "disable_kubelet_client = true"))).not.toMatchObject([{ kubelet: {} }]);
  });

  test.each([
    ["kubelet_read_only_port = 1 kubelet_secure_port = 2", /cannot use both the read-only and secure port/],
    ['certificate_path = "/c"', /the private key path is required with the certificate path/],
    ['private_key_path = "/k"', /the certificate path is required with the private key path/],
    ['disable_kubelet_client = true node_name = "n"', /disable_kubelet_client cannot be used with node_name/],
    ['poll_retry_interval = "soon"', /invalid duration "soon"/],
  ])("%s is refused", async (data, message) => expect(await refused(plugin("k8s", data))).toMatch(message));
});

describe("docker", () => {
  async function one(data: string) {
    const [config] = await load(plugin("docker", data));
    if (config?.type !== "docker") throw new Error("not the docker attestor");
    return { ...config, podmanOf1000: config.podmanSocketOf(1000) };
  }

  test("has SPIRE's defaults", async () => {
    expect(await one("")).toMatchObject({
      dockerSocketPath: "/var/run/docker.sock",
      podmanSocketPath: "/run/podman/podman.sock",
      podmanOf1000: "/run/user/1000/podman/podman.sock",
      matcher: undefined,
    });
  });

  test("sockets are named as addresses or paths", async () => {
    const data = 'docker_socket_path = "/d.sock" podman_socket_path = "unix:///p.sock"';
    const template = 'podman_socket_path_template = "unix:///u/%d/100%%/p.sock"';
    expect(await one(`${data} ${template}`)).toMatchObject({
      dockerSocketPath: "/d.sock",
      podmanSocketPath: "/p.sock",
      podmanOf1000: "/u/1000/100%/p.sock",
    });
  });

  test("patterns take the place of the rules", async () => {
    const data = 'use_new_container_locator = false container_id_cgroup_matchers = ["/docker/<id>"]';
    expect((await one(data)).matcher?.exec("/docker/abc")?.groups?.["id"]).toBe("abc");
  });

  test.each([
    ['docker_socket_path = "tcp://10.0.0.1:2375"', /is not the address of a Unix socket/],
    ['podman_socket_path_template = "unix:///run/podman.sock"', /exactly one %d UID placeholder/],
    ['podman_socket_path_template = "/%d/%d"', /exactly one %d UID placeholder/],
    ['podman_socket_path_template = "/%d/%s"', /exactly one %d UID placeholder/],
    ['podman_socket_path_template = "/%%d"', /exactly one %d UID placeholder/],
    ['container_id_cgroup_matchers = ["/docker/<id>"]', /cannot both be used/],
    [
      'use_new_container_locator = false container_id_cgroup_matchers = ["/docker"]',
      /must contain the container id token/,
    ],
  ])("%s is refused", async (data, message) => expect(await refused(plugin("docker", data))).toMatch(message));
});

describe("sigstore", () => {
  async function one(data: string, name: "k8s" | "docker" = "k8s") {
    const [config] = await load(plugin(name, `sigstore { ${data} }`));
    if ((config?.type !== "k8s" && config?.type !== "docker") || config.sigstore === undefined)
      throw new Error("no sigstore");
    return config.sigstore;
  }

  test.each(["k8s", "docker"] as const)("of %s has SPIRE's defaults, and is off without its block", async (name) => {
    expect(await one("", name)).toMatchObject({
      ...{ skippedImages: new Set(), rekorUrl: "https://rekor.sigstore.dev", registryCredentials: new Map() },
      ...{ ignoreSct: false, ignoreTlog: false, ignoreAttestations: false },
      trust: { type: "tuf", mirrorUrl: "https://tuf-repo-cdn.sigstore.dev", rootPath: undefined },
    });
    expect(await load(plugin(name))).not.toMatchObject([{ sigstore: {} }]);
  });

  test("takes every key of SPIRE's, in blocks and in maps", async () => {
    const keys = 'rekor_url = "https://rekor.test" ignore_sct = true ignore_tlog = true ignore_attestations = true';
    const credentials = '"docker.io" = { username = "u" password = "p" } "half.test" = { username = "u" }';
    const rest = `skipped_images = ["a@sha256:00"] registry_credentials = { ${credentials} }`;
    expect(await one(`${keys} ${rest}`)).toMatchObject({
      ...{ rekorUrl: "https://rekor.test", ignoreSct: true, ignoreTlog: true, ignoreAttestations: true },
      ...{ skippedImages: new Set(["a@sha256:00"]) },
      registryCredentials: new Map([["docker.io", { username: "u", password: "p" }]]),
    });
    const { allows } = await one('allowed_identities = { "https://i.test" = ["a@b.test"] }');
    expect(allows({ issuer: "https://i.test", subjects: ["a@b.test"] })).toBe(true);
    expect(allows({ issuer: "https://j.test", subjects: ["a@b.test"] })).toBe(false);
    expect((await one("")).allows({ issuer: "https://any.test", subjects: ["who"] })).toBe(true);
  });

  const workflow = "https://github.com/org/app/.github/workflows/ci.yml@refs/heads/main";
  test.each<[rule: string, subject: string, holds: boolean]>([
    ["ci@example.com", "ci@example.com", true],
    ["ci@example.com", "ci@exampleXcom", false],
    ["ci@example.com", "x-ci@example.com", false],
    ["ci@example.com", "ci@example.com.evil.test", false],
    ["ci@example.com", "CI@example.com", false],
    ["ci+prod@example.com", "ci+prod@example.com", true],
    [".*@example[.]com", "anybody@example.com", true],
    [".*@example[.]com", "anybody@example.com.evil.test", false],
    [".*@example[.]com", "evil\n@example.com", false],
    ["a|b", "a", true],
    ["a|b", "ab", false],
    ["^https://github[.]com/org/.+$", workflow, true],
    ["https://github[.]com/org/app/.*", workflow, true],
    ["https://github[.]com/org/app/", workflow, false],
    ["github[.]com/org/.*", workflow, false],
  ])("T-S6 %j and %j: %s", async (rule, subject, holds) => {
    const { allows } = await one(`allowed_identities { "https://i.test" = [${JSON.stringify(rule)}] }`);
    expect(allows({ issuer: "https://i.test", subjects: ["other", subject] })).toBe(holds);
    expect(allows({ issuer: "https://i.test", subjects: ["other"] })).toBe(false);
  });

  test("T-S7 no pattern fits a name of more than 2048 characters", async () => {
    const { allows } = await one('allowed_identities { "https://i.test" = ["x+"] }');
    expect(allows({ issuer: "https://i.test", subjects: ["x".repeat(2048)] })).toBe(true);
    expect(allows({ issuer: "https://i.test", subjects: ["x".repeat(2049)] })).toBe(false);
  });

  test("T-S6 a dot in an issuer is a dot, and a pattern fits it whole", async () => {
    const { allows } = await one('allowed_identities { "https://i.test" = ["s"] "https://.+[.]corp[.]test" = ["s"] }');
    const of = (issuer: string): boolean => allows({ issuer, subjects: ["s"] });
    expect(of("https://i.test")).toBe(true);
    expect(of("https://iXtest")).toBe(false);
    expect(of("https://login.corp.test")).toBe(true);
    expect(of("https://login.corp.test.evil")).toBe(false);
  });

  test.each([
    ['allowed_identities { "https://i.test" = [] }', /https:\/\/i\.test: expected a list of subjects/],
    ['allowed_identities { "https://i.test" = "s" }', /expected a list of subjects/],
    ['allowed_identities { "https://i.test" = [1] }', /expected a list of subjects/],
    ['allowed_identities = "https://i.test"', /expected issuers/],
    ['allowed_identities { "https://i.test" = ["(a"] }', /"\(a" is not a regular expression/],
    ['allowed_identities { "https://i.test" = ["a)(?:.*"] }', /is not a regular expression/],
    ['allowed_identities { "https://i.test" = ["(?i)a"] }', /inline flags and classes of names are not supported/],
    ['rekor_url = "http://rekor.test"', /is not an https:\/\/ address/],
    ['tuf_mirror_url = "http://tuf.test"', /is not an https:\/\/ address/],
    ['tuf_mirror_url = "https://tuf.test"', /tuf_root_path must be set for a tuf_mirror_url of your own/],
    ['trusted_root_path = "/a" tuf_root_path = "/b"', /trusted_root_path cannot be used with tuf_mirror_url/],
    ['ignore_sct = "yes"', /expected true or false/],
    ['fulcio_url = "x"', /fulcio_url/],
  ])("%s is refused", async (data, message) =>
    expect(await refused(plugin("k8s", `sigstore { ${data} }`))).toMatch(message),
  );

  test("takes its trusted root from a file, or from a TUF repository of one's own", async () => {
    expect(await one('trusted_root_path = "/root.json"')).toMatchObject({
      trust: { type: "file", path: "/root.json" },
    });
    expect(await one('tuf_mirror_url = "https://tuf.test/" tuf_root_path = "/1.root.json"')).toMatchObject({
      trust: { type: "tuf", mirrorUrl: "https://tuf.test", rootPath: "/1.root.json" },
    });
  });
});
