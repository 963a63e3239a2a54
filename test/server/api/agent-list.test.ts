import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openStore } from "../../../server/store/database.ts";
import type { ListAgentsRequest } from "../../../src/rpc/gen/spire/api/server/agent/v1/ListAgentsRequest.ts";
import type { Agent__Output } from "../../../src/rpc/gen/spire/api/types/Agent.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { faultFrom } from "../../support/faults.ts";
import { withoutPostgres } from "../../support/postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { protoId, startServer, type TestServer } from "../../support/server.ts";

type Filter = NonNullable<ListAgentsRequest["filter"]>;

const NOTHING: Filter = {
  by_attestation_type: "",
  by_selector_match: null,
  by_banned: null,
  by_can_reattest: null,
  by_expires_before: "",
};
function idOf(agent: Agent__Output): string {
  return `spiffe://${agent.id?.trust_domain}${agent.id?.path}`;
}

describe.skipIf(withoutPostgres)("filters and pages over agents of many kinds", () => {
  let server: TestServer;
  const START = Date.UTC(2031, 0, 1) / 1000;

  beforeAll(async () => {
    server = await startServer({ store: "postgres" });
    await using store = await openStore(
      { kind: "postgres", connectionString: server.databaseUrl ?? "", disableMigration: true },
      { log: new RecordingLog(), clock: systemClock },
    );
    const kinds: readonly {
      readonly name: string;
      readonly type: string;
      readonly values: readonly string[];
      readonly canReattest: boolean;
    }[] = [
      { name: "a", type: "x509pop", values: ["a"], canReattest: true },
      { name: "b", type: "x509pop", values: ["b"], canReattest: false },
      { name: "ab", type: "k8s_psat", values: ["a", "b"], canReattest: true },
      { name: "abc", type: "k8s_psat", values: ["a", "b", "c"], canReattest: false },
    ];
    for (const [index, { name, type, values, canReattest }] of kinds.entries()) {
      const id = parseSpiffeId(`spiffe://example.org/spire/agent/${type}/${name}`);
      const selectors = values.map((value) => ({ type: "t", value }));
      await store.nodes.attest({
        id,
        attestationType: type,
        serialNumber: String(index + 1),
        expiresAt: new Date((START + index * 3600) * 1000),
        canReattest,
        selectors,
      });
    }
    await store.nodes.ban(parseSpiffeId("spiffe://example.org/spire/agent/x509pop/b"));
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const selectors = (...values: string[]) => values.map((value) => ({ type: "t", value }));
  interface Row {
    readonly what: string;
    readonly filter: Partial<Filter>;
    readonly names: readonly string[];
  }

  test.each([
    { what: "nothing", filter: {}, names: ["a", "b", "ab", "abc"] },
    { what: "attestation type", filter: { by_attestation_type: "k8s_psat" }, names: ["ab", "abc"] },
    {
      what: "exactly these selectors",
      filter: { by_selector_match: { match: "MATCH_EXACT", selectors: selectors("b", "a") } },
      names: ["ab"],
    },
    {
      what: "a subset",
      filter: { by_selector_match: { match: "MATCH_SUBSET", selectors: selectors("a", "b") } },
      names: ["a", "b", "ab"],
    },
    {
      what: "a superset",
      filter: { by_selector_match: { match: "MATCH_SUPERSET", selectors: selectors("a", "b") } },
      names: ["ab", "abc"],
    },
    {
      what: "any",
      filter: { by_selector_match: { match: "MATCH_ANY", selectors: selectors("c", "b") } },
      names: ["b", "ab", "abc"],
    },
    { what: "banned", filter: { by_banned: { value: true } }, names: ["b"] },
    { what: "not banned", filter: { by_banned: { value: false } }, names: ["a", "ab", "abc"] },
    { what: "can re-attest", filter: { by_can_reattest: { value: true } }, names: ["a", "ab"] },
    { what: "cannot re-attest", filter: { by_can_reattest: { value: false } }, names: ["b", "abc"] },
    { what: "expires before", filter: { by_expires_before: "2031-01-01 02:00:00 +0000 +00" }, names: ["a", "b"] },
    {
      what: "expires before, in another zone",
      filter: { by_expires_before: "2031-01-01 03:00:00 +0100 +01" },
      names: ["a", "b"],
    },
    {
      what: "a time that does not read, which is no filter",
      filter: { by_expires_before: "2031-02-30 02:00:00 +0000 +00" },
      names: ["a", "b", "ab", "abc"],
    },
    {
      what: "several at once",
      filter: { by_can_reattest: { value: true }, by_attestation_type: "x509pop" },
      names: ["a"],
    },
  ] satisfies readonly Row[])("by $what", async ({ filter, names }) => {
    const wanted = { ...NOTHING, ...filter };
    const { agents } = await server.admin.agent.ListAgents({ filter: wanted });
    expect(agents.map((agent) => idOf(agent).split("/").at(-1))).toEqual(names);
    expect(await server.admin.agent.CountAgents({ filter: wanted })).toEqual({ count: names.length });
  });

  test("no selectors to match are refused", async () => {
    const filter: Filter = { ...NOTHING, by_selector_match: { match: "MATCH_ANY", selectors: [] } };
    const expected = { kind: "invalid", message: "failed to parse selectors: empty selector set" };
    expect(await faultFrom(server.admin.agent.ListAgents({ filter }))).toMatchObject(expected);
    expect(await faultFrom(server.admin.agent.CountAgents({ filter }))).toMatchObject(expected);
  });

  test("T-F4 pages of any size asked for follow each other", async () => {
    const seen: string[] = [];
    let page_token = "";
    do {
      const page = await server.admin.agent.ListAgents({ page_size: 3, page_token });
      seen.push(...page.agents.map(idOf));
      page_token = page.next_page_token;
    } while (page_token !== "");
    expect(seen.map((id) => id.split("/").at(-1))).toEqual(["a", "b", "ab", "abc"]);
    const huge = await server.admin.agent.ListAgents({ page_size: 2 ** 31 - 1 });
    expect([huge.agents.length, huge.next_page_token]).toEqual([4, ""]);
  });

  test("another server that shares the database knows of a ban within a moment", async () => {
    await using second = await startServer({ store: { url: server.databaseUrl ?? "" } });
    const svid = await server.attest();
    using agent = second.connect(svid.tls);
    await agent.entry.GetAuthorizedEntries({});
    await server.admin.agent.BanAgent({ id: protoId(svid.id) });
    const fault = await eventuallyDenied(() => agent.entry.GetAuthorizedEntries({}));
    expect(denialReason(fault)).toBe("banned");
  });
});

async function eventuallyDenied(call: () => Promise<unknown>): Promise<Fault> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      await call();
    } catch (error) {
      return Fault.from(error);
    }
    if (attempt > 2000) throw new Error("the agent is still let in");
  }
}
