import { beforeAll, expect, test } from "vitest";
import { dialUnix } from "../../src/rpc/dial.ts";
import { ReflectionApi } from "../../src/rpc/protos.ts";
import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { useInstalled } from "../support/programs.ts";
import { startServer } from "../support/server.ts";

beforeAll(useInstalled, 300_000);

test("the programs as they are installed issue, reflect and log as their sources do", {
  timeout: 180_000,
}, async () => {
  await using server = await startServer({ server: { log_source_location: true } });
  await using agent = await startAgent(server, { agent: { log_source_location: true } });
  await server.createEntry({ parentId: agent.id(), spiffeId: "spiffe://example.org/web", selectors: [OWN_SELECTOR] });
  const { svids } = await eventually("an identity", () => agent.fetch().catch(() => undefined));
  expect(svids.map(({ id }) => id)).toEqual(["spiffe://example.org/web"]);

  using channel = dialUnix(server.socketPath);
  const asked = [{ list_services: "" }, { file_containing_symbol: "spire.api.server.entry.v1.Entry" }];
  const answers = await Array.fromAsync(
    channel.client(ReflectionApi).ServerReflectionInfo(
      (async function* () {
        yield* asked;
      })(),
    ),
  );
  expect(answers[0]?.list_services_response?.service.map(({ name }) => name)).toContain(
    "spire.api.server.entry.v1.Entry",
  );
  expect(answers[1]?.file_descriptor_response?.file_descriptor_proto.length).toBeGreaterThan(1);

  const file = expect.stringMatching(/^part-.*\.js:\d+$/);
  expect(agent.logged("Starting agent")).toMatchObject([{ func: "agentStarting", file }]);
  expect(server.logged("Starting Server APIs", { network: "unix" })[0]?.["func"]).toBe("serverApisStarting");
  expect(server.output() + agent.output()).not.toContain("ExperimentalWarning");
  expect([await agent.stop(), await server.stop()]).toEqual([0, 0]);
});
