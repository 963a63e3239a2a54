import { createHmac } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { privateKeyToPkcs8 } from "../../../src/crypto/key.ts";
import { encodePem } from "../../../src/crypto/pem.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import { GcpDouble, type GcpInstance, SERVER_EMAIL, type TokenKey } from "../../support/gcp.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PREFIX = "nodeattestor(gcp_iit): ";
const PROJECTS = { projectid_allow_list: ["project-1", "project-2"] };
const DAY_S = 86_400;

// Most tests have a server of their own, which may start slowly where many tests run at once.
const START_MS = 200_000;
vi.setConfig({ testTimeout: START_MS + 60_000, hookTimeout: START_MS + 60_000 });

const scope = new AsyncDisposableStack();
let gcp: GcpDouble;
let folder: string;
let server: TestServer;
let anonymous: Apis;
let stranger: TokenKey;

async function serverWith(config: object, env: Readonly<Record<string, string>> = {}): Promise<TestServer> {
  const nodeAttestors = { gcp_iit: { ...PROJECTS, ...config } };
  return await startServer({ nodeAttestors, env: { ...gcp.env, ...env }, startMs: START_MS });
}

beforeAll(async () => {
  folder = scope.use(await temporaryDirectory()).path;
  gcp = scope.use(await GcpDouble.open());
  stranger = await gcp.newKey();
  server = scope.use(
    await serverWith({
      ...{
        use_instance_metadata: true,
        allowed_label_keys: ["tier", "absent"],
        allowed_metadata_keys: ["role", "empty"],
      },
    }),
  );
  anonymous = scope.use(server.connect());
});
beforeEach(() => {
  gcp.bend = undefined;
});
afterAll(() => scope[Symbol.asyncDispose]());

const evidence = (payload: string): Evidence => ({ type: "gcp_iit", payload });
const shown = (instance: GcpInstance): Evidence => evidence(gcp.evidence(instance));

/** A token of a new instance, with other claims, and of its engine. */
function forged(claims: object = {}, engine: object = {}, how: Parameters<GcpDouble["token"]>[1] = {}): Evidence {
  const honest = gcp.claims(gcp.launch()) as { readonly google: { readonly compute_engine: object } };
  const google = { compute_engine: { ...honest.google.compute_engine, ...engine } };
  return evidence(gcp.token({ ...honest, google, ...claims }, how));
}

describe("gcp_iit", () => {
  test("an agent attests its instance, with every selector, by the token of its service account", async () => {
    const instance = gcp.launch({
      tags: ["http", "web"],
      labels: { tier: "front", secret: "no" },
      metadata: [{ key: "role", value: "a:b" }, { key: "empty" }, { key: "ssh-keys", value: "x".repeat(200) }],
    });
    gcp.here = instance;
    const nodeAttestor = { gcp_iit: { identity_token_host: gcp.metadataHost, service_account: "agents" } };
    await using agent = await startAgent(server, { nodeAttestor, env: gcp.net.env, startMs: START_MS });
    const id = `spiffe://example.org/spire/agent/gcp_iit/project-1/${instance.id}`;
    expect(agent.id()).toBe(id);
    expect(await selectorsOf(server, id)).toEqual(
      [
        ...["project-id:project-1", "zone:europe-west1-b", `instance-name:${instance.name}`],
        ...["sa:agents@project-1.iam.gserviceaccount.com", "tag:http", "tag:web"],
        ...["label:tier:front", "metadata:role:a:b", "metadata:empty:"],
      ]
        .map((value) => `gcp_iit:${value}`)
        .sort(),
    );
    expect(gcp.metadataRequests).toContain(
      "/computeMetadata/v1/instance/service-accounts/agents/identity?audience=spire-gcp-node-attestor&format=full",
    );
    expect(agent.output() + server.output()).not.toContain(gcp.evidence(instance).slice(0, 60));
  });

  test("an instance attests once; its agent renews from then on", async () => {
    const instance = gcp.launch();
    expect((await attestWith(anonymous, shown(instance))).reattestable).toBe(false);
    expect(await refused(anonymous, shown(instance))).toEqual({
      kind: "denied",
      message: `${PREFIX}attestation data has already been used to attest an agent`,
    });
  });

  test("without a look at Compute Engine, with a path of its own", async () => {
    const path = "/{{ .PluginName }}/{{ .Zone }}/{{ .ServiceAccount }}/{{ .InstanceName }}/{{ .ProjectNumber }}";
    await using own = await serverWith({ agent_path_template: path });
    using apis = own.connect();
    const instance = gcp.launch({ project: "project-2", tags: ["web"] });
    const before = gcp.net.requests.length;
    const { id } = await attestWith(apis, shown(instance));
    const account = "agents_project-1.iam.gserviceaccount.com";
    expect(id).toBe(`spiffe://example.org/spire/agent/gcp_iit/europe-west1-b/${account}/${instance.name}/739419398126`);
    expect((await selectorsOf(own, id)).filter((each) => each.startsWith("gcp_iit:tag"))).toEqual([]);
    expect(gcp.net.requests.slice(before)).toEqual(["GET https://www.googleapis.com/oauth2/v1/certs"]);
  });
});

