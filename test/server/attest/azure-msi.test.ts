import { generateKeyPairSync } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { writeEvidence } from "../../../src/evidence/azure-msi.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import { APP, AzureDouble, type AzureMachine, SUBSCRIPTION, TENANT } from "../../support/azure.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";

const PREFIX = "nodeattestor(azure_msi): ";
const AUDIENCE = "api://spire-server";
const OTHER_TENANT = "55555555-aaaa-4bbb-8ccc-000000000005";
const stranger = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;

// Some tests have a server of their own, which may start slowly where many tests run at once.
const START_MS = 200_000;
vi.setConfig({ testTimeout: START_MS + 60_000, hookTimeout: START_MS + 60_000 });

const scope = new AsyncDisposableStack();
let azure: AzureDouble;
let server: TestServer;
let anonymous: Apis;

async function serverWith(tenant: object): Promise<TestServer> {
  const nodeAttestors = { azure_msi: { tenants: { [TENANT.id]: tenant } } };
  return await startServer({ nodeAttestors, env: azure.env, startMs: START_MS });
}

beforeAll(async () => {
  azure = scope.use(await AzureDouble.open());
  server = scope.use(await serverWith({ resource_id: AUDIENCE, subscription_id: SUBSCRIPTION, ...APP }));
  anonymous = scope.use(server.connect());
});
beforeEach(() => {
  azure.bend = undefined;
});
afterAll(() => scope[Symbol.asyncDispose]());

const evidence = (token: string): Evidence => ({ type: "azure_msi", payload: writeEvidence(token) });
const shown = (machine: AzureMachine, audience = AUDIENCE): Evidence =>
  evidence(azure.token(azure.claims(machine, audience)));
const forged = (claims: object = {}, how: Parameters<AzureDouble["token"]>[1] = {}): Evidence =>
  evidence(azure.token({ ...azure.claims(azure.launch(), AUDIENCE), ...claims }, how));

describe("azure_msi", () => {
  test("an agent attests its machine, with every selector", async () => {
    const machine = azure.launch({
      nics: [
        {
          group: { resourceGroup: "Net-RG", name: "nsg-1" },
          subnets: [{ resourceGroup: "Net-RG", network: "vnet-1", name: "front" }],
        },
        { subnets: [{ resourceGroup: "Web-RG", network: "vnet-1", name: "front" }] },
      ],
    });
    azure.here = machine;
    const nodeAttestor = { azure_msi: { resource_id: AUDIENCE } };
    await using agent = await startAgent(server, { nodeAttestor, env: azure.env, startMs: START_MS });
    const id = `spiffe://example.org/spire/agent/azure_msi/${TENANT.id}/${machine.principalId}`;
    expect(agent.id()).toBe(id);
    expect(await selectorsOf(server, id)).toEqual(
      [
        ...[`subscription-id:${SUBSCRIPTION}`, `vm-name:Web-RG:${machine.name}`, "network-security-group:Net-RG:nsg-1"],
        ...["virtual-network:Net-RG:vnet-1", "virtual-network-subnet:Net-RG:vnet-1:front"],
        ...["virtual-network:Web-RG:vnet-1", "virtual-network-subnet:Web-RG:vnet-1:front"],
      ]
        .map((value) => `azure_msi:${value}`)
        .sort(),
    );
  });

  test("a machine attests once; its agent renews from then on", async () => {
    const machine = azure.launch();
    expect((await attestWith(anonymous, shown(machine))).reattestable).toBe(false);
    expect(await refused(anonymous, shown(machine))).toEqual({
      kind: "denied",
      message: `${PREFIX}attestation data has already been used to attest an agent`,
    });
  });

  test("tokens of either version are taken; keys are read once", async () => {
    const before = azure.keysRead;
    await attestWith(anonymous, forged({ iss: `https://login.microsoftonline.com/${TENANT.id}/v2.0` }));
    await attestWith(anonymous, forged());
    for (let tries = 0; tries < 3; tries += 1) await refused(anonymous, forged({}, { header: { kid: "key-2" } }));
    expect(azure.keysRead - before).toBeLessThanOrEqual(1);
  });

  test("without an application, the server is its machine's identity, in its machine's subscription", async () => {
    azure.here = undefined;
    azure.grants.length = 0;
    await using own = await serverWith({});
    using apis = own.connect();
    for (const machine of [azure.launch(), azure.launch()])
      await attestWith(apis, shown(machine, "https://management.azure.com/"));
    expect(azure.grants).toEqual(["identity"]);
  });
});

interface Forged {
  readonly kind?: "invalid" | "denied";
  readonly message: string;
  readonly make: () => Evidence;
}

const CLAIMS = "unable to validate token claims: ";
const now = (): number => Math.floor(Date.now() / 1000);

