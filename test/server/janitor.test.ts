import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { BundleHistory } from "../../server/ca/bundle-history.ts";
import { runJanitor, tidy } from "../../server/janitor.ts";
import type { Store } from "../../server/store/store.ts";
import { openMemoryKeys } from "../../src/keys/memory.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { parseTrustDomain, spiffeId, type TrustDomain } from "../../src/spiffe/id.ts";
import { eventually } from "../support/eventually.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { openX509 } from "./ca/fleet.ts";
import { ManualClock, makeEntry, messagesOf, openTestStore, START, type TestStore } from "./ca/support.ts";

const DAY = 86_400;

let opened: TestStore;
let store: Store;
let trustDomain: TrustDomain;
let clock: ManualClock;
let log: RecordingLog;
let tests = 0;

beforeAll(async () => {
  opened = await openTestStore();
  store = opened.store;
});
afterAll(() => opened[Symbol.asyncDispose]());

beforeEach(() => {
  tests += 1;
  trustDomain = parseTrustDomain(`td-${tests}.test`);
  clock = new ManualClock();
  log = new RecordingLog();
});

const unixNow = (): number => Math.floor(clock.now().getTime() / 1000);
const always = (): Promise<boolean> => Promise.resolve(true);
const round = (): Promise<void> => tidy({ store, trustDomain, clock, log }, always);

async function addEntry(path: string, expiresAt: number): Promise<string> {
  const id = spiffeId(trustDomain, path);
  const { entry } = await store.entries.create(
    makeEntry({ id: "", spiffeId: id, parentId: spiffeId(trustDomain, "/n"), expiresAt }),
  );
  return entry.id;
}

function openAuthorities(): ReturnType<typeof openX509> {
  return openX509({
    trustDomain,
    history: new BundleHistory({ bundles: store.bundles, trustDomain, replaced: async () => 0 }),
    keys: openMemoryKeys(),
    keyType: "ec-p256",
    ttlSeconds: DAY,
    subject: {},
    bundles: store.bundles,
    journal: store.authorities,
    clock,
    log: new RecordingLog(),
  });
}

async function rootCount(): Promise<number> {
  return (await store.bundles.find(trustDomain))?.x509Authorities.length ?? 0;
}

describe("one round", () => {
  test("removes entries that have ended, says which, and keeps the others", async () => {
    const ended = await addEntry("/ended", unixNow() - 1);
    const kept = [await addEntry("/later", unixNow() + 60), await addEntry("/never", 0)];
    await round();
    expect(await store.entries.find(ended)).toBeUndefined();
    expect(await Promise.all(kept.map((id) => store.entries.find(id)))).not.toContain(undefined);
    const fields = {
      entry_id: ended,
      spiffe_id: `spiffe://${trustDomain}/ended`,
      parent_id: `spiffe://${trustDomain}/n`,
    };
    expect(log.lines).toContainEqual({ level: "info", message: "Pruned an expired registration", fields });
  });

  test("removes join tokens that have ended", async () => {
    await store.tokens.create({ token: `old-${tests}`, expiresAt: new Date(START.getTime() - 1000) });
    await store.tokens.create({ token: `new-${tests}`, expiresAt: new Date(START.getTime() + 1000) });
    await round();
    expect(await store.tokens.consume(`old-${tests}`, "k")).toBeUndefined();
    expect(await store.tokens.consume(`new-${tests}`, "k")).toBeDefined();
  });

  test("removes roots a day after their end, and never the last one", async () => {
    await openAuthorities();
    clock.move(2 * DAY - 60);
    await openAuthorities();
    await round();
    expect(await rootCount()).toBe(2);
    clock.move(120);
    await round();
    expect(await rootCount()).toBe(1);
    clock.move(30 * DAY);
    await round();
    expect(await rootCount()).toBe(1);
  });

  test("removes token keys a day after their end, and never the last one of a kind", async () => {
    const key = (keyId: string, hours: number) => ({
      keyId,
      publicKey: Uint8Array.of(1),
      expiresAt: hours === 0 ? 0 : unixNow() + hours * 3600,
      tainted: false,
    });
    const keys = { jwtAuthorities: [key("old", -25), key("ended", -23), key("endless", 0)] };
    const wit = { witAuthorities: [key("last", -1000)] };
    await store.bundles.change(trustDomain, () => ({ x509Authorities: [], refreshHint: 7, ...keys, ...wit }));
    await round();
    const bundle = await store.bundles.find(trustDomain);
    expect(bundle?.jwtAuthorities.map(({ keyId }) => keyId)).toEqual(["ended", "endless"]);
    expect([bundle?.witAuthorities.length, bundle?.refreshHint]).toEqual([1, 7]);
    const sequence = bundle?.sequenceNumber;
    await round();
    expect((await store.bundles.find(trustDomain))?.sequenceNumber).toBe(sequence);
  });

  test("removes journal records two weeks after their end", async () => {
    const { id } = (await openAuthorities()).signing();
    const held = async (): Promise<boolean> =>
      (await store.authorities.list("x509")).some((row) => row.authorityId === id);
    clock.move(14 * DAY);
    await round();
    expect(await held()).toBe(true);
    clock.move(2 * DAY);
    await round();
    expect(await held()).toBe(false);
  });

  test("a step that fails is logged, and the others are taken all the same", async () => {
    const ended = await addEntry("/ended", unixNow() - 1);
    const tokens = {
      ...store.tokens,
      prune: () => Promise.reject(new Fault("unavailable", "away")),
    } as Store["tokens"];
    const bundles = {
      ...store.bundles,
      find: () => Promise.reject(new Fault("unavailable", "away")),
    } as Store["bundles"];
    const options = {
      store: {
        entries: store.entries,
        nodes: store.nodes,
        authorities: store.authorities,
        links: store.links,
        changes: store.changes,
        leases: store.leases,
        tokens,
        bundles,
      },
      trustDomain,
      clock,
      log,
    };
    await tidy(options, always);
    const warnings = log.lines.filter(({ level }) => level === "warn").map(({ fields }) => fields["what"]);
    expect(warnings).toEqual(["expired join tokens", "expired authorities"]);
    expect(await store.entries.find(ended)).toBeUndefined();
  });

  test("two servers that tidy at once, as when a lease is lost in the middle, do no harm", async () => {
    const ids = await Promise.all(Array.from({ length: 20 }, (_, n) => addEntry(`/e${n}`, unixNow() - 1)));
    await openAuthorities();
    clock.move(5 * DAY);
    await openAuthorities();
    await Promise.all([round(), round(), round()]);
    expect(await Promise.all(ids.map((id) => store.entries.find(id)))).toEqual(ids.map(() => undefined));
    expect(await rootCount()).toBe(1);
    expect(messagesOf(log, "info")).toHaveLength(20);
    expect(messagesOf(log, "warn")).toEqual([]);
  });
});

