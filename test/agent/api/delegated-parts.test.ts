import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Channel, dialUnix } from "../../../src/rpc/dial.ts";
import type { SubscribeToX509SVIDsResponse__Output as SpireResponse } from "../../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsResponse.ts";
import type { SubscribeToX509SVIDsResponse__Output as Part } from "../../../src/rpc/gen/steeple/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsResponse.ts";
import { DelegatedIdentityApi, DelegatedIdentityPartsApi } from "../../../src/rpc/protos.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent } from "../../support/agent.ts";
import { collect } from "../../support/collect.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { RawClient } from "../../support/raw-client.ts";
import { startServer } from "../../support/server.ts";

const MANY = 20_000;
const MIB = 1024 * 1024;
const PARTNER = parseTrustDomain("partner.test");
const DELEGATE = parseSpiffeId("spiffe://example.org/delegate");
const delegate = cachedEntry({ id: "delegate", selectors: [`unix:uid:${process.getuid?.()}`], createdAt: 1 });
const many = Array.from({ length: MANY }, (_, at) => cachedEntry({ id: `many/${at}`, selectors: ["k8s:ns:many"] }));
const TARGET = { selectors: [{ type: "k8s", value: "ns:many" }] };

describe("20,000 identities of one workload", () => {
  let root: TestCa;
  let partner: TestCa;
  let svid: Issued;
  let endpoint: Endpoint;
  let channel: Channel;
  beforeAll(async () => {
    root = await createCa({ trustDomain: "example.org" });
    partner = await createCa({ trustDomain: "partner.test" });
    svid = await root.issue({ id: DELEGATE });
    endpoint = await Endpoint.start({ bundles: bundlesOf(root), delegates: [DELEGATE], maxSvids: 30_000 });
    await endpoint.replace([delegate, ...many], bundlesOf(root, partner));
    await endpoint.accept([delegate, svid], ...many.map((entry) => [entry, svid] as const));
    channel = dialUnix(endpoint.adminPath);
  }, 60_000);
  afterAll(async () => {
    channel?.[Symbol.dispose]();
    await endpoint?.[Symbol.asyncDispose]();
  });

  test("come whole to a client of SPIRE's API that takes 20 MiB in a message, as Cilium's does", async () => {
    await using raw = new RawClient(endpoint.adminPath);
    const { SubscribeToX509SVIDs } = DelegatedIdentityApi.methods();
    const request = SubscribeToX509SVIDs!.requestSerialize(TARGET);
    const head = Buffer.alloc(5);
    head.writeUInt32BE(request.length, 1);
    const call = raw.call(SubscribeToX509SVIDs!.path, {}, Buffer.concat([head, request]));
    const bytes = await eventually("the answer", () => call.messages[0], 60_000);
    expect(bytes.length).toBeGreaterThan(4 * MIB);
    expect(bytes.length).toBeLessThan(20 * MIB);
    const answer = SubscribeToX509SVIDs!.responseDeserialize(bytes) as SpireResponse;
    expect(answer.x509_svids).toHaveLength(MANY);
    call.cancel();
  });

  test("end the stream of one that takes 4 MiB with ResourceExhausted, and the agent's log says why", async () => {
    using stream = collect((options) => channel.client(DelegatedIdentityApi).SubscribeToX509SVIDs(TARGET, options));
    expect(await stream.ended).toMatchObject({ kind: "exhausted" });
    const message = "X.509 SVIDs for delegated identity are more than gRPC clients take by default";
    const { lines } = await endpoint.look();
    const fields = { count: MANY, bytes: expect.any(Number) };
    expect(lines).toContainEqual(
      expect.objectContaining({ level: "warn", message, fields: expect.objectContaining(fields) }),
    );
  });

  test("come in parts to the same client by Steeple's API, and then only what changes", {
    timeout: 60_000,
  }, async () => {
    const api = channel.client(DelegatedIdentityPartsApi);
    using stream = collect((options) => api.SubscribeToX509SVIDs(TARGET, options));
    const encode = DelegatedIdentityPartsApi.methods()["SubscribeToX509SVIDs"]!.responseSerialize;
    const held = new Map<string, string | undefined>();
    let taken = 0;
    /** The next state, as a client keeps it. */
    const state = async (): Promise<readonly Part[]> => {
      const parts: Part[] = [];
      do {
        const part = await eventually("the next part", () => stream.answers[taken], 60_000);
        taken += 1;
        parts.push(part);
        for (const { entry_id, x509_svid } of part.changed) held.set(entry_id, x509_svid?.hint);
        for (const id of part.removed) held.delete(id);
      } while (parts.at(-1)!.more);
      return parts;
    };
    const first = await state();
    for (const part of first) expect(encode(part).length).toBeLessThan(MIB);
    expect(held.size).toBe(MANY);
    const { entry_id, x509_svid, x509_svid_key } = first[0]!.changed[0]!;
    expect(many.map(({ id }) => id)).toContain(entry_id);
    expect(x509_svid?.cert_chain).toEqual(svid.chain.map((der) => Buffer.from(der)));
    expect(x509_svid_key).toEqual(Buffer.from(svid.privateKey));

    const rotated = await root.issue({ id: many[7]!.spiffeId });
    await endpoint.accept([many[7]!, rotated]);
    const second = await state();
    expect(second.map(({ changed, removed }) => [changed.map((each) => each.entry_id), removed])).toEqual([
      [[many[7]!.id], []],
    ]);
    expect(second[0]!.changed[0]!.x509_svid?.cert_chain).toEqual(rotated.chain.map((der) => Buffer.from(der)));

    const [, , hinted, federated, ...rest] = many;
    const next = [{ ...hinted!, hint: "inside" }, { ...federated!, federatesWith: [PARTNER] }, ...rest];
    await endpoint.replace([delegate, ...next], bundlesOf(root, partner));
    const third = await state();
    expect(third).toHaveLength(1);
    expect(third[0]!.changed.map((each) => [each.entry_id, each.x509_svid?.hint])).toEqual([[hinted!.id, "inside"]]);
    expect(third[0]!.removed).toEqual([many[0]!.id, many[1]!.id]);
    expect(third[0]!.federates_with).toEqual(["spiffe://partner.test"]);
    expect([...held.keys()].sort()).toEqual(next.map(({ id }) => id).sort());
  });
});

