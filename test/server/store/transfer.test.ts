import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { SqlStore } from "../../../server/store/database.ts";
import { SCHEMA_VERSION } from "../../../server/store/migrations.ts";
import { exportStore, importStore } from "../../../server/store/transfer.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { linkOf } from "../../contract/store-bundle-links.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import {
  authorityOf,
  bundleOf,
  draftOf,
  emptyStore,
  nodeOf,
  openTestStore,
  postgresConfig,
  selectorsOf,
} from "../../support/store-data.ts";

const B = parseTrustDomain("b.test");
const EXPIRES = new Date("2030-01-01T00:00:00.123Z");

async function fill(store: SqlStore): Promise<void> {
  await store.bundles.change(B, () => bundleOf(1, 2));
  for (let index = 0; index < 700; index += 1) await store.entries.create(draftOf(`n${index}`));
  const selectors = selectorsOf('x:{"a", \\}', "x:größe \u2028");
  await store.entries.create(
    draftOf("odd", { federatesWith: [B], selectors, hint: "line\nbreak", expiresAt: 2 ** 53 - 1 }),
  );
  const { id } = await store.nodes.attest(nodeOf("one", { expiresAt: EXPIRES, selectors }));
  await store.nodes.quarantine(id, { since: new Date("2029-01-01T00:00:00.123Z"), reason: "größe" });
  await store.tokens.create({ token: "secret", expiresAt: EXPIRES });
  await store.authorities.save([authorityOf("aa"), authorityOf("bb", { kind: "jwt", certificateChain: [] })]);
  await store.links.save(linkOf("aa", { x509Authorities: [Uint8Array.of(0, 255), Uint8Array.of(1)] }));
  await store.session.write((db) =>
    sql`insert into federation_relationships (trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id)
      values ('b.test', 'https://b.test/', 'https_web', '')`.execute(db),
  );
}

/** Everything but what an import renews: the sequence numbers of bundles. */
async function contentOf(store: SqlStore): Promise<unknown> {
  const bundles = (await store.bundles.list({})).items.map(({ sequenceNumber: _, ...content }) => content);
  const relationships = store.session.read((db) => db.selectFrom("federation_relationships").selectAll().execute());
  const tokens = store.session.read((db) => db.selectFrom("join_tokens").selectAll().execute());
  return {
    bundles,
    entries: (await store.entries.list({})).items,
    nodes: (await store.nodes.list({})).items,
    authorities: [await store.authorities.list("x509"), await store.authorities.list("jwt")],
    links: await store.links.list(),
    relationships: await relationships,
    tokens: await tokens,
  };
}

describe("export and import", () => {
  let directory: string;
  let store: SqlStore;
  let lines: string[];

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "steeple-transfer-"));
    store = await openTestStore({ kind: "embedded", directory });
    await fill(store);
    lines = await Array.fromAsync(exportStore(store));
  });
  afterAll(async () => {
    await store?.[Symbol.asyncDispose]();
    await rm(directory, { recursive: true, force: true });
  });

  test.skipIf(withoutPostgres)(
    "a store moves from the embedded database to PostgreSQL and back with everything in it",
    async () => {
      const content = await contentOf(store);
      await using database = await createDatabase();
      await using postgres = await openTestStore(postgresConfig(database.url));
      expect(await importStore(postgres, lines)).toBe(lines.length - 2);
      expect(await contentOf(postgres)).toEqual(content);
      const again = await Array.fromAsync(exportStore(postgres));
      await emptyStore(store);
      expect(await importStore(store, again)).toBe(again.length - 2);
      expect(await contentOf(store)).toEqual(content);
      const { entry } = await store.entries.create(draftOf("after"));
      expect((await store.entries.list({})).items.at(-1)).toEqual(entry);
    },
  );

  test("TDB-07 after a restore of an old backup the sequence number passes what was published since", async () => {
    await emptyStore(store);
    await store.bundles.change(B, () => bundleOf(1));
    const backup = await Array.fromAsync(exportStore(store));
    const { sequenceNumber: published } = await store.bundles.change(B, () => bundleOf(1, 2, 3));
    await emptyStore(store);
    await importStore(store, backup);
    const restored = await store.bundles.find(B);
    expect(restored?.x509Authorities).toHaveLength(1);
    expect(restored?.sequenceNumber).toBeGreaterThanOrEqual(published);
    const { sequenceNumber: next } = await store.bundles.change(B, () => bundleOf(4));
    expect(next).toBeGreaterThan(published);
  });

  test("sequence numbers of 64 bits survive", async () => {
    await emptyStore(store);
    await store.bundles.change(B, () => bundleOf(1));
    await store.session.write((db) => sql`update bundles set sequence_number = 18446744073709551000`.execute(db));
    const backup = await Array.fromAsync(exportStore(store));
    await emptyStore(store);
    await importStore(store, backup);
    expect(await store.bundles.find(B)).toMatchObject({ sequenceNumber: 18446744073709551001n });
  });

  test("importing asks readers of the feed for a reload", async () => {
    await emptyStore(store);
    const cursor = await store.changes.load(async (snapshot) => snapshot.cursor);
    await importStore(store, lines);
    expect(await store.changes.since(cursor)).toBe("other");
  });

  test("a store that holds something is not imported into", async () => {
    await emptyStore(store);
    await store.tokens.create({ token: "there", expiresAt: EXPIRES });
    const fault = await faultFrom(importStore(store, lines));
    expect(fault).toMatchObject(refusal("precondition", "store-not-empty"));
    expect(await store.entries.count({})).toBe(0);
  });

  test.each<{
    what: string;
    edit: (lines: readonly string[]) => readonly string[];
    code: string;
    kind: "invalid" | "precondition";
  }>([
    {
      what: "of a newer schema",
      edit: (all) => [`{"format":"steeple-store","schema":${SCHEMA_VERSION + 1}}`, ...all.slice(1)],
      code: "export-schema",
      kind: "precondition",
    },
    { what: "without its first line", edit: (all) => all.slice(1), code: "export-broken", kind: "invalid" },
    { what: "cut short", edit: (all) => all.slice(0, -1), code: "export-broken", kind: "invalid" },
    { what: "with a row missing", edit: (all) => all.toSpliced(5, 1), code: "export-broken", kind: "invalid" },
    { what: "with a line after the last", edit: (all) => [...all, "{}"], code: "export-broken", kind: "invalid" },
    {
      what: "with a line that is not JSON",
      edit: (all) => all.toSpliced(5, 1, "{"),
      code: "export-broken",
      kind: "invalid",
    },
    {
      what: "with an unknown table",
      edit: (all) => all.toSpliced(5, 1, '{"table":"pg_authid","row":{}}'),
      code: "export-broken",
      kind: "invalid",
    },
    {
      what: "with a row that has no values",
      edit: (all) => all.toSpliced(5, 1, '{"table":"entries","row":{}}'),
      code: "value-not-storable",
      kind: "invalid",
    },
    { what: "that is empty", edit: () => [], code: "export-broken", kind: "invalid" },
  ])("an export $what is refused, and nothing of it is kept", async ({ edit, code, kind }) => {
    await emptyStore(store);
    const fault = await faultFrom(importStore(store, edit(lines)));
    expect(fault).toMatchObject(refusal(kind, code));
    expect(await store.entries.count({})).toBe(0);
    expect(await store.bundles.count()).toBe(0);
  });

  test("an export that nobody reads to the end leaves the store usable", async () => {
    await emptyStore(store);
    await importStore(store, lines);
    for await (const line of exportStore(store)) if (line.includes('"entries"')) break;
    await store.ping();
  });
});
