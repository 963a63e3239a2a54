import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import {
  APP,
  AzureDouble,
  type AzureMachine,
  FEDERATED,
  issueSigner,
  SUBSCRIPTION,
  TENANT,
} from "../../support/azure.ts";
import { cmsSigner, contentTypeAttribute, digestAttribute, signedData, signerInfo } from "../../support/cms.ts";
import { createCa, type Issued } from "../../support/pki.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PREFIX = "nodeattestor(azure_imds): ";
const DOCUMENT = "failed to validate attested document: ";
const OTHER_SUBSCRIPTION = "33333333-aaaa-4bbb-8ccc-000000000003";

// Some tests have a server of their own, which may start slowly where many tests run at once.
const START_MS = 200_000;
vi.setConfig({ testTimeout: START_MS + 60_000, hookTimeout: START_MS + 60_000 });

const scope = new AsyncDisposableStack();
let azure: AzureDouble;
let folder: string;
let server: TestServer;
let anonymous: Apis;

const tenant = { secret_auth: APP, allowed_vm_tags: ["role", "absent"], restrict_to_subscriptions: [SUBSCRIPTION] };

async function serverWith(tenantKeys: object, config: object = {}, env = {}): Promise<TestServer> {
  const azure_imds = { tenants: { [TENANT.domain]: tenantKeys }, trust_bundle_path: azure.rootPath, ...config };
  return await startServer({ nodeAttestors: { azure_imds }, env: { ...azure.env, ...env }, startMs: START_MS });
}

beforeAll(async () => {
  folder = scope.use(await temporaryDirectory()).path;
  azure = scope.use(await AzureDouble.open());
  server = scope.use(await serverWith(tenant));
  anonymous = scope.use(server.connect());
});
beforeEach(() => {
  azure.bend = undefined;
});
afterAll(() => scope[Symbol.asyncDispose]());

/** Evidence whose answer to the nonce is this. */
function answering(respond: (nonce: string) => string): Evidence {
  return { type: "azure_imds", payload: "non_empty_payload", respond: (challenge) => respond(challenge.toString()) };
}

const shown = (machine: AzureMachine, metadata?: object): Evidence =>
  answering((nonce) => azure.answer(azure.sign(azure.document(machine, nonce)), metadata));

const nics = [
  {
    group: { resourceGroup: "Net-RG", name: "nsg-1" },
    subnets: [
      { resourceGroup: "Net-RG", network: "vnet-1", name: "front" },
      { resourceGroup: "Net-RG", network: "vnet-1", name: "back" },
    ],
  },
  { subnets: [{ resourceGroup: "Net-RG", network: "vnet-2", name: "front" }] },
];

const networkSelectors = [
  "network-security-group:Net-RG:nsg-1",
  ...["virtual-network:vnet-1", "virtual-network-subnet:vnet-1:front", "virtual-network-subnet:vnet-1:back"],
  ...["virtual-network:vnet-2", "virtual-network-subnet:vnet-2:front"],
];

const selectors = (...values: readonly string[]): readonly string[] =>
  values.map((value) => `azure_imds:${value}`).sort();

