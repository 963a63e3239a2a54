import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { signed } from "../../../server/attest/aws/sigv4.ts";
import { parseXml, textAt } from "../../../server/attest/aws/xml.ts";
import { writeEvidence } from "../../../src/evidence/aws-iid.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import { AwsDouble, type AwsInstance, inLines, NODE_ACCOUNT, OTHER_ACCOUNT } from "../../support/aws.ts";
import { cmsSigner, signedData, signerInfo } from "../../support/cms.ts";
import { createCa } from "../../support/pki.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PREFIX = "nodeattestor(aws_iid): ";
const KEYS = { access_key_id: "AKIASERVER", secret_access_key: "server-secret" };
const ROLE = "spire";
const roleIn = (account: string, name = ROLE): string => `arn:aws:iam::${account}:role/${name}`;

// Most tests have a server of their own, which may start slowly where many tests run at once.
const START_MS = 200_000;
vi.setConfig({ testTimeout: START_MS + 60_000, hookTimeout: START_MS + 60_000 });

const scope = new AsyncDisposableStack();
let aws: AwsDouble;
let folder: string;
let server: TestServer;
let anonymous: Apis;

/** A server with these keys of the attestor. */
async function serverWith(config: object, env: Readonly<Record<string, string>> = {}): Promise<TestServer> {
  const nodeAttestors = { aws_iid: { regions: aws.regions, ...config } };
  return await startServer({ nodeAttestors, env: { ...aws.env, ...env }, startMs: START_MS });
}

beforeAll(async () => {
  folder = scope.use(await temporaryDirectory()).path;
  aws = scope.use(await AwsDouble.open());
  for (const account of [NODE_ACCOUNT, OTHER_ACCOUNT]) aws.roles.add(roleIn(account));
  server = scope.use(await serverWith({ ...KEYS, assume_role: ROLE }));
  anonymous = scope.use(server.connect());
});
beforeEach(() => {
  aws.bend = undefined;
  aws.calls.length = 0;
});
afterAll(() => scope[Symbol.asyncDispose]());

const shown = async (instance: AwsInstance): Promise<Evidence> => ({
  type: "aws_iid",
  payload: await aws.evidence(instance),
});

function of(parts: Partial<Parameters<typeof writeEvidence>[0]>): Evidence {
  return { type: "aws_iid", payload: writeEvidence({ document: "", signature: "", rsa2048: "", ...parts }) };
}

const fullInstance = (options: Partial<AwsInstance> = {}): AwsInstance => {
  const profileArn = `arn:aws:iam::${NODE_ACCOUNT}:instance-profile/team/web`;
  aws.profiles.set(profileArn, [roleIn(NODE_ACCOUNT, "Blog"), roleIn(NODE_ACCOUNT, "path/Log")]);
  const groups = [
    { id: "sg-1", name: "web & <more>" },
    { id: "sg-2", name: "db" },
  ];
  return aws.launch({ tags: { name: "blog", "a:b": 'x"y' }, groups, profileArn, ...options });
};

const selectorsFor = ({ id }: AwsInstance): readonly string[] =>
  [
    `account_id:${NODE_ACCOUNT}`,
    "az:us-test-1a",
    "image:id:ami-5fb8c835",
    `instance:id:${id}`,
    "region:us-test-1",
    ...["sg:id:sg-1", "sg:id:sg-2", "sg:name:web & <more>", "sg:name:db"],
    ...["tag:name:blog", 'tag:a:b:x"y'],
    `iamrole:${roleIn(NODE_ACCOUNT, "Blog")}`,
    `iamrole:${roleIn(NODE_ACCOUNT, "path/Log")}`,
  ]
    .map((value) => `aws_iid:${value}`)
    .sort();

