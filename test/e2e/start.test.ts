import { expect, test } from "vitest";
import { OWN_SELECTOR, restartAgent, startAgent, writeAgentConfig } from "../support/agent.ts";
import { startServer } from "../support/server.ts";
import type { LogRecord } from "../support/server-process.ts";
import { temporaryDirectory } from "../support/workload.ts";

/** Several programs start, one after the other. */
const START_MS = 180_000;

const complaints = ({ output }: { output(): string }): readonly LogRecord[] =>
  output()
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as LogRecord)
    .filter(({ level }) => level !== "debug" && level !== "info");

test("a server and an agent that start as they should warn of nothing", async () => {
  await using server = await startServer();
  await using folder = await temporaryDirectory();
  {
    await using agent = await startAgent(server, { folder: folder.path });
    await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id(), selectors: [OWN_SELECTOR] });
    await using watch = agent.watch();
    await watch.until("an identity", ({ svids }) => svids.length === 1);
    expect(complaints(agent)).toEqual([]);
  }
  await using again = await restartAgent(folder.path);
  await using watch = again.watch();
  await watch.until("the identity again", ({ svids }) => svids.length === 1);
  expect(complaints(again)).toEqual([]);
  expect(complaints(server)).toEqual([]);
});

test("agents that start before their server, a new one and a known one, say so seldom and go on when it has come", {
  timeout: START_MS,
}, async () => {
  await using home = await temporaryDirectory();
  await using known = await temporaryDirectory();
  await using fresh = await temporaryDirectory();
  const first = await startServer({ folder: home.path });
  await (await startAgent(first, { folder: known.path }))[Symbol.asyncDispose]();
  await writeAgentConfig(first, fresh.path, { agent: { join_token: await first.createToken() } });
  await first.stop();

  const agents = [
    { path: known.path, failure: "Failed to initialize manager" },
    { path: fresh.path, failure: "Failed to retrieve attestation result" },
  ].map(async ({ path, failure }) => ({ agent: await restartAgent(path, { anyState: true }), failure }));
  for (const { agent, failure } of await Promise.all(agents)) await agent.untilLogged(failure);
  await using server = await startServer({ folder: home.path, server: { bind_port: first.port } });
  for (const { agent, failure } of await Promise.all(agents)) {
    await agent.untilLogged("Starting Workload and SDS APIs");
    const [said, ...again] = complaints(agent);
    expect(said).toMatchObject({
      level: "warning",
      msg: failure,
      error: expect.stringContaining("nothing listens there"),
    });
    for (const record of again) expect(record).toMatchObject({ level: "warning", msg: failure });
    for (const { failures } of again) expect(failures).toBeGreaterThan(2);
    await agent[Symbol.asyncDispose]();
  }
  expect(complaints(server)).toEqual([]);
  await first[Symbol.asyncDispose]();
});