test("a round ends before the next step when the lease is gone", async () => {
  const ended = await addEntry("/ended", unixNow() - 1);
  await store.tokens.create({ token: `old-${tests}`, expiresAt: new Date(START.getTime() - 1000) });
  const answers = [true, true, false];
  await tidy({ store, trustDomain, clock, log }, async () => answers.shift() ?? false);
  expect(await store.entries.find(ended)).toBeUndefined();
  expect(await store.tokens.consume(`old-${tests}`, "k")).toBeDefined();
});

test("rounds come about every five minutes, and end with the signal", async () => {
  const stop = new AbortController();
  const ended = runJanitor({ store, trustDomain, clock, log }, stop.signal);
  await eventually("it waits before the first round", () => clock.sleepers === 1);
  const first = await addEntry("/one", unixNow() - 1);
  clock.move(300);
  await eventually(
    "the first round is over",
    async () => (await store.entries.find(first)) === undefined && clock.sleepers === 1,
  );
  const second = await addEntry("/two", unixNow() - 1);
  clock.move(300);
  await eventually(
    "the second round is over",
    async () => (await store.entries.find(second)) === undefined && clock.sleepers === 1,
  );
  stop.abort();
  await expect(ended).rejects.toThrow();
  expect(clock.sleepers).toBe(0);
});

describe("nodes whose SVID expired long ago", () => {
  const attest = (name: string, expiresAt: number, canReattest: boolean) =>
    store.nodes.attest({
      id: spiffeId(trustDomain, `/spire/agent/x/${name}`),
      attestationType: "x509pop",
      serialNumber: "1",
      expiresAt: new Date(expiresAt * 1000),
      canReattest,
      selectors: [],
    });
  const left = async (): Promise<readonly string[]> =>
    (await store.nodes.list({})).items
      .map(({ id }) => id)
      .filter((id) => id.includes(trustDomain))
      .map((id) => id.split("/").at(-1) ?? "");
  const sweep = (includeNonReattestable: boolean): Promise<void> =>
    tidy(
      {
        ...{ store, trustDomain, clock, log },
        nodes: { expiredForMs: DAY * 1000, batchSize: 100, includeNonReattestable },
      },
      always,
    );

  test("so many at once and no more, also when several servers prune", async () => {
    for (let index = 0; index < 7; index += 1) await attest(`n${index}`, unixNow() - 2 * DAY, true);
    const nodes = { expiredForMs: DAY * 1000, batchSize: 3, includeNonReattestable: false };
    const prune = (): Promise<void> => tidy({ store, trustDomain, clock, log, nodes }, always);
    await prune();
    expect(await left()).toHaveLength(4);
    await Promise.all([prune(), prune(), prune()]);
    await prune();
    expect(await left()).toEqual([]);
    expect(messagesOf(log, "warn")).toEqual([]);
  });

  test("are pruned when so configured, those that attest only once, banned ones and those in quarantine left alone", async () => {
    await attest("old", unixNow() - 2 * DAY, true);
    await attest("once", unixNow() - 2 * DAY, false);
    await attest("banned", unixNow() - 2 * DAY, true);
    await store.nodes.ban(spiffeId(trustDomain, "/spire/agent/x/banned"));
    await attest("suspect", unixNow() - 2 * DAY, true);
    const quarantine = { since: clock.now(), reason: "copied" };
    await store.nodes.quarantine(spiffeId(trustDomain, "/spire/agent/x/suspect"), quarantine);
    await attest("recent", unixNow() - DAY / 2, true);
    await round();
    expect(await left()).toEqual(["old", "once", "banned", "suspect", "recent"]);
    await sweep(false);
    expect(await left()).toEqual(["once", "banned", "suspect", "recent"]);
    await sweep(true);
    expect(await left()).toEqual(["banned", "suspect", "recent"]);
    expect(messagesOf(log)).toContain("Pruned expired agents");
  });
});
