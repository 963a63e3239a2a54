import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openStore, type SqlStore } from "../../../server/store/database.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import type { Fault } from "../../../src/runtime/fault.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa, type TestCa } from "../../support/pki.ts";
import { withoutPostgres } from "../../support/postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { connects, identityOf } from "./handshakes.ts";

describe.skipIf(withoutPostgres)("when bundles change", () => {
  let server: TestServer;
  let store: SqlStore;
  let foreign: TestCa;
  const ADMIN = "spiffe://other.test/admin";
  beforeAll(async () => {
    server = await startServer({ store: "postgres", server: { admin_ids: [ADMIN] } });
    store = await openStore(
      { kind: "postgres", connectionString: server.databaseUrl ?? "", disableMigration: true },
      { log: new RecordingLog(), clock: systemClock },
    );
    foreign = await createCa({ trustDomain: "other.test" });
  });
  afterAll(async () => {
    await store[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  const setForeign = (...roots: readonly Uint8Array[]) =>
    store.bundles.change(parseTrustDomain("other.test"), () => ({
      x509Authorities: roots.map((asn1) => ({ asn1, tainted: false })),
      jwtAuthorities: [],
      witAuthorities: [],
      refreshHint: 0,
    }));

  test("T-C11 a foreign administrator gets in by the list and its own bundle, and nobody of the same path or domain with it", async () => {
    const admin = identityOf(await foreign.issue({ id: ADMIN }));
    expect(await connects(server, admin)).toBe(false);
    await server.untilLogged(
      "No bundle found for foreign admin trust domain; admins from this trust domain will not be able to connect. Make sure this trust domain is correctly federated.",
      { trust_domain: "other.test" },
    );
    expect(await connects(server, admin)).toBe(false);
    expect(
      server.logged(
        "No bundle found for foreign admin trust domain; admins from this trust domain will not be able to connect. Make sure this trust domain is correctly federated.",
      ),
    ).toHaveLength(1);

    await setForeign(foreign.der);
    await eventually("the bundle has arrived", () => connects(server, admin));
    using apis = server.connect(admin);
    expect(await apis.entry.CountEntries({})).toEqual({ count: 0 });
    expect(await connects(server, identityOf(await foreign.issue({ id: "spiffe://other.test/admin2" })))).toBe(false);
    const impostor = await createCa({ trustDomain: "other.test" });
    expect(await connects(server, identityOf(await impostor.issue({ id: ADMIN })))).toBe(false);
    using samePath = server.connect((await server.mint("spiffe://example.org/admin")).tls);
    expect(await faultFrom(samePath.entry.CountEntries({}))).toMatchObject({ kind: "denied" });
  });

  test("T-C5 T-C6 an open connection loses its rights when the root of its certificate is removed", async () => {
    await setForeign(foreign.der);
    const admin = identityOf(await foreign.issue({ id: ADMIN }));
    await eventually("the bundle has arrived", () => connects(server, admin));
    using apis = server.connect(admin);
    await apis.entry.CountEntries({});
    await setForeign((await createCa({ trustDomain: "other.test" })).der);
    const fault = await eventually("the call is refused", () =>
      faultFrom(apis.entry.CountEntries({})).catch(() => undefined),
    );
    expect(fault).toMatchObject({
      kind: "unauthenticated",
      message: expect.stringContaining("client certificate is not trusted any more"),
    });
    expect(await connects(server, admin)).toBe(false);
  });

  /** A stream on which the agent says nothing; how the server ends it. */
  async function openSync(apis: Apis): Promise<Fault> {
    const silent = async function* () {
      await new Promise<never>(() => {});
      yield {};
    };
    return faultFrom(apis.entry.SyncAuthorizedEntries(silent())[Symbol.asyncIterator]().next());
  }

  test("T-C5 the same holds for an agent, and its open stream, when the root of the trust domain itself is removed; a new root is made at once", async () => {
    const agent = await server.attest();
    using apis = server.connect(agent.tls);
    const ended = openSync(apis);
    await apis.entry.GetAuthorizedEntries({});
    const { x509_authorities } = await server.admin.bundle.GetBundle({});
    const replacement = await createCa();
    await store.bundles.change(parseTrustDomain("example.org"), (current) => ({
      ...(current as NonNullable<typeof current>),
      x509Authorities: [{ asn1: replacement.der, tainted: false }],
    }));
    const fault = await eventually("the call is refused", () =>
      faultFrom(apis.entry.GetAuthorizedEntries({})).catch(() => undefined),
    );
    expect(fault).toMatchObject({ kind: "unauthenticated" });
    expect(await ended).toMatchObject({
      kind: "unauthenticated",
      message: "client certificate is not trusted any more",
    });
    const roots = await eventually(
      "a new root is in the bundle",
      async () => {
        const { x509_authorities: now } = await server.admin.bundle.GetBundle({});
        return now.length === 2 ? now : undefined;
      },
      30_000,
    );
    expect(roots.map(({ asn1 }) => asn1.toString("base64"))).not.toContain(
      x509_authorities[0]?.asn1.toString("base64"),
    );
  });
});