describe("aws_iid", () => {
  test.each([true, false])(
    "an agent attests its instance, with every selector; metadata tokens: %s",
    async (tokens) => {
      aws.hasTokens = tokens;
      aws.metadataRequests.length = 0;
      const instance = fullInstance();
      aws.here = instance;
      const nodeAttestor = { aws_iid: { ec2_metadata_endpoint: aws.metadata } };
      await using agent = await startAgent(server, { nodeAttestor, env: aws.net.env, startMs: START_MS });
      const id = `spiffe://example.org/spire/agent/aws_iid/${NODE_ACCOUNT}/us-test-1/${instance.id}`;
      expect(agent.id()).toBe(id);
      expect(await selectorsOf(server, id)).toEqual(selectorsFor(instance));
      expect(aws.metadataRequests.slice(0, 4)).toEqual([
        "PUT /latest/api/token",
        "GET /latest/dynamic/instance-identity/document",
        "GET /latest/dynamic/instance-identity/signature",
        "GET /latest/dynamic/instance-identity/rsa2048",
      ]);
      aws.hasTokens = true;
    },
  );

  test("the metadata service is found by the environment, and what it says of itself is told", async () => {
    aws.here = undefined;
    const env = { ...aws.net.env, AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.metadata };
    await using agent = await startAgent(server, { nodeAttestor: { aws_iid: {} }, env, anyState: true });
    const { error } = await agent.untilLogged("Failed to retrieve attestation result");
    expect(error).toContain("the metadata service answered dynamic/instance-identity/document with status 404");
  });

  test("an instance attests once; its agent renews from then on", async () => {
    const instance = aws.launch();
    const first = await attestWith(anonymous, await shown(instance));
    expect(first.reattestable).toBe(false);
    expect(await refused(anonymous, await shown(instance))).toEqual({
      kind: "denied",
      message: `${PREFIX}attestation data has already been used to attest an agent`,
    });
  });

  test("signatures without signed attributes hold as well", async () => {
    const instance = aws.launch();
    const document = aws.document(instance);
    const rsa2048 = await aws.sign(document, "us-test-1", "-noattr");
    expect((await attestWith(anonymous, of({ document, rsa2048 }))).id).toContain(instance.id);
  });
});

interface Forged {
  readonly kind?: "invalid" | "denied";
  readonly message: string;
  readonly make: () => Evidence | Promise<Evidence>;
}