describe("azure_imds", () => {
  test("an agent attests its machine, with every selector", async () => {
    const machine = azure.launch({ nics, tags: { role: "a:b", secret: "no" } });
    azure.here = machine;
    const nodeAttestor = { azure_imds: { tenant_domain: TENANT.domain } };
    await using agent = await startAgent(server, { nodeAttestor, env: azure.env, startMs: START_MS });
    const id = `spiffe://example.org/spire/agent/azure_imds/${TENANT.id}/${SUBSCRIPTION}/${machine.vmId}`;
    expect(agent.id()).toBe(id);
    expect(await selectorsOf(server, id)).toEqual(
      selectors(
        ...[
          `subscription-id:${SUBSCRIPTION}`,
          `vm-name:${machine.name}`,
          "vm-location:eastus",
          "resource-group:web-rg",
        ],
        ...["vm-tag:role:a:b", ...networkSelectors],
      ),
    );
  });

  test("a member of a scale set attests, with the set's name as Azure spells it", async () => {
    azure.launch({ scaleSet: "Pool-1" });
    const machine = azure.launch({ scaleSet: "Pool-1", nics, tags: { role: "x" } });
    const { id } = await attestWith(anonymous, shown(machine, { agentDomain: TENANT.domain, vmssName: "pool-1" }));
    expect(await selectorsOf(server, id)).toEqual(
      selectors(
        ...[
          `subscription-id:${SUBSCRIPTION}`,
          `vm-name:${machine.name}`,
          "vm-location:eastus",
          "resource-group:web-rg",
        ],
        ...["vmss-name:Pool-1", "vm-tag:role:x", ...networkSelectors],
      ),
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

  test("the issuer is fetched once, from Microsoft; no host of the peer's choice is ever asked", async () => {
    await using own = await serverWith(tenant);
    using apis = own.connect();
    const fetched = (): readonly string[] => azure.net.requests.filter((each) => each.includes("www.microsoft.com"));
    const before = fetched().length;
    for (const machine of [azure.launch(), azure.launch()]) await attestWith(apis, shown(machine));
    expect(fetched().slice(before)).toEqual(["GET http://www.microsoft.com/pkiops/certs/Test%20Issuing%20CA%2001.crt"]);
  });
});

const signers: Record<string, Issued> = {};

/** A document of a new machine over the nonce, signed in this way. */
const signedBy = (make: (content: Buffer) => Buffer | string): Evidence =>
  answering((nonce) => {
    const made = make(azure.document(azure.launch(), nonce));
    return azure.answer(typeof made === "string" ? made : made.toString("base64"));
  });

const honest = (content: Buffer): Buffer => signerInfo(cmsSigner(azure.signer), content);

describe("T-N2 who signed", () => {
  beforeAll(async () => {
    const selfSigned = { uris: [], keyType: "rsa-2048", dnsNames: ["eastus.metadata.azure.com"] } as const;
    signers["stranger"] = await createCa({ ...selfSigned, keyUsage: ["digitalSignature"] });
    signers["twin"] = await createCa({
      ...{ ...selfSigned, issuerName: azure.signer.certificate.issuer },
      serialNumber: BigInt(azure.signer.certificate.serialNumber),
    });
    signers["elsewhere"] = await issueSigner(azure.issuing, { dnsNames: ["metadata.azure.com.evil.test"] });
    signers["expired"] = await issueSigner(azure.issuing, { notAfter: new Date(Date.now() - 1000) });
    signers["client"] = await issueSigner(azure.issuing, { extKeyUsage: ["1.3.6.1.5.5.7.3.2"] });
    signers["ssrf"] = await issueSigner(azure.issuing, {}, "http://169.254.169.254/pkiops/certs/x.crt");
    signers["path"] = await issueSigner(azure.issuing, {}, "http://www.microsoft.com/en-us/x.crt");
    signers["below"] = await issueSigner(await azure.issuing.intermediate({ ca: false, uris: [] }));
  });

  test.each([
    ["first", () => [azure.signer.der, azure.issuing.der, azure.root.der]],
    ["last", () => [azure.root.der, azure.issuing.der, azure.signer.der]],
    ["among strangers", () => [signers["stranger"]!.der, azure.signer.der, signers["elsewhere"]!.der]],
  ])("is found wherever its certificate stands: %s", async (_, certificates) => {
    const make = (content: Buffer): Buffer =>
      signedData({ content, certificates: certificates(), signers: [honest(content)] });
    await attestWith(anonymous, signedBy(make));
  });

  const REFUSED: Readonly<Record<string, [reason: string, make: (content: Buffer) => Buffer | string]>> = {
    "a stranger": [
      "CA Issuers URL of the signing certificate is not one of www.microsoft.com",
      (content) => azure.sign(content, signers["stranger"]),
    ],
    "a stranger, with Azure's certificate first in the bag": [
      "CA Issuers URL of the signing certificate is not one of www.microsoft.com",
      (content) => {
        const certificates = [azure.signer.der, azure.issuing.der, signers["stranger"]!.der];
        return signedData({ content, certificates, signers: [signerInfo(cmsSigner(signers["stranger"]!), content)] });
      },
    ],
    "a stranger, who has the name and number of Azure's certificate": [
      "the message does not hold the one certificate of its signer",
      (content) => {
        const certificates = [signers["twin"]!.der, azure.signer.der];
        return signedData({ content, certificates, signers: [signerInfo(cmsSigner(signers["twin"]!), content)] });
      },
    ],
    "a stranger, who says it was Azure's certificate": [
      "the signature does not verify",
      (content) => {
        const liar = { key: cmsSigner(signers["stranger"]!).key, certificate: azure.signer.certificate };
        return signedData({ content, certificates: [azure.signer.der], signers: [signerInfo(liar, content)] });
      },
    ],
    "Azure and a stranger": [
      "the message has 2 signers instead of one",
      (content) => {
        const both = [honest(content), signerInfo(cmsSigner(signers["stranger"]!), content)];
        return signedData({ content, certificates: [azure.signer.der, signers["stranger"]!.der], signers: both });
      },
    ],
    nobody: [
      "the message has 0 signers instead of one",
      (content) => signedData({ content, certificates: [azure.signer.der], signers: [] }),
    ],
    "Azure, without the digest of the content": [
      "the signed attributes do not hold the digest of the content",
      (content) => {
        const attributes = [contentTypeAttribute()];
        const signer = signerInfo(cmsSigner(azure.signer), content, { attributes });
        return signedData({ content, certificates: [azure.signer.der], signers: [signer] });
      },
    ],
    "Azure, another content": [
      "the signed digest is that of another content",
      (content) => {
        const attributes = [contentTypeAttribute(), digestAttribute(Buffer.from("{}"))];
        const signer = signerInfo(cmsSigner(azure.signer), content, { attributes });
        return signedData({ content, certificates: [azure.signer.der], signers: [signer] });
      },
    ],
    "a server of another domain, by the same issuer": [
      "signing certificate validation failed: certificate does not have any valid domain in SAN",
      (content) => azure.sign(content, signers["elsewhere"]),
    ],
    "an expired certificate": [
      "certificate chain validation failed: x509: certificate has expired",
      (content) => azure.sign(content, signers["expired"]),
    ],
    "a certificate for clients": [
      "signing certificate validation failed: certificate is not for servers",
      (content) => azure.sign(content, signers["client"]),
    ],
    "a certificate below one that is no authority": [
      "certificate chain validation failed: x509: certificate signed by unknown authority",
      (content) => azure.sign(content, signers["below"]),
    ],
    "a certificate whose issuer would be on the metadata service": [
      "CA Issuers URL of the signing certificate is not one of www.microsoft.com",
      (content) => azure.sign(content, signers["ssrf"]),
    ],
    "a certificate whose issuer would be elsewhere at Microsoft": [
      "CA Issuers URL of the signing certificate is not one of www.microsoft.com",
      (content) => azure.sign(content, signers["path"]),
    ],
  };

  test.each(Object.entries(REFUSED))("is not believed: %s", async (_, [reason, make]) => {
    const before = azure.net.requests.filter((each) => !each.includes("www.microsoft.com/pkiops")).length;
    const { count } = await server.admin.agent.CountAgents({});
    const { kind, message } = await refused(anonymous, signedBy(make));
    expect(message).toContain(`${PREFIX}${DOCUMENT}${reason}`);
    expect(kind).toMatch(/^(invalid|denied)$/);
    expect(await server.admin.agent.CountAgents({})).toEqual({ count });
    expect(azure.net.requests.filter((each) => !each.includes("www.microsoft.com/pkiops"))).toHaveLength(before);
  });
});

describe("azure_imds refuses", () => {
  test("a document over another nonce, such as one from before", async () => {
    const machine = azure.launch();
    let seen = "";
    const first = answering((nonce) => {
      seen = azure.answer(azure.sign(azure.document(machine, nonce)));
      return "{}";
    });
    await refused(anonymous, first);
    const message = `${PREFIX}${DOCUMENT}nonce mismatch`;
    expect(
      await refused(
        anonymous,
        answering(() => seen),
      ),
    ).toEqual({ kind: "denied", message });
  });

  test("another payload", async () => {
    const { kind } = await refused(anonymous, { ...shown(azure.launch()), payload: "{}" });
    expect(kind).toBe("invalid");
  });

  test.each([
    [
      "T-N6 a machine ID that would change the query",
      { vmId: "x' or true" },
      `${DOCUMENT}failed to unmarshal attested document payload: "vmId" is not of the expected form`,
    ],
    [
      "T-N6 a subscription that would change the request",
      { subscriptionId: "../x" },
      `${DOCUMENT}failed to unmarshal attested document payload: "subscriptionId" is not of the expected form`,
    ],
    [
      "no nonce",
      { nonce: null },
      `${DOCUMENT}failed to unmarshal attested document payload: "nonce" is not of the expected form`,
    ],
  ])("%s", async (_, changes, reason) => {
    const machine = azure.launch();
    const evidence = answering((nonce) => azure.answer(azure.sign(azure.document(machine, nonce, changes))));
    expect(await refused(anonymous, evidence)).toEqual({ kind: "invalid", message: PREFIX + reason });
  });

  test.each([
    [
      "T-N6 a scale set that would change the query",
      { agentDomain: TENANT.domain, vmssName: "x' or true" },
      "invalid",
      'failed to unmarshal data payload: "metadata.vmssName" is not of the expected form',
    ],
    [
      "a tenant that is not configured",
      { agentDomain: "other.test", vmssName: null },
      "denied",
      'tenant "other.test" is not authorized',
    ],
    [
      "a tenant with the name of a property",
      { agentDomain: "__proto__", vmssName: null },
      "denied",
      'tenant "__proto__" is not authorized',
    ],
    [
      "a scale set that is not there",
      { agentDomain: TENANT.domain, vmssName: "nowhere" },
      "denied",
      "scale set nowhere not found",
    ],
  ])("%s", async (_, metadata, kind, message) => {
    expect(await refused(anonymous, shown(azure.launch(), metadata))).toEqual({ kind, message: PREFIX + message });
  });

  test("a subscription that is not allowed", async () => {
    const machine = azure.launch({ subscription: OTHER_SUBSCRIPTION });
    expect(await refused(anonymous, shown(machine))).toEqual({
      kind: "denied",
      message: `${PREFIX}subscription "${OTHER_SUBSCRIPTION}" is not authorized`,
    });
  });

  test("T-N7 a machine of another scale set of the account", async () => {
    azure.launch({ scaleSet: "pool-a" });
    const machine = azure.launch({ scaleSet: "pool-b" });
    const evidence = shown(machine, { agentDomain: TENANT.domain, vmssName: "pool-a" });
    expect((await refused(anonymous, evidence)).message).toBe(`${PREFIX}VMSS instance "${machine.vmId}" not found`);
  });

  test.each([
    ["another machine", { vmId: "44444444-aaaa-4bbb-8ccc-000000000004" }],
    [
      "a machine of another subscription",
      { id: `/subscriptions/${OTHER_SUBSCRIPTION}/resourceGroups/x/providers/Microsoft.Compute/virtualMachines/y` },
    ],
    [
      "something that is no machine",
      { id: `/subscriptions/${SUBSCRIPTION}/resourceGroups/x/providers/Microsoft.Storage/storageAccounts/y` },
    ],
  ])("T-N6 an answer of Azure about %s", async (_, changes) => {
    azure.bend = (body) => ({ ...body, data: (body["data"] as object[]).map((row) => ({ ...row, ...changes })) });
    expect(await refused(anonymous, shown(azure.launch()))).toEqual({
      kind: "denied",
      message: `${PREFIX}Azure answered with another virtual machine`,
    });
  });

  test("T-N6 a next page on another host", async () => {
    azure.launch({ scaleSet: "paged" });
    const machine = azure.launch({ scaleSet: "paged" });
    azure.bend = (body) => ("nextLink" in body ? { ...body, nextLink: "https://evil.test/x" } : body);
    const evidence = shown(machine, { agentDomain: TENANT.domain, vmssName: "paged" });
    expect(await refused(anonymous, evidence)).toEqual({
      kind: "unavailable",
      message: `${PREFIX}the next page is on another host`,
    });
  });
});

describe("the server's own credentials", () => {
  const attestAt = async (own: TestServer): Promise<void> => {
    using apis = own.connect();
    azure.grants.length = 0;
    for (const machine of [azure.launch(), azure.launch()]) await attestWith(apis, shown(machine));
  };

  test("are a token of another issuer", async () => {
    const token_path = join(folder, "token");
    await writeFile(token_path, FEDERATED);
    await using own = await serverWith({ token_auth: { app_id: APP.app_id, token_path } });
    await attestAt(own);
    expect(azure.grants).toEqual(["assertion"]);
  });

  test.each([
    ["secret", { AZURE_CLIENT_ID: APP.app_id, AZURE_CLIENT_SECRET: APP.app_secret }],
    ["identity", {}],
  ])("are those of the environment: %s", async (how, env) => {
    azure.here = undefined;
    await using own = await serverWith({}, {}, env);
    await attestAt(own);
    expect(azure.grants).toEqual([how]);
  });

  test("have to be right, and are not told", async () => {
    await using own = await serverWith({ secret_auth: { ...APP, app_secret: "wrong-secret" } });
    using apis = own.connect();
    expect(await refused(apis, shown(azure.launch()))).toEqual({
      kind: "unavailable",
      message: `${PREFIX}login.microsoftonline.com answered with status 401`,
    });
    expect(own.output()).not.toContain("wrong-secret");
  });
});