interface Forged {
  readonly kind?: "invalid" | "denied";
  readonly message: string;
  readonly make: () => Evidence;
}

const NOT_GOOGLES = "failed to validate the identity token signature: it is not signed by a key of Google's";
const CLAIMS = "failed to validate the identity token claims: ";
const UNREADABLE = "unable to parse the identity token: ";
const now = (): number => Math.floor(Date.now() / 1000);

const FORGED: Readonly<Record<string, Forged>> = {
  "no token": {
    kind: "invalid",
    message: `${UNREADABLE}token is not a JWS in compact form: it must have three parts`,
    make: () => evidence("secret"),
  },
  "T-N8 no signature": {
    kind: "invalid",
    message: `${UNREADABLE}token signature is not base64url`,
    make: () => evidence(gcp.evidence(gcp.launch()).replace(/[^.]+$/, "")),
  },
  "T-N8 a token that needs none, as it says": {
    kind: "invalid",
    message: `${UNREADABLE}unexpected signature algorithm "none"; expected one of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512`,
    make: () => forged({}, {}, { header: { alg: "none" } }),
  },
  "T-N8 another algorithm than Google's": {
    kind: "invalid",
    message: `${UNREADABLE}unexpected signature algorithm "RS512"`,
    make: () => forged({}, {}, { header: { alg: "RS512" } }),
  },
  "T-N8 Google's public key as the secret of an HMAC": {
    kind: "invalid",
    message: `${UNREADABLE}unexpected signature algorithm "HS256"; expected one of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512`,
    make: () => {
      const [, claims] = gcp.evidence(gcp.launch()).split(".");
      const head = Buffer.from(JSON.stringify({ alg: "HS256", kid: gcp.keys[0]!.id })).toString("base64url");
      const mac = createHmac("sha256", gcp.keys[0]!.ca.pem).update(`${head}.${claims}`).digest("base64url");
      return evidence(`${head}.${claims}.${mac}`);
    },
  },
  "no key ID": {
    kind: "invalid",
    message: `${UNREADABLE}token has no key ID`,
    make: () => forged({}, {}, { header: { kid: "" } }),
  },
  "T-N8 claims that were changed": {
    message: NOT_GOOGLES,
    make: () => {
      const [head, , signature] = gcp.evidence(gcp.launch()).split(".");
      const claims = Buffer.from(JSON.stringify(gcp.claims(gcp.launch()))).toString("base64url");
      return evidence(`${head}.${claims}.${signature}`);
    },
  },
  "T-N6 a key that Google does not publish, such as a service account's own": {
    message: NOT_GOOGLES,
    make: () => forged({}, {}, { key: stranger }),
  },
  "T-N6 such a key under the ID of Google's": {
    message: NOT_GOOGLES,
    make: () => forged({}, {}, { key: stranger, header: { kid: gcp.keys[0]!.id } }),
  },
  "T-N6 such a key where the token says to look": {
    message: NOT_GOOGLES,
    make: () => {
      const header = { jku: "https://evil.test/jwks", x5c: [Buffer.from(stranger.ca.der).toString("base64")] };
      return forged({}, {}, { key: stranger, header });
    },
  },
  "T-N6 another issuer": {
    message: `${CLAIMS}the issuer is not Google`,
    make: () => forged({ iss: "https://securetoken.google.com/project-1" }),
  },
  "another audience": {
    message: `${CLAIMS}invalid audience claim (aud)`,
    make: () => forged({ aud: "vault/role" }),
  },
  "an expired token": { message: `${CLAIMS}token is expired (exp)`, make: () => forged({ exp: now() - 120 }) },
  "a token without an end": {
    message: `${CLAIMS}"exp" is missing or not of the expected form`,
    make: () => forged({ exp: undefined }),
  },
  "a token of tomorrow": {
    message: `${CLAIMS}token issued in the future (iat)`,
    make: () => forged({ iat: now() + DAY_S, exp: now() + 2 * DAY_S }),
  },
  "T-N6 the token of a user or service account, which is on no instance": {
    message: `${CLAIMS}"google" is missing or not of the expected form`,
    make: () => forged({ google: undefined }),
  },
  "T-N6 an instance name that would change the request": {
    message: `${CLAIMS}"google.compute_engine.instance_name" is missing or not of the expected form`,
    make: () => forged({}, { instance_name: "x/../../y" }),
  },
  "a project that is not allowed": {
    message: 'identity token project ID "project-3" is not in the allow list',
    make: () => shown(gcp.launch({ project: "project-3" })),
  },
  "metadata that is longer than may be": {
    message: 'metadata "role" exceeded value limit (129 > 128)',
    make: () => shown(gcp.launch({ metadata: [{ key: "role", value: "x".repeat(129) }] })),
  },
};