const FORGED: Readonly<Record<string, Forged>> = {
  "no JSON": {
    kind: "invalid",
    message: "failed to unmarshal the attestation data: not JSON",
    make: () => ({ type: "aws_iid", payload: "secret" }),
  },
  "T-N8 no signature": {
    kind: "invalid",
    message: "instance identity cryptographic signature is required",
    make: () => of({ document: aws.document(aws.launch()) }),
  },
  "T-N8 a signature of RSA-1024 alone": {
    message: "instance identity signature of RSA-2048 is required",
    make: () => of({ document: aws.document(aws.launch()), signature: "c2lnbmVk" }),
  },
  "T-N8 a signature that is no base64": {
    kind: "invalid",
    message: 'failed to unmarshal the attestation data: "rsa2048" is not of the expected form',
    make: () => of({ document: "{}", rsa2048: "***" }),
  },
  "T-N1 a document beside the signature of another": {
    kind: "invalid",
    message: "instance identity document does not match the verified PKCS7 content",
    make: async () => {
      const rsa2048 = await aws.sign(aws.document(aws.launch()), "us-test-1");
      return of({ document: aws.document(aws.launch()), rsa2048 });
    },
  },
  "T-N1 no document beside the signature": {
    kind: "invalid",
    message: "instance identity document does not match the verified PKCS7 content",
    make: async () => of({ rsa2048: await aws.sign(aws.document(aws.launch()), "us-test-1") }),
  },
  "T-N1 the signed document with something after it": {
    kind: "invalid",
    message: "instance identity document does not match the verified PKCS7 content",
    make: async () => {
      const document = aws.document(aws.launch());
      return of({ document: `${document} `, rsa2048: await aws.sign(document, "us-test-1") });
    },
  },
  "T-N1 a detached signature": {
    kind: "invalid",
    message: "the message does not hold the content that it signs",
    make: () => {
      const document = aws.document(aws.launch());
      const signers = [signerInfo(cmsSigner(aws.signers.get("us-test-1")!), Buffer.from(document))];
      return of({ document, rsa2048: inLines(signedData({ content: undefined, signers })) });
    },
  },
  "T-N1 another document in the signature's message": {
    message:
      "failed verification of instance identity cryptographic signature: the signed digest is that of another content",
    make: () => {
      const [honest, document] = [aws.document(aws.launch()), aws.document(aws.launch())];
      const signers = [signerInfo(cmsSigner(aws.signers.get("us-test-1")!), Buffer.from(honest))];
      return of({ document, rsa2048: inLines(signedData({ content: Buffer.from(document), signers })) });
    },
  },
  "T-N1 two contents": {
    kind: "invalid",
    message: "trailing data after an ASN.1 element",
    make: () => {
      const [honest, document] = [aws.document(aws.launch()), aws.document(aws.launch())];
      const signers = [signerInfo(cmsSigner(aws.signers.get("us-test-1")!), Buffer.from(honest))];
      const moreContent = [Buffer.from(document)];
      return of({ document, rsa2048: inLines(signedData({ content: Buffer.from(honest), moreContent, signers })) });
    },
  },
  "T-N1 something after the signature": {
    kind: "invalid",
    message: "trailing data after an ASN.1 element",
    make: async () => {
      const document = aws.document(aws.launch());
      const der = Buffer.from(await aws.sign(document, "us-test-1"), "base64");
      return of({ document, rsa2048: inLines(Buffer.concat([der, Buffer.from("junk")])) });
    },
  },
  "T-N8 the key of a stranger under the name of Amazon's": {
    message: "failed verification of instance identity cryptographic signature: the signature does not verify",
    make: async () => {
      const { issuer, serialNumber } = aws.signers.get("us-test-1")!.certificate;
      const stranger = await createCa({
        ...{ uris: [], keyType: "rsa-2048", issuerName: issuer, serialNumber: BigInt(serialNumber) },
      });
      const document = aws.document(aws.launch());
      return of({ document, rsa2048: await aws.sign(document, stranger) });
    },
  },
  "T-N8 a stranger": {
    message: "instance identity document is signed by no known region of AWS",
    make: async () => {
      const document = aws.document(aws.launch());
      const stranger = await createCa({ uris: [], keyType: "rsa-2048" });
      return of({ document, rsa2048: await aws.sign(document, stranger) });
    },
  },
  "T-N1 a document of one region with the signature of another": {
    message: "instance identity document is of another region than its signature",
    make: async () => {
      const document = aws.document(aws.launch({ region: "us-test-1" }));
      return of({ document, rsa2048: await aws.sign(document, "eu-test-1") });
    },
  },
  "T-N6 an instance ID that would change the request": {
    kind: "invalid",
    message: 'failed to unmarshal the IID: "instanceId" is not of the expected form',
    make: async () => {
      const document = aws.document(aws.launch(), { instanceId: "i-0123456789&Action=x" });
      return of({ document, rsa2048: await aws.sign(document, "us-test-1") });
    },
  },
  "T-N6 a region that would change the host": {
    kind: "invalid",
    message: 'failed to unmarshal the IID: "region" is not of the expected form',
    make: async () => {
      const document = aws.document(aws.launch(), { region: "x.evil.test/" });
      return of({ document, rsa2048: await aws.sign(document, "us-test-1") });
    },
  },
  "an instance that is stopped": {
    message: "failed to query AWS via describe-instances: returned no reservations",
    make: () => shown(aws.launch({ state: "stopped" })),
  },
  "a root volume that came later": {
    message:
      "failed aws ec2 attestation: failed checking the disparity device attach times, root BlockDeviceMapping and NetworkInterface[0] attach times differ by 61 seconds",
    make: () => {
      const at = new Date(1_700_000_000_000);
      return shown(aws.launch({ interfaceAttached: at, rootAttached: new Date(at.getTime() + 61_000) }));
    },
  },
  "no root volume": {
    message: 'failed aws ec2 attestation: failed to locate the root device block mapping with name "/dev/xvda"',
    make: () => shown(aws.launch({ rootAttached: undefined as unknown as Date })),
  },
  "no first network interface": {
    message: "failed aws ec2 attestation: the EC2 instance network interface with device index 0 is inaccessible",
    make: () => shown(aws.launch({ interfaceAttached: undefined as unknown as Date })),
  },
};

