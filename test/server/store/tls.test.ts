import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FakeClock } from "../../support/clock.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { type OpensslDirectory, openssl } from "../../support/openssl.ts";
import {
  type Cluster,
  createDatabase,
  findPostgres,
  startCluster,
  type TestDatabase,
  withoutPostgres,
} from "../../support/postgres.ts";
import { openTestStore, postgresConfig } from "../../support/store-data.ts";

/** A self-signed certificate, which is its own root. */
async function makeCertificate(folder: OpensslDirectory, name: string, subjectAltName: string): Promise<void> {
  await folder.run(
    ...[
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:P-256",
      "-nodes",
      "-days",
      "2",
      "-subj",
      "/CN=db",
    ],
    ...["-addext", `subjectAltName=${subjectAltName}`, "-keyout", `${name}.key`, "-out", `${name}.crt`],
  );
}

describe.skipIf(withoutPostgres)("TLS to PostgreSQL", () => {
  let folder: OpensslDirectory;
  let cluster: Cluster;
  let database: TestDatabase;

  beforeAll(async () => {
    folder = await openssl();
    await makeCertificate(folder, "good", "DNS:db.example");
    await makeCertificate(folder, "other", "DNS:db.example");
    const read = (name: string): Promise<string> => readFile(join(folder.path, name), "utf8");
    const tls = { certificate: await read("good.crt"), key: await read("good.key") };
    cluster = await startCluster((await findPostgres()) ?? "", { tls });
    database = await createDatabase(cluster.url);
  });
  afterAll(async () => {
    await cluster?.[Symbol.asyncDispose]();
    await folder?.[Symbol.asyncDispose]();
  });

  const open = (mode: string, root?: string) => {
    const url = new URL(database.url);
    url.searchParams.set("sslmode", mode);
    if (root !== undefined) url.searchParams.set("sslrootcert", join(folder.path, root));
    return openTestStore(postgresConfig(url.href), { clock: new FakeClock() });
  };

  test.each([
    { mode: "disable", encrypted: false },
    { mode: "prefer", encrypted: true },
    { mode: "require", encrypted: true },
    { mode: "require", root: "good.crt", encrypted: true },
    { mode: "verify-ca", root: "good.crt", encrypted: true },
  ])("sslmode $mode with root $root connects, encrypted: $encrypted", async ({ mode, root, encrypted }) => {
    await using store = await open(mode, root);
    const { rows } = await store.session.read((db) =>
      sql<{ ssl: boolean }>`select ssl from pg_stat_ssl where pid = pg_backend_pid()`.execute(db),
    );
    expect(rows).toEqual([{ ssl: encrypted }]);
  });

  test.each([
    { mode: "verify-full", root: "good.crt", reason: /does not match certificate|is not in the cert/ },
    { mode: "verify-ca", root: "other.crt", reason: /self-signed|unable to verify|certificate/ },
    { mode: "require", root: "other.crt", reason: /self-signed|unable to verify|certificate/ },
    { mode: "verify-full", root: undefined, reason: /self-signed|unable to verify|certificate/ },
  ])("sslmode $mode with root $root refuses a server that it does not prove", async ({ mode, root, reason }) => {
    const fault = await faultFrom(open(mode, root));
    expect(fault).toMatchObject(refusal("unavailable", "datastore-unavailable"));
    expect(fault.message).toMatch(reason);
  });
});
