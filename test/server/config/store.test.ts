import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { folder, load, refused, store } from "./support.ts";

describe("the store", () => {
  test.each([
    { what: "nothing", lines: "", directory: "/data/store" },
    { what: "embedded", lines: 'database_type = "embedded"', directory: "/data/store" },
  ])("$what is the embedded one in the data folder", async ({ lines, directory }) => {
    expect((await load(store(lines))).dataStore).toEqual({ kind: "embedded", directory });
  });

  test.each([
    { connection: "/x/spire/datastore.sqlite3", directory: "/x/spire/store" },
    { connection: "file:/x/spire/d.db?cache=shared", directory: "/x/spire/store" },
    { connection: "file:///x/spire/d.db", directory: "/x/spire/store" },
    { connection: "./rel/d.db", directory: `${process.cwd()}/rel/store` },
    { connection: ":memory:", directory: "/data/store" },
    { connection: "file:memdb?mode=memory&cache=shared", directory: "/data/store" },
  ])(
    "sqlite3 $connection means the embedded one in that file's folder, and says so",
    async ({ connection, directory }) => {
      const { dataStore } = await load(store(`database_type = "sqlite3"\nconnection_string = "${connection}"`));
      expect(dataStore).toEqual({ kind: "embedded", directory, notice: expect.stringContaining(directory) });
    },
  );

  test("sqlite3 is refused when a SQLite file with data stands there, with the way to export", async () => {
    const file = join(folder, "datastore.sqlite3");
    await writeFile(file, Buffer.concat([Buffer.from("SQLite format 3\0"), Buffer.alloc(100_000)]));
    const message = await refused(store(`database_type = "sqlite3"\nconnection_string = "${file}"`));
    expect(message).toMatch(
      /^:9:2: the SQLite database .*datastore\.sqlite3 holds data that this server would not see/,
    );
    expect(message).toContain("spire-server entry show -output json");
    expect(existsSync(file)).toBe(true);
  });

  test.each([
    { what: "an empty file", content: Buffer.alloc(0) },
    {
      what: "a database without tables",
      content: Buffer.concat([Buffer.from("SQLite format 3\0"), Buffer.alloc(4080)]),
    },
    { what: "another file", content: Buffer.alloc(100_000, "x") },
  ])("but not for $what", async ({ content }) => {
    const file = join(folder, "datastore.sqlite3");
    await writeFile(file, content);
    const { dataStore } = await load(store(`database_type = "sqlite3"\nconnection_string = "${file}"`));
    expect(dataStore.kind).toBe("embedded");
  });

  test.each([
    {
      lines: 'database_type = "mysql"\nconnection_string = "x"',
      message: /:9:2: database_type "mysql" is not supported; write database_type = "postgres" with connection_string/,
    },
    {
      lines: 'database_type "aws_postgres" { region = "x" }',
      message: /:9:2: database_type "aws_postgres" is not supported by this version of Steeple/,
    },
    { lines: 'database_type = "oracle"', message: /:9:2: unknown database_type "oracle"; use postgres or embedded/ },
    { lines: 'database_type = "postgres"', message: /^:7:12: connection_string must be set/ },
    {
      lines: 'database_type = "postgres"\nconnection_string = "x"\nclient_cert_path = "/c"',
      message: /client_cert_path and client_key_path must be set together/,
    },
    { lines: "database_type { a {} b {} }", message: /exactly one database type is expected/ },
    {
      lines: 'database_typ = "postgres"',
      message: /unknown key "database_typ" in plugins\.DataStore\.sql; did you mean "database_type"\?/,
    },
  ])("$lines is refused", async ({ lines, message }) => expect(await refused(store(lines))).toMatch(message));

  test("T-J8 a fault never repeats the connection string", async () => {
    expect(await refused(store('database_type = "mysql"\nconnection_string = "root:hunter2@tcp(db)/x"'))).not.toContain(
      "hunter2",
    );
  });
});