describe("aws_iid refuses", () => {
  test.each(Object.entries(FORGED))("%s", async (_, { kind = "denied", message, make }) => {
    const { count } = await server.admin.agent.CountAgents({});
    expect(await refused(anonymous, await make())).toEqual({ kind, message: PREFIX + message });
    expect(await server.admin.agent.CountAgents({})).toEqual({ count });
  });

  test("no evidence that is signed well has a service called before it is verified", async () => {
    const document = aws.document(aws.launch());
    await refused(anonymous, of({ document, rsa2048: await aws.sign(document, "eu-test-1") }));
    expect(aws.calls).toEqual([]);
  });

  test("an instance store needs no root volume", async () => {
    const instance = aws.launch({ rootDeviceType: "instance-store", rootAttached: undefined as unknown as Date });
    expect((await attestWith(anonymous, await shown(instance))).id).toContain(instance.id);
  });
});

describe("T-N6 what AWS answers", () => {
  test.each([
    ["another instance", /<instanceId>i-0/g, "<instanceId>i-f", "returned another instance"],
    ["an instance of another account", /<ownerId>\d+/g, `<ownerId>${OTHER_ACCOUNT}`, "returned another instance"],
    ["two instances", /(<instancesSet>)(<item>.*<\/item>)(<\/instancesSet>)/g, "$1$2$2$3", "returned another instance"],
    ["no owner", /<ownerId>\d+<\/ownerId>/g, "", "returned another instance"],
  ])("counts only for what was asked: not %s", async (_, from, to, reason) => {
    aws.bend = (xml) => xml.replace(from, to);
    const message = `${PREFIX}failed to query AWS via describe-instances: ${reason}`;
    expect(await refused(anonymous, await shown(aws.launch()))).toEqual({ kind: "denied", message });
  });

  test.each([
    ["another action's answer", /DescribeInstancesResponse/g, "GetCallerIdentityResponse", "200 of another form"],
    ["a document type", /\?>/, '?><!DOCTYPE x [<!ENTITY a "b">]>', "200 of another form"],
    ["no XML", /^/, "{", "200 of another form"],
  ])("counts only in its own form: not %s", async (_, from, to, reason) => {
    aws.bend = (xml) => xml.replace(from, to);
    expect(await refused(anonymous, await shown(aws.launch()))).toEqual({
      kind: "unavailable",
      message: `${PREFIX}failed to describe instance: ec2:DescribeInstances was answered with ${reason}`,
    });
  });

  test("comes from the region's own hosts, by requests that were made here", async () => {
    aws.net.requests.length = 0;
    const instance = fullInstance({ region: "eu-test-1" });
    await attestWith(anonymous, await shown(instance));
    expect(aws.net.requests).toEqual([
      "POST https://sts.eu-test-1.amazonaws.com/",
      "POST https://ec2.eu-test-1.amazonaws.com/",
      "POST https://iam.amazonaws.com/",
    ]);
  });

  test("when it is a refusal, its code is told and nothing else", async () => {
    const instance = aws.launch();
    const evidence = await shown(instance);
    aws.instances.delete(instance.id);
    expect(await refused(anonymous, evidence)).toEqual({
      kind: "unavailable",
      message: `${PREFIX}failed to describe instance: ec2:DescribeInstances was answered with 400 InvalidInstanceID.NotFound`,
    });
  });
});

