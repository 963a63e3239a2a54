import { expect, test } from "vitest";
import { listServices } from "../../../src/client/services.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { bundlesOf, Endpoint } from "../../support/endpoint.ts";
import { FakeAgent, refuse } from "../../support/fake-agent.ts";
import { createCa } from "../../support/pki.ts";

test("WEP-32 an endpoint without reflection offers the Workload API and nothing else", async () => {
  await using agent = await FakeAgent.start(systemClock, refuse(12));
  expect(await listServices({ socket: agent.socket })).toEqual(["SpiffeWorkloadAPI"]);
  expect(agent.calls[0]?.headers["workload.spiffe.io"]).toBe("true");
});

test("WEP-32 an endpoint with reflection says what it offers", async () => {
  await using endpoint = await Endpoint.start({ bundles: bundlesOf(await createCa()) });
  expect(await listServices({ socket: `unix://${endpoint.path}` })).toContain("grpc.health.v1.Health");
});

test.each([
  { code: 3, kind: "invalid" },
  { code: 14, kind: "unavailable" },
])("an endpoint that answers $kind is not taken for one without reflection", async ({ code, kind }) => {
  await using agent = await FakeAgent.start(systemClock, refuse(code));
  await expect(listServices({ socket: agent.socket })).rejects.toMatchObject({ kind });
});
