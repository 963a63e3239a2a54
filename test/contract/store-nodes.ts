import { beforeEach, expect, test } from "vitest";
import { MAX_PAGE_SIZE } from "../../server/store/paging.ts";
import type { NodeFilter } from "../../server/store/store.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { draftOf, emptyStore, idOf, nodeOf, selectorsOf } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const LATER = new Date("2031-01-01T00:00:00Z");

export function nodeContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const nodes = () => current().store.nodes;
  const renewal = { currentSerial: "1001", serialNumber: "1002", expiresAt: LATER };

  test("an attested node comes back as it went in", async () => {
    const draft = nodeOf("one", {
      attestationType: "x509pop",
      canReattest: true,
      expiresAt: new Date("2030-06-01T12:34:56.789Z"),
      selectors: selectorsOf("x509pop:b:2", "x509pop:a:1", "x509pop:b:2"),
    });
    const node = await nodes().attest(draft);
    expect(node).toEqual({
      ...draft,
      selectors: selectorsOf("x509pop:a:1", "x509pop:b:2"),
      newSerialNumber: "",
      newExpiresAt: undefined,
      agentVersion: "",
      superseded: [],
    });
    expect(await nodes().find(draft.id)).toEqual(node);
    expect((await nodes().list({})).items).toEqual([node]);
  });

  test("T-X5 a selector that no reader would let in keeps nobody from reading the others", async () => {
    const long = { type: "x509pop", value: `subject:cn:${"a".repeat(9000)}` };
    const node = await nodes().attest(nodeOf("one", { selectors: [long] }));
    const { changes } = current().store;
    const cursor = await changes.load(async (snapshot) => {
      const rows = [];
      for await (const portion of snapshot.nodes) rows.push(...portion);
      expect(rows).toEqual([node]);
      return snapshot.cursor;
    });
    await nodes().setAgentVersion(node.id, "2");
    expect(await changes.since(cursor)).toMatchObject({ nodes: new Map([[node.id, { ...node, agentVersion: "2" }]]) });
  });

  test("attesting again replaces the attestation, clears a pending serial and keeps the agent's version", async () => {
    await nodes().attest(nodeOf("one", { selectors: selectorsOf("a:1") }));
    await nodes().setAgentVersion(idOf("/spire/agent/one"), "1.15.0");
    await nodes().renew(idOf("/spire/agent/one"), renewal);
    const again = nodeOf("one", { serialNumber: "2001", selectors: selectorsOf("b:2"), canReattest: true });
    const node = await nodes().attest(again);
    expect(node).toEqual({
      ...again,
      newSerialNumber: "",
      newExpiresAt: undefined,
      agentVersion: "1.15.0",
      superseded: [],
    });
    expect(await nodes().count({})).toBe(1);
  });

  test("a banned node loses both serials and cannot attest until it is deleted", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().renew(id, renewal);
    const banned = await nodes().ban(id);
    expect(banned).toMatchObject({ serialNumber: "", newSerialNumber: "", newExpiresAt: undefined });
    const fault = await faultFrom(nodes().attest(nodeOf("one")));
    expect(fault).toMatchObject(refusal("denied", "agent-banned"));
    expect(fault.message).toBe("failed to attest: agent is banned");
    expect(await nodes().find(id)).toEqual(banned);
    expect(await faultFrom(nodes().renew(id, { ...renewal, currentSerial: "" }))).toMatchObject(
      refusal("denied", "agent-svid-not-active"),
    );
    await nodes().delete(id);
    expect(await nodes().attest(nodeOf("one"))).toMatchObject({ serialNumber: "1001" });
  });

  const since = new Date("2029-03-04T05:06:07.089Z");

  test("a quarantined node keeps its serials, renews and attests, and stays quarantined until it is released", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    const quarantine = { since, reason: "looked odd" };
    expect(await nodes().quarantine(id, quarantine)).toMatchObject({ quarantine, serialNumber: "1001" });
    const later = { since: LATER, reason: "looked odder" };
    expect(await nodes().quarantine(id, later)).toMatchObject({ quarantine: { since, reason: "looked odder" } });
    expect(await nodes().renew(id, renewal)).toMatchObject({ quarantine: { since }, newSerialNumber: "1002" });
    expect(await nodes().attest(nodeOf("one", { serialNumber: "2001" }))).toMatchObject({ quarantine: { since } });
    expect(await nodes().find(id)).toMatchObject({ quarantine: { since, reason: "looked odder" } });
    const { items } = await nodes().list({ quarantined: true });
    expect(items.map((node) => node.id)).toEqual([id]);
    expect(await nodes().count({ quarantined: false })).toBe(0);
    const released = await nodes().release(id);
    expect(released).toMatchObject({ quarantine: undefined, serialNumber: "2001" });
    expect(await faultFrom(nodes().release(id))).toMatchObject(refusal("precondition", "agent-not-quarantined"));
    expect(await nodes().count({ quarantined: true })).toBe(0);
  });

  test("T-N13 a release may name the serial that goes on: the others are superseded", async () => {
    const { id, expiresAt } = await nodes().attest(nodeOf("one"));
    await nodes().renew(id, renewal);
    await nodes().activate(id, "1002");
    await nodes().renew(id, { ...renewal, currentSerial: "1002", serialNumber: "1003" });
    await nodes().quarantine(id, { since, reason: "" });
    const unknown = refusal("precondition", "agent-serial-unknown");
    for (const serial of ["6666", ""]) expect(await faultFrom(nodes().release(id, serial))).toMatchObject(unknown);
    expect(await nodes().release(id, "1001")).toMatchObject({
      ...{ serialNumber: "1001", newSerialNumber: "", newExpiresAt: undefined, quarantine: undefined },
      superseded: ["1002", "1003"],
    });
    await nodes().quarantine(id, { since, reason: "" });
    await nodes().renew(id, { currentSerial: "1001", serialNumber: "1004", expiresAt });
    await nodes().quarantine(id, { since, reason: "" });
    const pending = await nodes().release(id, "1004");
    expect(pending).toMatchObject({ serialNumber: "1004", expiresAt, superseded: ["1002", "1003", "1001"] });
  });

  test("a banned node is not quarantined, and a quarantined one can be banned", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().quarantine(id, { since, reason: "" });
    await nodes().ban(id);
    const banned = refusal("precondition", "agent-banned");
    expect(await faultFrom(nodes().quarantine(id, { since, reason: "" }))).toMatchObject(banned);
    expect(await nodes().release(id)).toMatchObject({ serialNumber: "", quarantine: undefined });
    await nodes().delete(id);
    expect(await nodes().attest(nodeOf("one"))).toMatchObject({ quarantine: undefined });
  });

  test("T-N13 a release that chooses a serial brings no banned node back", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().renew(id, renewal);
    await nodes().activate(id, "1002");
    await nodes().quarantine(id, { since, reason: "" });
    const banned = await nodes().ban(id);
    expect(banned.superseded).toContain("1001");
    expect(await faultFrom(nodes().release(id, "1001"))).toMatchObject(refusal("precondition", "agent-banned"));
    expect(await nodes().find(id)).toEqual(banned);
  });

  test("a node that is banned or quarantined after it was listed as expired is not pruned", async () => {
    const one = nodeOf("one");
    const later = new Date(one.expiresAt.getTime() + 1000);
    const { id } = await nodes().attest(one);
    await nodes().quarantine(id, { since, reason: "" });
    expect(await nodes().delete(id, later)).toBeUndefined();
    await nodes().ban(id);
    await nodes().release(id);
    expect(await nodes().delete(id, later)).toBeUndefined();
    expect(await nodes().find(id)).toMatchObject({ serialNumber: "" });
  });

  test("a renewal is pending until its serial is used; both serials are accepted meanwhile", async () => {
    const { id, expiresAt } = await nodes().attest(nodeOf("one"));
    const pending = { serialNumber: "1001", expiresAt, newSerialNumber: "1002", newExpiresAt: LATER };
    expect(await nodes().renew(id, renewal)).toMatchObject(pending);
    expect(await nodes().renew(id, renewal)).toMatchObject(pending);
    expect(await nodes().activate(id, "1003")).toBeUndefined();
    expect(await nodes().activate(id, "")).toBeUndefined();
    const active = await nodes().activate(id, "1002");
    expect(active).toMatchObject({
      serialNumber: "1002",
      expiresAt: LATER,
      newSerialNumber: "",
      newExpiresAt: undefined,
    });
    expect(await nodes().activate(id, "1002")).toBeUndefined();
    expect(await nodes().find(id)).toEqual(active);
  });

  test("T-N14 a serial that is neither current nor pending cannot renew", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().renew(id, renewal);
    await nodes().activate(id, "1002");
    for (const currentSerial of ["1001", "1003", ""]) {
      const fault = await faultFrom(nodes().renew(id, { ...renewal, currentSerial, serialNumber: "6666" }));
      expect(fault).toMatchObject(refusal("denied", "agent-svid-not-active"));
    }
    expect(await nodes().find(id)).toMatchObject({ serialNumber: "1002", newSerialNumber: "" });
  });

  test("a pending serial that renews becomes the current one", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().renew(id, renewal);
    const end = new Date("2032-01-01T00:00:00Z");
    const node = await nodes().renew(id, { currentSerial: "1002", serialNumber: "1003", expiresAt: end });
    expect(node).toMatchObject({ serialNumber: "1002", expiresAt: LATER, newSerialNumber: "1003", newExpiresAt: end });
  });

  test("T-N13 serials that renewals replaced are remembered, the last few, until the node attests again", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().renew(id, renewal);
    expect(await nodes().renew(id, { ...renewal, serialNumber: "1003" })).toMatchObject({ superseded: ["1002"] });
    expect(await nodes().activate(id, "1003")).toMatchObject({ superseded: ["1002", "1001"] });
    await nodes().renew(id, { ...renewal, currentSerial: "1003", serialNumber: "1004" });
    const again = await nodes().renew(id, { ...renewal, currentSerial: "1004", serialNumber: "1005" });
    expect(again).toMatchObject({ serialNumber: "1004", superseded: ["1002", "1001", "1003"] });
    for (let serial = 1005; serial < 1030; serial += 1) {
      await nodes().activate(id, `${serial}`);
      await nodes().renew(id, { ...renewal, currentSerial: `${serial}`, serialNumber: `${serial + 1}` });
    }
    const { superseded = [] } = (await nodes().find(id)) ?? {};
    expect([superseded.length, superseded[0], superseded.at(-1)]).toEqual([16, "1013", "1028"]);
    expect(await nodes().attest(nodeOf("one"))).toMatchObject({ superseded: [] });
  });

  test("evidence that counts once: the key that used it may come again until it renews, another one never", async () => {
    const [first, other] = [{ keyHash: "aa" }, { keyHash: "bb" }];
    const { id } = await nodes().attest(nodeOf("one"), first);
    expect(await nodes().attest(nodeOf("one", { serialNumber: "1009" }), first)).toMatchObject({
      serialNumber: "1009",
    });
    const used = refusal("denied", "attestation-used");
    expect(await faultFrom(nodes().attest(nodeOf("one"), other))).toMatchObject(used);
    await nodes().renew(id, { ...renewal, currentSerial: "1009" });
    expect(await faultFrom(nodes().attest(nodeOf("one"), first))).toMatchObject(used);
    await nodes().ban(id);
    expect(await faultFrom(nodes().attest(nodeOf("one"), first))).toMatchObject(refusal("denied", "agent-banned"));
    await nodes().delete(id);
    expect(await nodes().attest(nodeOf("one"), other)).toMatchObject({ id });
  });

  test("of many at once with evidence that counts once, and a key each, one attests", async () => {
    const attempts = Array.from({ length: 20 }, (_, index) => nodes().attest(nodeOf("one"), { keyHash: `k${index}` }));
    const done = await Promise.allSettled(attempts);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("an unchanged agent version is not stored again", async () => {
    const { id } = await nodes().attest(nodeOf("one"));
    await nodes().setAgentVersion(id, "1.15.0");
    const cursor = await current().store.changes.load(async (snapshot) => snapshot.cursor);
    expect(await nodes().setAgentVersion(id, "1.15.0")).toMatchObject({ agentVersion: "1.15.0" });
    expect(await current().store.changes.since(cursor)).toMatchObject({ nodes: new Map() });
  });

  test("T-C7 unknown nodes are not found", async () => {
    const id = idOf("/spire/agent/unknown");
    expect(await nodes().find(id)).toBeUndefined();
    expect(await nodes().delete(id)).toBeUndefined();
    expect(await nodes().activate(id, "1")).toBeUndefined();
    for (const work of [
      () => nodes().ban(id),
      () => nodes().setAgentVersion(id, "1"),
      () => nodes().renew(id, renewal),
      () => nodes().quarantine(id, { since, reason: "" }),
      () => nodes().release(id),
    ]) {
      expect(await faultFrom(work())).toMatchObject(refusal("not_found", "agent-not-found"));
    }
  });

  test("deleting a join-token node deletes the alias of its token and no other entry", async () => {
    const node = await nodes().attest(nodeOf("join_token/abc"));
    const { store } = current();
    const alias = draftOf("alias", { parentId: node.id, selectors: selectorsOf(`spiffe_id:${node.id}`) });
    await store.entries.create(alias);
    const kept = [
      draftOf("workload", { parentId: node.id }),
      draftOf("both", { parentId: node.id, selectors: selectorsOf(`spiffe_id:${node.id}`, "unix:uid:1") }),
      draftOf("elsewhere", { selectors: selectorsOf(`spiffe_id:${node.id}`) }),
    ];
    for (const draft of kept) await store.entries.create(draft);
    await store.tokens.create({ token: "abc", expiresAt: LATER });
    expect(await nodes().delete(node.id)).toEqual(node);
    expect(await store.tokens.consume("abc", "k")).toBeUndefined();
    const { items } = await store.entries.list({});
    expect(items.map(({ spiffeId }) => spiffeId)).toEqual(kept.map(({ spiffeId }) => spiffeId));
  });

  test("deleting a node of another attestor deletes no entry", async () => {
    const node = await nodes().attest(nodeOf("one", { attestationType: "x509pop" }));
    const draft = draftOf("alias", { parentId: node.id, selectors: selectorsOf(`spiffe_id:${node.id}`) });
    await current().store.entries.create(draft);
    await nodes().delete(node.id);
    expect(await current().store.entries.count({})).toBe(1);
  });

  const S = (...texts: readonly string[]) => selectorsOf(...texts);
  test.each<{ filter: NodeFilter; found: readonly string[]; title: string }>([
    { title: "no filter", filter: {}, found: ["a", "b", "c"] },
    { title: "attestation type", filter: { attestationType: "x509pop" }, found: ["b"] },
    { title: "banned", filter: { banned: true }, found: ["c"] },
    { title: "not banned", filter: { banned: false }, found: ["a", "b"] },
    { title: "can re-attest", filter: { canReattest: true }, found: ["b"] },
    { title: "cannot re-attest", filter: { canReattest: false }, found: ["a", "c"] },
    { title: "expires before", filter: { expiresBefore: new Date("2029-01-01T00:00:00Z") }, found: ["b"] },
    { title: "exact", filter: { selectors: { match: "exact", selectors: S("x:1", "x:2") } }, found: ["b"] },
    {
      title: "a subset is never empty",
      filter: { selectors: { match: "subset", selectors: S("x:1", "x:9") } },
      found: ["a"],
    },
    { title: "superset", filter: { selectors: { match: "superset", selectors: S("x:1") } }, found: ["a", "b"] },
    { title: "any", filter: { selectors: { match: "any", selectors: S("x:2", "x:9") } }, found: ["b"] },
  ])("listing and counting by filter: $title", async ({ filter, found }) => {
    await nodes().attest(nodeOf("a", { selectors: S("x:1") }));
    const early = new Date("2028-01-01T00:00:00Z");
    const b = { attestationType: "x509pop", canReattest: true, expiresAt: early, selectors: S("x:1", "x:2") };
    await nodes().attest(nodeOf("b", b));
    await nodes().attest(nodeOf("c"));
    await nodes().ban(idOf("/spire/agent/c"));
    const { items } = await nodes().list(filter);
    expect(items.map(({ id }) => id)).toEqual(found.map((name) => idOf(`/spire/agent/${name}`)));
    expect(await nodes().count(filter)).toBe(found.length);
  });

  test("T-F4 pages of nodes are capped and cover everything once", async () => {
    await Promise.all(Array.from({ length: MAX_PAGE_SIZE + 2 }, (_, index) => nodes().attest(nodeOf(`n${index}`))));
    const page = await nodes().list({}, { size: 2_147_483_647, token: "" });
    expect(page.items).toHaveLength(MAX_PAGE_SIZE);
    const rest = await nodes().list({}, { size: 5, token: page.nextPageToken });
    expect(rest.items).toHaveLength(2);
    expect(new Set([...page.items, ...rest.items].map(({ id }) => id)).size).toBe(MAX_PAGE_SIZE + 2);
  });

  test("a node is deleted by its expiry only while every SVID of it has ended", async () => {
    const id = idOf("/spire/agent/one");
    const expiresAt = new Date("2030-01-01T00:00:00Z");
    await nodes().attest(nodeOf("one", { expiresAt }));
    expect(await nodes().delete(id, expiresAt)).toBeUndefined();
    await nodes().renew(id, renewal);
    expect(await nodes().delete(id, new Date("2030-06-01T00:00:00Z"))).toBeUndefined();
    expect(await nodes().find(id)).toBeDefined();
    expect((await nodes().delete(id, new Date("2031-06-01T00:00:00Z")))?.id).toBe(id);
    expect(await nodes().find(id)).toBeUndefined();
  });
}