describe("T-N7 accounts with equal names", () => {
  test("each node is looked up by the role in its own account, again and again", async () => {
    for (const account of [NODE_ACCOUNT, OTHER_ACCOUNT, NODE_ACCOUNT, OTHER_ACCOUNT])
      await attestWith(anonymous, await shown(aws.launch({ account })));
    const described = aws.calls.filter((call) => call.includes("DescribeInstances"));
    expect(described).toEqual(
      [NODE_ACCOUNT, OTHER_ACCOUNT, NODE_ACCOUNT, OTHER_ACCOUNT].map((a) => `ec2 us-test-1 DescribeInstances ${a}`),
    );
    expect(aws.calls.filter((call) => call.includes("AssumeRole")).length).toBeLessThanOrEqual(2);
  });

  test("an account without the role is no account of the server's", async () => {
    const evidence = await shown(aws.launch({ account: "444444444444" }));
    expect(await refused(anonymous, evidence)).toEqual({
      kind: "unavailable",
      message: `${PREFIX}failed to get client: sts:AssumeRole was answered with 403 AccessDenied`,
    });
  });

  test("an instance profile of the same name in another account is not the instance's", async () => {
    const profileArn = `arn:aws:iam::${OTHER_ACCOUNT}:instance-profile/same`;
    aws.profiles.set(`arn:aws:iam::${NODE_ACCOUNT}:instance-profile/same`, [roleIn(NODE_ACCOUNT, "admin")]);
    expect(await refused(anonymous, await shown(aws.launch({ profileArn })))).toEqual({
      kind: "denied",
      message: `${PREFIX}arn is not for an instance profile of the account`,
    });
  });

  test.each([
    ["under another path", `arn:aws:iam::${NODE_ACCOUNT}:instance-profile/a/twin`],
    ["in another partition", `arn:aws-cn:iam::${NODE_ACCOUNT}:instance-profile/twin`],
  ])("an instance profile of the same name %s is not the instance's", async (_, profileArn) => {
    aws.profiles.set(`arn:aws:iam::${NODE_ACCOUNT}:instance-profile/twin`, [roleIn(NODE_ACCOUNT, "admin")]);
    const { kind, message } = await refused(anonymous, await shown(aws.launch({ profileArn })));
    expect({ kind, message }).toEqual({ kind: "denied", message: expect.stringMatching(/instance profile/) });
  });

  test("a role of another account in an instance profile is no selector", async () => {
    const profileArn = `arn:aws:iam::${NODE_ACCOUNT}:instance-profile/mixed`;
    aws.profiles.set(profileArn, [roleIn(OTHER_ACCOUNT, "admin")]);
    const { message } = await refused(anonymous, await shown(aws.launch({ profileArn })));
    expect(message).toBe(
      `${PREFIX}failed to get instance profile: failed to get instance profile: a role is not of its account`,
    );
  });
});

