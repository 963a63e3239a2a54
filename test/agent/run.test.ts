import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadAgentConfig } from "../../agent/config.ts";
import { runAgent } from "../../agent/run.ts";
import { fetchX509Svid } from "../../src/client/index.ts";
import { OWN_SELECTOR, writeAgentConfig } from "../support/agent.ts";
import { SteppedClock } from "../support/clock.ts";
import { eventually } from "../support/eventually.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { temporaryDirectory } from "../support/workload.ts";

const HOUR = 3_600_000;
const YEAR = 366 * 24 * HOUR;

let server: TestServer;

beforeAll(async () => {
  server = await startServer();
});

afterAll(() => server[Symbol.asyncDispose]());

/** An agent in this process, so that its clock is the test's. */
async function runInProcess(folder: string, clock: SteppedClock) {
  const path = await writeAgentConfig(server, folder);
  const joinToken = await server.createToken();
  const config = loadAgentConfig({ path, expandEnv: false, flags: { joinToken }, env: {} });
  const log = new RecordingLog();
  const stop = new AbortController();
  let failure: unknown;
  const ended = runAgent({ config, log, logger: { level: "info" }, clock, version: "test", signal: stop.signal }).catch(
    (error: unknown) => {
      failure = error;
    },
  );
  const errors = (message: string) =>
    log.lines.filter((line) => line.message === message).map(({ fields }) => String(fields["error"]));
  const started = () =>
    eventually(
      "the start",
      () => log.lines.some(({ message }) => message === "Starting Workload and SDS APIs"),
      30_000,
    );
  const id = () =>
    String(log.lines.find(({ message }) => message === "Node attestation was successful")?.fields["spiffe_id"]);
  return {
    ...{ errors, started, id },
    fetch: (deadlineMs = 10_000) => fetchX509Svid({ socket: `unix://${config.socketPath}`, deadlineMs }),
    failure: () => failure,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended;
    },
  };
}

const steps = [
  { what: "an hour ahead", ms: HOUR, says: /expired/ },
  { what: "a year ahead", ms: YEAR, says: /expired/ },
  {
    what: "an hour back",
    ms: -HOUR,
    says: /the clock of this machine .* is earlier than the start of the server's certificate/,
  },
  {
    what: "a year back",
    ms: -YEAR,
    says: /the clock of this machine .* is earlier than the start of the server's certificate/,
  },
];

describe("T-F7 an agent whose clock is wrong", () => {
  test.concurrent.each(steps)(
    "at its start, $what, says so and starts once the clock is right",
    async ({ ms, says }) => {
      await using folder = await temporaryDirectory();
      const clock = new SteppedClock();
      clock.step(ms);
      await using agent = await runInProcess(folder.path, clock);
      const [error] = await eventually("a failed attempt", () => {
        const errors = agent.errors("Failed to retrieve attestation result");
        return errors.length > 0 && errors;
      });
      expect(error).toMatch(says);
      clock.step(-ms);
      await agent.started();
    },
  );

  test.concurrent.each(steps)(
    "while it runs, $what, goes on, and serves as before once the clock is right",
    async ({ ms }) => {
      await using folder = await temporaryDirectory();
      const clock = new SteppedClock();
      await using agent = await runInProcess(folder.path, clock);
      await agent.started();
      await server.createEntry({
        spiffeId: "spiffe://example.org/web",
        parentId: agent.id(),
        selectors: [OWN_SELECTOR],
      });
      await eventually("the identity", async () => (await agent.fetch()).svids.length === 1, 30_000);
      clock.step(ms);
      // Ahead of time nothing valid is held; behind it, the workload gets what it has.
      if (ms > 0) await expect(agent.fetch(1_500)).rejects.toMatchObject({ kind: "timeout" });
      else expect((await agent.fetch()).svids).toHaveLength(1);
      expect(agent.failure()).toBeUndefined();
      clock.step(-ms);
      await eventually("the identity", async () => (await agent.fetch()).svids.length === 1, 30_000);
      expect(agent.failure()).toBeUndefined();
    },
  );
});