describe("gcp_iit refuses", () => {
  test.each(Object.entries(FORGED))("%s", async (_, { kind = "denied", message, make }) => {
    const { count } = await server.admin.agent.CountAgents({});
    expect(await refused(anonymous, make())).toEqual({ kind, message: PREFIX + message });
    expect(await server.admin.agent.CountAgents({})).toEqual({ count });
  });

  test("T-N6 an instance that has the name by now", async () => {
    gcp.bend = (instance) => ({ ...instance, id: "1" });
    expect(await refused(anonymous, shown(gcp.launch()))).toEqual({
      kind: "denied",
      message: `${PREFIX}failed to fetch instance metadata: another instance has the name`,
    });
  });

  test("an instance that Compute Engine does not know", async () => {
    const instance = gcp.launch();
    gcp.instances.clear();
    expect(await refused(anonymous, shown(instance))).toEqual({
      kind: "unavailable",
      message: `${PREFIX}failed to fetch instance metadata: compute.googleapis.com answered with status 404`,
    });
  });
});

describe("Google's keys", () => {
  test("are kept as long as Google says, and read again for a new one, which cannot be had in a loop", async () => {
    await using own = await serverWith({});
    using apis = own.connect();
    const before = gcp.certificatesRead;
    for (const instance of [gcp.launch(), gcp.launch(), gcp.launch()]) await attestWith(apis, shown(instance));
    expect(gcp.certificatesRead - before).toBe(1);
    for (let tries = 0; tries < 5; tries += 1) await refused(apis, forged({}, {}, { key: stranger }));
    expect(gcp.certificatesRead - before).toBe(1);
  });
});

describe("the server's own credentials", () => {
  const attestAt = async (own: TestServer): Promise<void> => {
    using apis = own.connect();
    for (const instance of [gcp.launch(), gcp.launch()]) await attestWith(apis, shown(instance));
  };
  const account = (changes: object = {}): string =>
    JSON.stringify({
      ...{ type: "service_account", client_email: SERVER_EMAIL, private_key_id: "k1" },
      private_key: encodePem("PRIVATE KEY", privateKeyToPkcs8(gcp.serverKey)),
      token_uri: "https://oauth2.googleapis.com/token",
      ...changes,
    });

  test("are a service account's file", async () => {
    const file = join(folder, "account.json");
    await writeFile(file, account());
    await using own = await serverWith({ use_instance_metadata: true, service_account_file: file });
    gcp.grants.length = 0;
    await attestAt(own);
    expect(gcp.grants).toEqual(["account"]);
    expect(own.output()).not.toContain("PRIVATE KEY");
  });

  test.each([
    ["account", () => account()],
    [
      "user",
      () => '{"type":"authorized_user","client_id":"c","client_secret":"user-secret","refresh_token":"refresh"}',
    ],
  ])("are those of the environment: %s", async (how, content) => {
    const file = join(folder, `${how}-default.json`);
    await writeFile(file, content());
    await using own = await serverWith({ use_instance_metadata: true }, { GOOGLE_APPLICATION_CREDENTIALS: file });
    gcp.grants.length = 0;
    await attestAt(own);
    expect(gcp.grants).toEqual([how]);
  });

  test.each([
    ["a file that is not there", () => join(folder, "nowhere.json"), "no such file"],
    ["a token service without TLS", () => account({ token_uri: "http://evil.test/token" }), "token_uri is not https"],
    ["another kind of file", () => '{"type":"external_account"}', "not a file of credentials that can be used"],
  ])("cannot be had of %s", async (_, content, reason) => {
    const file = join(folder, "bad.json");
    if (content().startsWith("{")) await writeFile(file, content());
    const service_account_file = content().startsWith("{") ? file : content();
    await using own = await serverWith({ use_instance_metadata: true, service_account_file });
    using apis = own.connect();
    const { kind, message } = await refused(apis, shown(gcp.launch()));
    expect(kind).toBe("unavailable");
    expect(message).toContain(`${PREFIX}failed to fetch instance metadata: the server has no credentials of Google: `);
    expect(message).toContain(reason);
  });
});