describe("aws_iid, configured", () => {
  const attestAt = async (target: TestServer, instance: AwsInstance) => {
    using apis = target.connect();
    return await attestWith(apis, await shown(instance));
  };
  const refusedAt = async (target: TestServer, instance: AwsInstance) => {
    using apis = target.connect();
    return await refused(apis, await shown(instance));
  };

  test("without profiles, without a look at root volumes, with tags in agent IDs", async () => {
    await using own = await serverWith({
      ...{ ...KEYS, assume_role: ROLE, disable_instance_profile_selectors: true, skip_block_device: true },
      agent_path_template: "/{{ .PluginName }}/{{ .Tags.name }}/{{ .InstanceID }}",
    });
    const instance = fullInstance({ rootAttached: new Date(0) });
    const { id } = await attestAt(own, instance);
    expect(id).toBe(`spiffe://example.org/spire/agent/aws_iid/blog/${instance.id}`);
    expect(await selectorsOf(own, id)).toEqual(selectorsFor(instance).filter((each) => !each.includes("iamrole")));
    expect(aws.calls.filter((call) => call.startsWith("iam"))).toEqual([]);
    expect((await refusedAt(own, aws.launch())).message).toContain('failed to make spiffe id: there is no "name"');
  });

  test("root volumes are not looked at in the accounts that are named", async () => {
    const names = { account_ids_for_local_validation: [NODE_ACCOUNT] };
    await using own = await serverWith({ ...KEYS, assume_role: ROLE, ...names });
    const late = { rootAttached: new Date(0) };
    await attestAt(own, aws.launch(late));
    expect((await refusedAt(own, aws.launch({ ...late, account: OTHER_ACCOUNT }))).message).toContain("differ by");
  });

  test("accounts outside the organization are refused, by AWS's list, page after page", async () => {
    aws.roles.add(roleIn(OTHER_ACCOUNT, "lister"));
    aws.organization = ["1", "2", "3", "4"].map((digit) => ({ id: digit.repeat(12), status: "ACTIVE" }));
    const verify_organization = {
      ...{ management_account_id: OTHER_ACCOUNT, assume_org_role: "lister", management_account_region: "us-test-1" },
    };
    await using own = await serverWith({ ...KEYS, assume_role: ROLE, verify_organization });
    await attestAt(own, aws.launch());
    await attestAt(own, aws.launch());
    const target = "AWSOrganizationsV20161128.ListAccounts";
    expect(aws.calls.filter((call) => call.includes(target))).toHaveLength(2);
    aws.organization = [{ id: "555555555555", status: "SUSPENDED" }];
    expect(await refusedAt(own, aws.launch({ account: "555555555555" }))).toEqual({
      kind: "denied",
      message: `${PREFIX}failed aws ec2 attestation, nodes account id: 555555555555 is not part of configured organization or doesn't have ACTIVE status`,
    });
    // Read anew for it.
    expect((await refusedAt(own, aws.launch())).message).toContain("is not part of configured organization");
  });

  test("accounts outside the organization are refused, by a file", async () => {
    const path = join(folder, "accounts.json");
    await writeFile(path, JSON.stringify([NODE_ACCOUNT]));
    await using own = await serverWith({
      ...KEYS,
      assume_role: ROLE,
      verify_organization: { account_list_file: path },
    });
    await attestAt(own, aws.launch());
    const other = { account: OTHER_ACCOUNT };
    expect((await refusedAt(own, aws.launch(other))).message).toContain("is not part of configured organization");
    await writeFile(path, "[1]");
    expect(await refusedAt(own, aws.launch(other))).toMatchObject({ kind: "invalid" });
    await writeFile(path, JSON.stringify([OTHER_ACCOUNT]));
    await attestAt(own, aws.launch(other));
  });

  test("instances outside the clusters are refused", async () => {
    const [inside, outside] = [aws.launch(), aws.launch()];
    aws.clusters.set("one", [inside.id]).set("two", ["i-0", "i-1"]);
    const membership = { validate_eks_cluster_membership: { eks_cluster_names: ["one", "two"] } };
    await using own = await serverWith({ ...KEYS, assume_role: ROLE, ...membership });
    await attestAt(own, inside);
    expect(await refusedAt(own, outside)).toEqual({
      kind: "denied",
      message: `${PREFIX}failed aws eks attestation, nodes id: ${outside.id} is not part of configured EKS cluster`,
    });
    aws.clusters.set("two", ["i-0", outside.id]);
    await attestAt(own, outside);
  });

  const serverAccount = { account: "111111111111" };
  test.each([
    ["keys of the environment", { AWS_ACCESS_KEY_ID: "AKIASERVER", AWS_SECRET_ACCESS_KEY: "server-secret" }],
    ["the role of the instance", {}],
  ])("the server is who it is by %s", async (_, env) => {
    await using own = await serverWith({}, env);
    await attestAt(own, aws.launch(serverAccount));
  });

  test("the server is who it is by a web identity", async () => {
    const file = join(folder, "web-token");
    await writeFile(file, "web-token\n");
    const env = { AWS_WEB_IDENTITY_TOKEN_FILE: file, AWS_ROLE_ARN: "arn:aws:iam::111111111111:role/server" };
    await using own = await serverWith({}, env);
    await attestAt(own, aws.launch(serverAccount));
    await writeFile(file, "another");
    await attestAt(own, aws.launch(serverAccount));
    expect((await refusedAt(own, aws.launch({ ...serverAccount, region: "eu-test-1" }))).message).toBe(
      `${PREFIX}failed to get client: sts:AssumeRoleWithWebIdentity was answered with 400 InvalidIdentityToken`,
    );
  });

  test("the server is who it is by the shared credentials file, in its profile", async () => {
    const file = join(folder, "credentials");
    const profile = "aws_access_key_id = AKIASERVER\naws_secret_access_key = server-secret\n";
    await writeFile(file, `[default]\naws_access_key_id = x\naws_secret_access_key = y\n[ server ]\n${profile}`);
    await using own = await serverWith({}, { AWS_SHARED_CREDENTIALS_FILE: file, AWS_PROFILE: "server" });
    await attestAt(own, aws.launch(serverAccount));
  });

  test("keys that end are replaced in time", async () => {
    aws.sessionSeconds = 200;
    await using own = await serverWith({ ...KEYS, assume_role: ROLE });
    for (const instance of [aws.launch(), aws.launch()]) await attestAt(own, instance);
    aws.sessionSeconds = 3600;
    expect(aws.calls.filter((call) => call.includes("AssumeRole"))).toHaveLength(2);
  });
});

