import { execFile } from "node:child_process";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { eventually } from "../support/eventually.ts";
import { administer, createDatabase, withoutPostgres } from "../support/postgres.ts";
import { startServer } from "../support/server.ts";
import { PROJECT, writeServerConfig } from "../support/server-process.ts";

const run = promisify(execFile);
const server = (...args: readonly string[]) => run(process.execPath, [join(PROJECT, "server/main.ts"), ...args]);

test.skipIf(withoutPostgres)(
  "a server ends when a newer one makes the database one that it must not serve from",
  { timeout: 120_000 },
  async () => {
    await using old = await startServer({ store: "postgres" });
    const url = old.databaseUrl ?? "";
    await administer(url, "update schema_meta set version = 99");
    await old.createEntry({ spiffeId: "spiffe://example.org/web", parentId: "spiffe://example.org/node" });
    await administer(url, "update schema_meta set readable_from = 98");
    await eventually("it says why", () => old.output().includes("Code: schema-newer"), 30_000);
    expect(await old.stop()).toBe(1);
    await expect(startServer({ store: { url } })).rejects.toThrow("the datastore has schema version 99");
  },
);

test.skipIf(withoutPostgres)(
  "an embedded store moves to PostgreSQL whole, and the server goes on with it",
  { timeout: 120_000 },
  async () => {
    const folder = await mkdtemp(join(tmpdir(), "steeple-move-"));
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(() => rm(folder, { recursive: true, force: true }));
    const file = join(folder, "export.jsonl");
    let bundle: Buffer | undefined;
    let entryId = "";
    {
      await using embedded = await startServer({ folder });
      entryId = (
        await embedded.createEntry({ spiffeId: "spiffe://example.org/web", parentId: "spiffe://example.org/node" })
      ).id;
      bundle = (await embedded.admin.bundle.GetBundle({})).x509_authorities[0]?.asn1;
      const refused = server("datastore", "export", "-config", embedded.configFile, "-file", file);
      await expect(refused).rejects.toMatchObject({
        code: 1,
        stderr: expect.stringContaining(`in use by process ${embedded.pid}`),
      });
    }
    await server("datastore", "export", "-config", join(folder, "server.json"), "-file", file);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    const again = server("datastore", "export", "-config", join(folder, "server.json"), "-file", file);
    await expect(again).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringContaining("name a file that does not exist"),
    });

    await using database = await createDatabase();
    const config = await writeServerConfig(folder, {}, database.url);
    expect((await server("datastore", "import", "-config", config, "-file", file)).stdout).toMatch(
      /^Imported \d+ rows\n$/,
    );
    await expect(server("datastore", "import", "-config", config, "-file", file)).rejects.toMatchObject({ code: 1 });
    await using moved = await startServer({ folder, store: { url: database.url } });
    expect((await moved.admin.entry.GetEntry({ id: entryId })).spiffe_id?.path).toBe("/web");
    const { x509_authorities } = await moved.admin.bundle.GetBundle({});
    expect(x509_authorities.map(({ asn1 }) => asn1)).toEqual([bundle]);
  },
);
