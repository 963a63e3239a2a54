import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { attestWith, type Evidence, refused } from "../../support/attest.ts";
import {
  attestorsOf,
  type NodeMethod,
  nodeMethodNames,
  openNodeMethods,
  type Shown,
} from "../../support/node-evidence.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const scope = new AsyncDisposableStack();
let methods: readonly NodeMethod[];
let server: TestServer;
let anonymous: Apis;

beforeAll(async () => {
  const { path: folder } = scope.use(await temporaryDirectory());
  methods = await openNodeMethods(scope, { folder, createToken: () => server.createToken(), machines: 2 });
  server = scope.use(await startServer(attestorsOf(methods)));
  anonymous = scope.use(server.connect());
});
afterAll(() => scope[Symbol.asyncDispose]());

test("there is a table for every method", () => {
  expect(methods.map(({ name }) => name)).toEqual(nodeMethodNames);
});

const show = (name: string, worker = 0): Promise<Shown> =>
  (methods.find((method) => method.name === name) as NodeMethod).show(worker);

const MISFORMED: Readonly<Record<string, (honest: Buffer) => Uint8Array>> = {
  nothing: () => Buffer.alloc(0),
  "the first half": (honest) => honest.subarray(0, honest.length / 2),
  "all but the last byte": (honest) => honest.subarray(0, -1),
  "a byte too many": (honest) => Buffer.concat([honest, Buffer.from("x")]),
  "twice the same": (honest) => Buffer.concat([honest, honest]),
  "bytes that are no UTF-8": () => Buffer.of(0xff, 0xfe, 0x00),
  null: () => Buffer.from("null"),
  "a number": () => Buffer.from("1e999"),
  "an empty object": () => Buffer.from("{}"),
  "a list": (honest) => Buffer.from(`[${honest}]`),
  "lists in lists": () => Buffer.from("[".repeat(100_000) + "]".repeat(100_000)),
  "a prototype": () => Buffer.from('{"__proto__":{"certificates":["AA=="],"cluster":"one"}}'),
  "more than anybody needs": (honest) => Buffer.concat([honest, Buffer.alloc(512 * 1024, " ")]),
};

/** The members of the object, each of another type. */
function mistyped(honest: Buffer): readonly Buffer[] {
  const members = JSON.parse(honest.toString()) as Readonly<Record<string, unknown>>;
  return Object.keys(members).flatMap((key) =>
    [{}, [[]], -1, "*"].map((value) => Buffer.from(JSON.stringify({ ...members, [key]: value }))),
  );
}

async function expectRefused(what: string, evidence: Evidence): Promise<void> {
  const { kind, message } = await refused(anonymous, evidence);
  expect([what, kind]).toEqual([what, expect.stringMatching(/^(invalid|denied)$/)]);
  expect([what, message.length < 400, message]).toEqual([what, true, expect.not.stringContaining("    at ")]);
}

describe.each(nodeMethodNames)("T-N8 evidence by %s", (name) => {
  test("attests when it is honest, and in no other form; nothing is stored for what is refused", async () => {
    await using evidence = await show(name);
    const { count } = await server.admin.agent.CountAgents({});
    const honest = Buffer.from(evidence.payload);
    for (const [what, change] of Object.entries(MISFORMED))
      await expectRefused(what, { ...evidence, payload: change(honest) });
    if (honest.toString("latin1", 0, 1) === "{")
      for (const payload of mistyped(honest)) await expectRefused(payload.toString(), { ...evidence, payload });
    for (const type of new Set(methods.map((method) => method.name.split(",")[0] ?? "")))
      if (type !== evidence.type) await expectRefused(`as ${type}`, { ...evidence, type });
    expect(await server.admin.agent.CountAgents({})).toEqual({ count });
    const { id } = await attestWith(anonymous, evidence);
    expect(id).toContain(`/spire/agent/${evidence.type}/`);
  });
});

const unchallenged = ["join_token", "k8s_psat", "aws_iid", "gcp_iit", "azure_msi"];
const challenged = nodeMethodNames.filter((name) => !unchallenged.includes(name));

/** Says who it is in its answer alone, so that another's answer attests that other. */
const namelessAtFirst = "azure_imds";

describe.each(challenged)("T-N8 the answer to a challenge of %s", (name) => {
  test("counts once, from the node that was asked", async () => {
    await using evidence = await show(name);
    await using stranger = await show(name, 1);
    let answer: Buffer = Buffer.alloc(0);
    const respond = async (challenge: Buffer): Promise<Buffer> => {
      answer = Buffer.from((await evidence.respond?.(challenge)) ?? "");
      return answer;
    };
    await attestWith(anonymous, { ...evidence, respond });
    const { count } = await server.admin.agent.CountAgents({});
    await expectRefused("an answer of before", { ...evidence, respond: () => answer });
    if (name !== namelessAtFirst)
      await expectRefused("the answer of another node", {
        ...evidence,
        respond: async (challenge) => {
          // A TPM that is not meant cannot answer at all.
          const theirs = await Promise.resolve(stranger.respond?.(challenge)).catch(() => undefined);
          return theirs ?? answer;
        },
      });
    expect(await server.admin.agent.CountAgents({})).toEqual({ count });
  });
});

/** What http_challenge's agent answers says nothing: the server then asks the node's address. */
const answered = challenged.filter((name) => name !== "http_challenge");

test.each(answered)("T-N8 the answer to a challenge of %s is taken in its own form alone", async (name) => {
  await using evidence = await show(name);
  for (const [what, change] of Object.entries(MISFORMED)) {
    const respond = async (challenge: Buffer): Promise<Uint8Array> =>
      change(Buffer.from((await evidence.respond?.(challenge)) ?? ""));
    await expectRefused(what, { ...evidence, respond });
  }
});