describe("Signature Version 4", () => {
  const keys = { accessKeyId: "AKIDEXAMPLE", secretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" };
  const at = new Date("2015-08-30T12:36:00Z");
  const FORM = { "content-type": "application/x-www-form-urlencoded; charset=utf-8" };
  const LIST = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08";
  test.each([
    [
      "GET",
      "https://example.amazonaws.com/",
      "service",
      {},
      "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ],
    [
      "POST",
      "https://example.amazonaws.com/",
      "service",
      {},
      "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ],
    ["GET", LIST, "iam", FORM, "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"],
  ] as const)("%s %s is signed as AWS's documentation has it", (method, url, service, headers, signature) => {
    const request = { method, url: new URL(url), headers, body: "", service, region: "us-east-1" };
    expect(signed(request, keys, at)["authorization"]).toMatch(new RegExp(`Signature=${signature}$`));
  });
});

describe("XML", () => {
  test("of a query API is read", () => {
    const root = parseXml(
      '<?xml version="1.0"?>\n<!-- c -->\n<a x="1"><b>1 &lt; 2 &#38; &#x33;</b><c/><b2 y=\'2\'/>\n</a>\n',
    );
    expect(textAt(root, "b")).toBe("1 < 2 & 3");
    expect(textAt(root, "c")).toBe("");
    expect(textAt(root, "d")).toBeUndefined();
  });

  test.each([
    ...["", "<a>", "</a>", "<a></b>", "<a/><b/>", "<a/>x", "<a>&x;</a>", "<a>&amp</a>", "<a x=1/>", "<a"],
    ...["<!DOCTYPE a><a/>", "<a><![CDATA[x]]></a>", "<a>&#x110000;</a>", "<a>".repeat(40) + "</a>".repeat(40)],
  ])("is refused: %s", (text) => {
    expect(() => parseXml(text)).toThrow(SyntaxError);
  });
});
