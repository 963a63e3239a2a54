import { randomBytes } from "node:crypto";
import { beforeEach, expect, test } from "vitest";
import type { EntryDraft } from "../../src/spiffe/entry.ts";
import { parseSpiffeId, parseTrustDomain, type SpiffeId } from "../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { bundleOf, draftOf, emptyStore, nodeOf, selectorsOf } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const HOSTILE = [
  "'; drop table entries; --",
  '"; delete from join_tokens; --',
  "x' or '1'='1",
  "$1",
  "$".concat("{injected}"),
  "\\'; select pg_sleep(9); --",
  "%_%",
  "{a,b}",
  '{"a","b"}',
  "NULL",
  "ünïcødé \u{1F510} \u2028",
];

export function valueContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));

  test.each([2047, 2048])("ID-17 IDs of %i bytes keep every byte in every column", async (length) => {
    const { store } = current();
    const long = (prefix: string): SpiffeId => {
      const start = `spiffe://a.test${prefix}`;
      return parseSpiffeId(
        start +
          randomBytes(2048)
            .toString("hex")
            .slice(0, length - start.length),
      );
    };
    const draft = draftOf("long", { spiffeId: long("/w/"), parentId: long("/p/"), selectors: [] });
    const selector = `spiffe_id:${draft.parentId}`;
    const { entry } = await store.entries.create({ ...draft, selectors: selectorsOf(selector, "x:y") });
    expect(entry.spiffeId).toHaveLength(length);
    expect(await store.entries.find(entry.id)).toMatchObject({ spiffeId: draft.spiffeId, parentId: draft.parentId });
    expect((await store.entries.list({ spiffeId: draft.spiffeId, parentId: draft.parentId })).items).toEqual([entry]);
    const bySelector = { match: "superset", selectors: selectorsOf(selector) } as const;
    expect((await store.entries.list({ selectors: bySelector })).items).toEqual([entry]);
    const node = await store.nodes.attest(nodeOf("x", { id: draft.parentId, selectors: selectorsOf(selector) }));
    expect(await store.nodes.find(draft.parentId)).toEqual(node);
    const cursor = await store.changes.load(async (snapshot) => snapshot.cursor);
    await store.entries.delete(entry.id);
    await store.nodes.ban(draft.parentId);
    const changes = await store.changes.since(cursor);
    expect(changes).toMatchObject({ entries: new Map([[entry.id, undefined]]) });
    expect(typeof changes === "string" ? [] : [...changes.nodes.keys()]).toEqual([draft.parentId]);
  });

  test.each(HOSTILE)("T-F3 %j is data in every place that takes text", async (text) => {
    const { store } = current();
    const kept = await store.entries.create(draftOf("kept"));
    const selectors = [{ type: "x", value: text }];
    const { entry } = await store.entries.create(draftOf("it", { id: text, hint: text, dnsNames: [text], selectors }));
    expect(await store.entries.find(text)).toMatchObject({ id: text, hint: text, dnsNames: [text], selectors });
    expect((await store.entries.list({ hint: text, selectors: { match: "exact", selectors } })).items).toEqual([entry]);
    await store.entries.update(text, (now) => ({ ...now, hint: `${text}2` }));
    await store.tokens.create({ token: text, expiresAt: new Date() });
    expect(await store.tokens.consume(text, "k")).toMatchObject({ token: text });
    const node = await store.nodes.attest(nodeOf("n", { attestationType: text, serialNumber: text, selectors }));
    await store.nodes.setAgentVersion(node.id, text);
    expect((await store.nodes.list({ attestationType: text })).items).toMatchObject([
      { agentVersion: text, selectors },
    ]);
    const key = { publicKey: Uint8Array.of(1), keyId: text, expiresAt: 0, tainted: false };
    const bundle = await store.bundles.change(parseTrustDomain("b.test"), () => ({
      ...bundleOf(1),
      jwtAuthorities: [key],
    }));
    expect(bundle.jwtAuthorities).toEqual([key]);
    await store.entries.delete(text);
    expect((await store.entries.list({})).items).toEqual([kept.entry]);
  });

  test.each<{ where: string; draft: Partial<EntryDraft> }>([
    { where: "hint", draft: { hint: "a\0b" } },
    { where: "selector", draft: { selectors: [{ type: "x", value: "a\0b" }] } },
    { where: "DNS name", draft: { dnsNames: ["a\0b"] } },
    { where: "id", draft: { id: "a\0b" } },
    { where: "SPIFFE ID", draft: { spiffeId: "spiffe://a.test/a\0b" as SpiffeId } },
  ])("T-S1 a NUL byte in the $where is invalid, not an internal fault", async ({ draft }) => {
    const fault = await faultFrom(current().store.entries.create(draftOf("nul", draft)));
    expect(fault).toMatchObject(refusal("invalid", "value-not-storable"));
    expect(await current().store.entries.count({})).toBe(0);
  });

  test("a NUL byte is invalid in what is looked for, too", async () => {
    const { store } = current();
    expect(await faultFrom(store.entries.find("\0"))).toMatchObject({ kind: "invalid" });
    expect(await faultFrom(store.tokens.consume("\0", "k"))).toMatchObject({ kind: "invalid" });
    const key = { publicKey: Uint8Array.of(1), keyId: "a\0b", expiresAt: 0, tainted: false };
    const change = store.bundles.change(parseTrustDomain("b.test"), () => ({ ...bundleOf(1), jwtAuthorities: [key] }));
    expect(await faultFrom(change)).toMatchObject({ kind: "invalid" });
  });

  test.each<{ what: string; draft: Partial<EntryDraft> }>([
    { what: "a TTL beyond 32 bits", draft: { x509SvidTtl: 2 ** 31 } },
    { what: "a negative TTL", draft: { jwtSvidTtl: -1 } },
    { what: "a fraction of a second", draft: { expiresAt: 1.5 } },
    { what: "an expiry beyond 64 bits", draft: { expiresAt: 1e300 } },
    { what: "no selectors", draft: { selectors: [] } },
  ])("$what is invalid and not stored", async ({ draft }) => {
    const fault = await faultFrom(current().store.entries.create(draftOf("odd", draft)));
    expect(fault).toMatchObject({ kind: "invalid" });
    expect(fault.hint).toBeDefined();
    expect(await current().store.entries.count({})).toBe(0);
  });

  test("selectors of 2,500 bytes are kept; much longer ones are refused as too long", async () => {
    const { entries } = current().store;
    const selectors = selectorsOf(`x:${randomBytes(1250).toString("hex")}`);
    const { entry } = await entries.create(draftOf("long", { selectors }));
    expect((await entries.list({ selectors: { match: "any", selectors } })).items).toEqual([entry]);
    const huge = selectorsOf(`x:${randomBytes(4096).toString("hex")}`);
    expect(await faultFrom(entries.create(draftOf("huge", { selectors: huge })))).toMatchObject(
      refusal("invalid", "value-too-long"),
    );
  });
}
