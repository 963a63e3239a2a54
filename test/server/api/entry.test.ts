import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Entry__Output } from "../../../src/rpc/gen/spire/api/types/Entry.ts";
import type { EntryMask } from "../../../src/rpc/gen/spire/api/types/EntryMask.ts";
import { faultFrom } from "../../support/faults.ts";
import { type EntryInput, entryMessage, protoId, startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const NODE = "spiffe://example.org/node";
const CODE = { ok: 0, invalid: 3, notFound: 5, alreadyExists: 6, precondition: 9 } as const;
let made = 0;
/** An ID that no other test has. */
function fresh(name = "w"): string {
  made += 1;
  return `spiffe://example.org/${name}-${made}`;
}

function input(rest: Partial<EntryInput> = {}): EntryInput {
  return { spiffeId: fresh(), parentId: NODE, ...rest };
}

async function createOne(entry: EntryInput, output_mask?: EntryMask) {
  const { results } = await server.admin.entry.BatchCreateEntry({
    entries: [entryMessage(entry)],
    ...(output_mask && { output_mask }),
  });
  expect(results).toHaveLength(1);
  return results[0];
}

async function updateOne(entry: Parameters<typeof entryMessage>[0] & { readonly id: string }, input_mask?: EntryMask) {
  const { results } = await server.admin.entry.BatchUpdateEntry({
    entries: [entryMessage(entry)],
    ...(input_mask && { input_mask }),
  });
  expect(results).toHaveLength(1);
  return results[0];
}

async function everyId(): Promise<readonly string[]> {
  return (await server.admin.entry.ListEntries({})).entries.map(({ id }) => id);
}

describe("BatchCreateEntry", () => {
  test("answers with the entry as stored: a UUID, revision 0, the time of creation, status OK", async () => {
    const before = Math.floor(Date.now() / 1000);
    const spiffeId = fresh();
    const result = await createOne({
      spiffeId,
      parentId: NODE,
      selectors: ["unix:uid:2", "unix:uid:1", "unix:uid:2"],
      x509_svid_ttl: 60,
      jwt_svid_ttl: 30,
      dns_names: ["b.test", "a.test"],
      hint: "web",
      admin: true,
    });
    expect(result?.status).toEqual({ code: CODE.ok, message: "OK" });
    expect(result?.entry).toMatchObject({
      id: expect.stringMatching(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/),
      spiffe_id: protoId(spiffeId),
      parent_id: protoId(NODE),
      selectors: [
        { type: "unix", value: "uid:1" },
        { type: "unix", value: "uid:2" },
      ],
      x509_svid_ttl: 60,
      jwt_svid_ttl: 30,
      dns_names: ["b.test", "a.test"],
      hint: "web",
      admin: true,
      downstream: false,
      revision_number: "0",
    });
    expect(Number(result?.entry?.created_at)).toBeGreaterThanOrEqual(before);
    expect(await server.admin.entry.GetEntry({ id: result?.entry?.id ?? "" })).toEqual(result?.entry);
  });

  test("a similar entry is AlreadyExists, and the answer holds the one that exists", async () => {
    const entry = input({ selectors: ["unix:uid:1", "unix:gid:1"] });
    const first = await createOne(entry);
    const second = await createOne({
      ...entry,
      selectors: ["unix:gid:1", "unix:uid:1"],
      hint: "other",
      x509_svid_ttl: 5,
    });
    expect(second?.status).toEqual({ code: CODE.alreadyExists, message: "similar entry already exists" });
    expect(second?.entry).toEqual(first?.entry);
  });

  test("T-W9 one that selects an image by tag is warned of when it is made or changed, without its selectors", async () => {
    const message = /^Entry selects a container image by tag/;
    const warned = () =>
      server
        .output()
        .split("\n")
        .filter((line) => line.includes("selects a container image by tag"));
    const result = await createOne(
      input({ selectors: ["k8s:pod-image:secret-name:1", "docker:image_id:secret-name"] }),
    );
    const id = result?.entry?.id ?? "";
    expect(warned()).toHaveLength(1);
    expect(JSON.parse(warned()[0] ?? "")).toMatchObject({
      ...{ level: "warning", msg: message, entry_id: id, selector_kinds: "docker:image_id,k8s:pod-image" },
    });
    expect(warned()[0]).not.toContain("secret-name");
    await updateOne({ id, ...input({ hint: "h" }) }, { hint: true });
    await createOne(input({ selectors: [`docker:image_id:x@sha256:${"a".repeat(64)}`] }));
    expect(warned()).toHaveLength(1);
    await updateOne({ id, ...input({ selectors: ["docker:image_id:y"] }) }, { selectors: true });
    expect(warned()).toHaveLength(2);
  });

  test("an entry with more selectors is not similar", async () => {
    const entry = input();
    await createOne(entry);
    expect((await createOne({ ...entry, selectors: ["unix:uid:1000", "unix:gid:1"] }))?.status?.code).toBe(CODE.ok);
  });

  test("the caller may choose the id, once", async () => {
    const id = "Chosen.by_the-caller";
    expect((await createOne(input({ id })))?.entry?.id).toBe(id);
    expect((await createOne(input({ id })))?.status).toEqual({
      code: CODE.alreadyExists,
      message: "failed to create entry: an entry with this ID already exists",
    });
  });

  test("a batch answers per item, in order, and stores the good ones only", async () => {
    const before = await everyId();
    const [a, b] = [input(), input()];
    const entries = [
      entryMessage(a),
      { ...entryMessage(input()), selectors: [] },
      entryMessage(b),
      { ...entryMessage(input()), parent_id: null },
    ];
    const { results } = await server.admin.entry.BatchCreateEntry({ entries });
    expect(results.map(({ status }) => status)).toEqual([
      { code: CODE.ok, message: "OK" },
      { code: CODE.invalid, message: "failed to convert entry: selector list is empty" },
      { code: CODE.ok, message: "OK" },
      { code: CODE.invalid, message: "failed to convert entry: invalid parent ID: request must specify SPIFFE ID" },
    ]);
    expect(results.map(({ entry }) => entry?.spiffe_id ?? null)).toEqual([
      protoId(a.spiffeId),
      null,
      protoId(b.spiffeId),
      null,
    ]);
    expect(await everyId()).toHaveLength(before.length + 2);
  });

  test("a federated trust domain needs its bundle first", async () => {
    const result = await createOne(input({ federates_with: ["other.test"] }));
    expect(result?.status).toEqual({
      code: CODE.precondition,
      message: 'failed to create entry: unable to find federated bundle "spiffe://other.test"',
    });
    expect(result?.entry).toBeNull();
  });

  test("T-F4 a batch whose answer could not be received is refused before anything is stored", async () => {
    const before = await server.admin.entry.CountEntries({});
    const entries = Array.from({ length: 9_500 }, () =>
      entryMessage(input({ spiffeId: fresh("many"), hint: "h".repeat(250) })),
    );
    const fault = await faultFrom(server.admin.entry.BatchCreateEntry({ entries }));
    expect(fault).toMatchObject({ kind: "exhausted", message: expect.stringContaining("send fewer items") });
    expect(await server.admin.entry.CountEntries({})).toEqual(before);
  });
});

describe("BatchUpdateEntry", () => {
  test("each update, also one that changes nothing, raises the revision by one and keeps created_at", async () => {
    const { entry } = (await createOne(input())) ?? {};
    const same = { id: entry?.id ?? "", spiffeId: idOf(entry), parentId: NODE };
    for (const revision of ["1", "2"]) {
      const result = await updateOne(same);
      expect(result?.status).toEqual({ code: CODE.ok, message: "OK" });
      expect(result?.entry).toEqual({ ...entry, revision_number: revision });
    }
  });

  test("without a mask everything is replaced", async () => {
    const { entry } =
      (await createOne(
        input({
          hint: "old",
          admin: true,
          dns_names: ["a.test"],
          x509_svid_ttl: 9,
          additional_attributes: { disable_x509_svid_prefetch: true },
        }),
      )) ?? {};
    const result = await updateOne({ id: entry?.id ?? "", spiffeId: idOf(entry), parentId: NODE, hint: "new" });
    expect(result?.entry).toMatchObject({ hint: "new", admin: false, dns_names: [], x509_svid_ttl: 0 });
    expect(result?.entry?.additional_attributes).toBeUndefined();
  });

  test("a mask names what is touched; the rest is not even validated", async () => {
    const { entry } = (await createOne(input({ hint: "old", admin: true, x509_svid_ttl: 9 }))) ?? {};
    const broken = {
      id: entry?.id ?? "",
      spiffe_id: { trust_domain: "no such domain", path: "//" },
      selectors: [{ type: "", value: "" }],
      hint: "new",
    };
    const { results } = await server.admin.entry.BatchUpdateEntry({ entries: [broken], input_mask: { hint: true } });
    expect(results[0]?.status).toEqual({ code: CODE.ok, message: "OK" });
    expect(results[0]?.entry).toEqual({ ...entry, hint: "new", revision_number: "1" });
  });

  test.each([
    {
      what: "an unknown id",
      change: { id: "no-such-entry" },
      status: { code: CODE.notFound, message: "failed to update entry" },
    },
    {
      what: "an id that no entry can have",
      change: { id: "a/b" },
      status: { code: CODE.notFound, message: "failed to update entry" },
    },
    {
      what: "a reserved SPIFFE ID",
      change: { spiffe_id: { trust_domain: "example.org", path: "/spire/server" } },
      status: {
        code: CODE.invalid,
        message:
          'failed to convert entry: invalid spiffe ID: "spiffe://example.org/spire/server" is not a workload in trust domain "example.org"; path is in the reserved namespace',
      },
    },
    {
      what: "a negative TTL",
      change: { x509_svid_ttl: -1 },
      status: {
        code: CODE.invalid,
        message: "failed to update entry: invalid registration entry: X509SvidTtl is not set",
      },
    },
    {
      what: "no selector",
      change: { selectors: [] },
      status: { code: CODE.invalid, message: "failed to convert entry: selector list is empty" },
    },
  ])("is refused for $what, and changes nothing", async ({ change, status }) => {
    const wanted = input();
    const { entry } = (await createOne(wanted)) ?? {};
    const { results } = await server.admin.entry.BatchUpdateEntry({
      entries: [{ ...entryMessage(wanted), id: entry?.id ?? "", ...change }],
    });
    expect(results[0]?.status).toEqual(status);
    expect(await server.admin.entry.GetEntry({ id: entry?.id ?? "" })).toEqual(entry);
  });

  test("an entry cannot be made similar to another", async () => {
    const [first, second] = [input(), input()];
    await createOne(first);
    const { entry } = (await createOne(second)) ?? {};
    const result = await updateOne({ ...first, id: entry?.id ?? "" });
    expect(result?.status).toEqual({
      code: CODE.alreadyExists,
      message: "failed to update entry: similar entry already exists",
    });
  });
});

describe("BatchDeleteEntry", () => {
  test("answers per item, in order", async () => {
    const { entry } = (await createOne(input())) ?? {};
    const id = entry?.id ?? "";
    const { results } = await server.admin.entry.BatchDeleteEntry({ ids: [id, "", id, "a\u0000b"] });
    expect(results).toEqual([
      { id, status: { code: CODE.ok, message: "OK" } },
      { id: "", status: { code: CODE.invalid, message: "missing entry ID" } },
      { id, status: { code: CODE.notFound, message: "entry not found" } },
      { id: "a\u0000b", status: { code: CODE.notFound, message: "entry not found" } },
    ]);
    expect(await faultFrom(server.admin.entry.GetEntry({ id }))).toMatchObject({
      kind: "not_found",
      message: "entry not found",
    });
  });
});

describe("GetEntry", () => {
  test("needs an id", async () => {
    expect(await faultFrom(server.admin.entry.GetEntry({ id: "" }))).toMatchObject({
      kind: "invalid",
      message: "missing ID",
    });
  });
});

function idOf(entry: Entry__Output | null | undefined): string {
  return `spiffe://${entry?.spiffe_id?.trust_domain}${entry?.spiffe_id?.path}`;
}
