import { describe, expect, test } from "vitest";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { eventually } from "../support/eventually.ts";
import { createDatabase, findPostgres, startCluster, withoutPostgres } from "../support/postgres.ts";
import { startServer, type TestServer } from "../support/server.ts";

/** Several programs start, and authorities are looked at every 10 s. */
const TEST_MS = 180_000;

async function authoritiesOf({ admin }: TestServer): Promise<readonly string[]> {
  const { active: x509 } = await admin.localAuthority.GetX509AuthorityState({});
  const { active: jwt } = await admin.localAuthority.GetJWTAuthorityState({});
  return [x509?.authority_id ?? "", jwt?.authority_id ?? ""];
}

async function published({ admin }: TestServer): Promise<readonly string[]> {
  const { x509_authorities, jwt_authorities } = await admin.bundle.GetBundle({});
  return [
    ...x509_authorities.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId),
    ...jwt_authorities.map(({ key_id }) => key_id),
  ];
}

describe.skipIf(withoutPostgres)("a database that is put back to a copy older than its servers", () => {
  test(
    "has the authorities of every server again, whichever comes first, and each signs with what it had",
    async () => {
      await using cluster = await startCluster((await findPostgres()) ?? "");
      const { url } = await createDatabase(cluster.url);
      await using _ = await startServer({ store: { url } });
      await cluster.stop();
      const restore = await cluster.copy();
      await cluster.start();
      await using one = await startServer({ store: { url } });
      await using two = await startServer({ store: { url } });
      const before = [...(await authoritiesOf(one)), ...(await authoritiesOf(two))];
      await eventually("both are published", async () => (await published(one)).length >= 6);

      await cluster.stop();
      await restore();
      await cluster.start();
      await one.untilLogged("The bundle in the datastore is older than before; JWT key published again");
      await two.untilLogged("The bundle in the datastore is older than before; JWT key published again");
      await eventually("all are published again", async () => (await published(two)).length >= 6);
      expect(await published(two)).toEqual(expect.arrayContaining(before));
      expect([...(await authoritiesOf(one)), ...(await authoritiesOf(two))]).toEqual(before);
    },
    TEST_MS,
  );
});