test("the tokens of hundreds of identities come in parts, one of each, from a whole agent", {
  timeout: 120_000,
}, async () => {
  const HUNDREDS = 250;
  await using server = await startServer();
  const adminSocket = `${server.folder}/private/admin.sock`;
  const settings = { admin_socket_path: adminSocket, authorized_delegates: [DELEGATE] };
  await using agent = await startAgent(server, { agent: { log_level: "INFO", ...settings } });
  const parent_id = { trust_domain: "example.org", path: agent.id().slice("spiffe://example.org".length) };
  await server.createEntry({ parentId: agent.id(), spiffeId: DELEGATE, selectors: [OWN_SELECTOR] });
  const entries = Array.from({ length: HUNDREDS }, (_, at) => ({
    ...{ parent_id, spiffe_id: { trust_domain: "example.org", path: `/many/${at}` } },
    selectors: [{ type: "k8s", value: "ns:many" }],
  }));
  const { results } = await server.admin.entry.BatchCreateEntry({ entries });
  expect(results.map(({ status }) => status?.code)).toEqual(entries.map(() => 0));
  using channel = dialUnix(adminSocket);
  const api = channel.client(DelegatedIdentityPartsApi);
  const tokens = async () => {
    const parts: string[][] = [];
    for await (const { svids } of api.FetchJWTSVIDs({ ...TARGET, audience: ["a"] }))
      parts.push(svids.map(({ id, token }) => (token === "" ? "" : `${id?.path}`)));
    return parts;
  };
  const parts = await eventually(
    "all of them",
    async () => {
      const found = await tokens();
      return found.flat().length === HUNDREDS && found;
    },
    60_000,
  );
  expect(parts.length).toBeGreaterThan(1);
  expect(parts.flat().sort()).toEqual(entries.map(({ spiffe_id }) => spiffe_id.path).sort());
});
