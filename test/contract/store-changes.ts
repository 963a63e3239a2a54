import { sql } from "kysely";
import { beforeEach, expect, test } from "vitest";
import type { ChangeSet, Snapshot } from "../../server/store/store.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { bundleOf, draftOf, emptyStore, idOf, nodeOf, selectorsOf } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const B = parseTrustDomain("b.test");

export function changeContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const changes = () => current().store.changes;
  const cursorNow = () => changes().load(async (snapshot) => snapshot.cursor);
  const since = async (cursor: string): Promise<ChangeSet> => {
    const set = await changes().since(cursor);
    if (typeof set === "string") throw new Error("the feed asks for a reload");
    return set;
  };

  test("loading gives everything as of one moment", async () => {
    const { store } = current();
    const { entry } = await store.entries.create(draftOf("one"));
    const node = await store.nodes.attest(nodeOf("one"));
    const bundle = await store.bundles.change(B, () => bundleOf(1));
    const read = async (snapshot: Snapshot) => ({
      entries: (await Array.fromAsync(snapshot.entries)).flat(),
      nodes: (await Array.fromAsync(snapshot.nodes)).flat(),
      bundles: (await Array.fromAsync(snapshot.bundles)).flat(),
    });
    expect(await changes().load(read)).toEqual({ entries: [entry], nodes: [node], bundles: [bundle] });
  });

  test("loading gives every field as it was stored, whatever stands in it", async () => {
    const { store } = current();
    for (const name of [B, parseTrustDomain("c.test")]) await store.bundles.change(name, () => bundleOf(1));
    const odd = ['unix:path:/a b/{c},"d"\\e', "k8s:pod-label:ä:✓", "unix:user:null"];
    const { entry } = await store.entries.create(
      draftOf("all", {
        ...{ selectors: selectorsOf(...odd), federatesWith: [B, parseTrustDomain("c.test")], hint: 'a "hint" \\ {x}' },
        ...{ dnsNames: ["a.example", "*.b.example"], x509SvidTtl: 60, jwtSvidTtl: 30, expiresAt: 4_102_444_800 },
        ...{ admin: true, storeSvid: true, jwtSvidIncludeJti: true },
      }),
    );
    const other = draftOf("other", { downstream: true, disableX509SvidPrefetch: true });
    const second = (await store.entries.create(other)).entry;
    const read = async ({ entries }: Snapshot) => (await Array.fromAsync(entries)).flat();
    expect(await changes().load(read)).toEqual([entry, second]);
  });

  test("loading pages through more rows than one read holds", async () => {
    const { store } = current();
    const row = (await store.entries.create(draftOf("first"))).entry;
    await store.session.write((db) =>
      sql`insert into entries select r.* from entries e, generate_series(1, 4500) n,
        jsonb_populate_record(null::entries, to_jsonb(e) || jsonb_build_object(
          'id', 'n' || n, 'seq', e.seq + n, 'similar_hash', '\\x' || lpad(to_hex(n), 8, '0'))) r`.execute(db),
    );
    const ids = await changes().load(async ({ entries }) =>
      (await Array.fromAsync(entries)).flat().map(({ id }) => id),
    );
    expect(ids).toEqual([row.id, ...Array.from({ length: 4500 }, (_, index) => `n${index + 1}`)]);
  });

  test("entries that are loaded share equal selectors", async () => {
    const { store } = current();
    for (const name of ["one", "two"])
      await store.entries.create(draftOf(name, { selectors: selectorsOf("unix:uid:0", `unix:user:${name}`) }));
    const [one, two] = await changes().load(async ({ entries }) => (await Array.fromAsync(entries)).flat());
    expect(one?.selectors[0]).toEqual({ type: "unix", value: "uid:0" });
    expect(two?.selectors[0]).toBe(one?.selectors[0]);
    expect(two?.selectors[1]).toEqual({ type: "unix", value: "user:two" });
  });

  test("a reader of the whole that fails half-way loses its own answer only", async () => {
    const { store } = current();
    await store.entries.create(draftOf("one"));
    const failing = changes().load(async ({ entries }) => {
      for await (const _ of entries) throw new Error("no room");
    });
    await expect(failing).rejects.toThrow("no room");
    expect(await changes().load(async ({ entries }) => (await Array.fromAsync(entries)).flat().length)).toBe(1);
  });

  test("every kind of change is in the next set, in its newest state, and in no later one", async () => {
    const { store } = current();
    const start = await cursorNow();
    const { entry } = await store.entries.create(draftOf("one"));
    const updated = await store.entries.update(entry.id, (now) => ({ ...now, hint: "new" }));
    const gone = (await store.entries.create(draftOf("two"))).entry;
    await store.entries.delete(gone.id);
    await store.nodes.attest(nodeOf("one"));
    const node = await store.nodes.ban(idOf("/spire/agent/one"));
    const bundle = await store.bundles.change(B, () => bundleOf(1));
    const set = await since(start);
    expect(set.entries).toEqual(
      new Map([
        [entry.id, updated],
        [gone.id, undefined],
      ]),
    );
    expect(set.nodes).toEqual(new Map([[node.id, node]]));
    expect(set.bundles).toEqual(new Map([[B, bundle]]));
    const next = await since(set.cursor);
    expect([next.entries.size, next.nodes.size, next.bundles.size]).toEqual([0, 0, 0]);
    expect(await since(start)).toMatchObject({ entries: set.entries });
  });

  test("what a deletion takes along is followed", async () => {
    const { store } = current();
    await store.bundles.change(B, () => bundleOf(1));
    const { entry } = await store.entries.create(draftOf("one", { federatesWith: [B] }));
    const start = await cursorNow();
    await store.bundles.delete(B, "dissociate");
    const set = await since(start);
    expect(set.bundles).toEqual(new Map([[B, undefined]]));
    expect(set.entries.get(entry.id)).toMatchObject({ federatesWith: [], revisionNumber: 1 });
  });

  test("what was rolled back is not followed", async () => {
    const { store } = current();
    const { entry } = await store.entries.create(draftOf("one"));
    const start = await cursorNow();
    const undone = store.session.transaction(async (db) => {
      await db.updateTable("entries").set({ hint: "undone" }).where("id", "=", entry.id).execute();
      throw new Error("rolled back");
    });
    await expect(undone).rejects.toThrow();
    expect((await since(start)).entries.size).toBe(0);
  });

  test("changes made by hand are followed, and a truncated table asks for a reload", async () => {
    const { store } = current();
    const { entry } = await store.entries.create(draftOf("one"));
    const start = await cursorNow();
    await store.session.write((db) => sql`update entries set hint = 'by hand'`.execute(db));
    expect((await since(start)).entries.get(entry.id)).toMatchObject({ hint: "by hand" });
    await store.session.write((db) => sql`truncate entries`.execute(db));
    expect(await changes().since(start)).toBe("other");
  });

  test("a cursor of another history, from the future, or that is none asks for a reload", async () => {
    await current().store.entries.create(draftOf("one"));
    const good = await cursorNow();
    const [history = "", snapshot = "", witness = ""] = good.split("/");
    const [seq, xid, at] = witness.split(":");
    await since(good);
    for (const bad of ["", "x", `${history}/1:x:/`, `${history}/${snapshot}/1:x`])
      expect(await changes().since(bad)).toBe("reload");
    const others = [`other/${snapshot}/`, `${history}/9999999999:9999999999:/`];
    const unseen = [`${Number(seq) + 1}:${xid}:${at}`, `${seq}:${xid}:1.5`].map(
      (row) => `${history}/${snapshot}/${row}`,
    );
    for (const other of [...others, ...unseen]) expect(await changes().since(other)).toBe("other");
  });

  test("pruned changes ask readers behind them for a reload, and only those", async () => {
    const { store } = current();
    const soon = new Date(Date.now() + 60_000);
    await changes().prune(soon);
    const behind = await cursorNow();
    await store.entries.create(draftOf("one"));
    const ahead = await cursorNow();
    expect(await changes().prune(new Date(Date.now() - 3_600_000))).toBe(0);
    await since(behind);
    expect(await changes().prune(soon)).toBe(1);
    expect(await changes().since(behind)).toBe("reload");
    await since(ahead);
  });

  test("T-F4 more changes than one answer should hold ask for a reload", async () => {
    const start = await cursorNow();
    const flood = (count: number) =>
      current().store.session.write((db) =>
        sql`insert into change_log (kind, entity) select 'entry', n::text from generate_series(1, ${count}) n`.execute(
          db,
        ),
      );
    await flood(2000);
    expect((await since(start)).entries.size).toBe(2000);
    await flood(100_001);
    expect(await changes().since(start)).toBe("reload");
  });

  test("many changes at once come all, in their newest state, as of one moment", async () => {
    const { store } = current();
    const first = (await store.entries.create(draftOf("first"))).entry;
    const start = await cursorNow();
    const copy = (count: number) =>
      store.session.write((db) =>
        sql`insert into entries select r.* from entries e, generate_series(1, ${count}::int) n,
          jsonb_populate_record(null::entries, to_jsonb(e) || jsonb_build_object(
            'id', 'n' || n, 'seq', e.seq + n, 'similar_hash', '\\x' || lpad(to_hex(n), 8, '0'))) r`.execute(db),
      );
    await copy(3000);
    await store.session.write((db) => sql`update entries set hint = 'new' where seq % 2 = 0`.execute(db));
    await store.session.write((db) => sql`delete from entries where seq % 3 = 0`.execute(db));
    await store.nodes.attest(nodeOf("one"));
    const held = new Map((await store.entries.list({})).items.map((entry) => [entry.id, entry]));
    const set = await since(start);
    const ids = Array.from({ length: 3000 }, (_, n) => `n${n + 1}`).concat(set.entries.has(first.id) ? first.id : []);
    expect(set.entries).toEqual(new Map(ids.map((id) => [id, held.get(id)])));
    expect([...set.nodes.keys()]).toEqual([idOf("/spire/agent/one")]);
    const next = await since(set.cursor);
    expect([next.entries.size, next.nodes.size]).toEqual([0, 0]);
  });

  test("the wait for changes ends with a change, at a poll, and with the signal", async () => {
    const stop = new AbortController();
    const wakes = changes().wake(stop.signal)[Symbol.asyncIterator]();
    await wakes.next();
    await wakes.next();
    const begun = performance.now();
    for (let round = 0; round < 5; round += 1) {
      const woken = wakes.next();
      await current().store.entries.create(draftOf(`n${round}`));
      expect(await woken).toMatchObject({ done: false });
    }
    expect(performance.now() - begun).toBeLessThan(2000);
    const quiet = wakes.next();
    expect(await quiet).toMatchObject({ done: false });
    const last = wakes.next();
    stop.abort();
    await eventually("the wait ends", async () => (await last).done === true || (await wakes.next()).done === true);
  });

  test("errors inside the loader come out of it", async () => {
    const fault = await faultFrom(
      changes().load(async ({ entries }) => {
        for await (const _ of entries) break;
        return Promise.reject(Object.assign(new Error("no"), { name: "AbortError" }));
      }),
    );
    expect(fault).toMatchObject(refusal("cancelled", "cancelled"));
    await current().store.ping();
  });
}