const FORGED: Readonly<Record<string, Forged>> = {
  "no token": { kind: "invalid", message: "missing token from attestation data", make: () => evidence("") },
  "no JWT": {
    kind: "invalid",
    message: "unable to parse token: token is not a JWS in compact form: it must have three parts",
    make: () => evidence("secret"),
  },
  "no key ID": {
    kind: "invalid",
    message: "unable to parse token: token missing key id",
    make: () => forged({}, { header: { kid: "" } }),
  },
  "T-N8 a token that needs no signature, as it says": {
    kind: "invalid",
    message:
      'unable to parse token: unexpected signature algorithm "none"; expected one of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512',
    make: () => forged({}, { header: { alg: "none" } }),
  },
  "T-N8 an algorithm of another kind of key": {
    message: "unable to verify token: the signature does not verify",
    make: () => forged({}, { header: { alg: "ES256" } }),
  },
  "T-N6 a key that Azure does not publish": {
    message: 'key id "key-9" not found',
    make: () => forged({}, { key: stranger, header: { kid: "key-9", jku: "https://evil.test/keys" } }),
  },
  "T-N6 such a key under the ID of Azure's": {
    message: "unable to verify token: the signature does not verify",
    make: () => forged({}, { key: stranger }),
  },
  "another audience": { message: `${CLAIMS}invalid audience (aud)`, make: () => forged({ aud: "api://other" }) },
  "an expired token": { message: `${CLAIMS}token is expired (exp)`, make: () => forged({ exp: now() - 400 }) },
  "a token without an end": {
    message: `${CLAIMS}"exp" is missing or not of the expected form`,
    make: () => forged({ exp: undefined }),
  },
  "a token of tomorrow": {
    message: `${CLAIMS}token not valid yet (nbf)`,
    make: () => forged({ nbf: now() + 86_400, exp: now() + 90_000 }),
  },
  "T-N7 a token of another tenant that names this one": {
    message: `${CLAIMS}the issuer is not that of the tenant`,
    make: () => forged({ iss: `https://sts.windows.net/${OTHER_TENANT}/` }),
  },
  "T-N7 another tenant": {
    message: `tenant "${OTHER_TENANT}" is not authorized`,
    make: () => forged({ tid: OTHER_TENANT, iss: `https://sts.windows.net/${OTHER_TENANT}/` }),
  },
  "T-N6 a principal that would change the request": {
    message: `${CLAIMS}"sub" is missing or not of the expected form`,
    make: () => forged({ sub: "x' or resourceType eq 'y" }),
  },
  "a principal that is no machine's": {
    message: `unable to get resource for principal "66666666-aaaa-4bbb-8ccc-000000000006": not found`,
    make: () => forged({ sub: "66666666-aaaa-4bbb-8ccc-000000000006" }),
  },
};

describe("azure_msi refuses", () => {
  test.each(Object.entries(FORGED))("%s", async (_, { kind = "denied", message, make }) => {
    const { count } = await server.admin.agent.CountAgents({});
    expect(await refused(anonymous, make())).toEqual({ kind, message: PREFIX + message });
    expect(await server.admin.agent.CountAgents({})).toEqual({ count });
  });

  test.each([
    ["another principal's machine", { identity: { principalId: OTHER_TENANT } }],
    ["a machine without an identity", { identity: null }],
    [
      "another machine",
      { id: `/subscriptions/${SUBSCRIPTION}/resourceGroups/x/providers/Microsoft.Compute/virtualMachines/y` },
    ],
  ])("T-N6 an answer of Azure about %s", async (_, changes) => {
    azure.bend = (body) => ("identity" in body ? { ...body, ...changes } : body);
    expect(await refused(anonymous, shown(azure.launch()))).toEqual({
      kind: "denied",
      message: `${PREFIX}Azure answered with another virtual machine`,
    });
  });

  test("T-N7 two machines for one principal", async () => {
    const machine = azure.launch();
    azure.launch({ principalId: machine.principalId });
    expect((await refused(anonymous, shown(machine))).message).toBe(
      `${PREFIX}expected one result for principal "${machine.principalId}" at most`,
    );
  });

  test("T-N9 keys on another host than the cloud's", async () => {
    azure.jwksUri = "https://evil.test/keys";
    await using own = await serverWith({ resource_id: AUDIENCE, subscription_id: SUBSCRIPTION, ...APP });
    using apis = own.connect();
    expect(await refused(apis, shown(azure.launch()))).toEqual({
      kind: "unavailable",
      message: `${PREFIX}unable to obtain JWKS: its keys are on another host`,
    });
    azure.jwksUri = "https://login.microsoftonline.com/common/discovery/keys";
    expect(azure.net.requests.filter((each) => each.includes("evil.test"))).toEqual([]);
  });
});
