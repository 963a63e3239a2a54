import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { startServer } from "../support/server.ts";
import { PROJECT } from "../support/server-process.ts";
import { temporaryDirectory } from "../support/workload.ts";
import type { Run } from "./render.ts";

const bench = (...args: string[]) =>
  promisify(execFile)(process.execPath, [join(PROJECT, "test/bench/run.ts"), ...args]).catch(
    (failure: { readonly code: number; readonly stdout: string; readonly stderr: string }) => failure,
  );

test("a scenario run as a process measures a server of its own and one given by address, and leaves nothing there", async () => {
  await using folder = await temporaryDirectory();
  await using peer = await startServer({ server: { ratelimit: { attestation: false, signing: false } } });
  const json = join(folder.path, "run.json");
  const address = ["--server", `127.0.0.1:${peer.port}`, "--server-socket", peer.socketPath, "--peer", "the other"];
  const { stdout } = await bench(
    "jwt",
    "--calls",
    "20",
    "--in-flight",
    "2",
    "--store",
    "embedded",
    "--json",
    json,
    ...address,
  );
  expect(stdout).not.toContain("Ended early");
  const run = JSON.parse(await readFile(json, "utf8")) as Run;
  expect(run).toMatchObject({ format: "steeple-bench/1", peer: "the other", machine: { node: process.version } });
  const [outcome] = run.scenarios;
  expect(outcome).toMatchObject({ scenario: "jwt", parameters: { calls: 20, inFlight: [2] } });
  for (const subject of ["Steeple", "the other"]) {
    const results = outcome?.results.filter((result) => result.subject === subject) ?? [];
    expect(results.map(({ name }) => name)).toEqual(["JWT-SVIDs", "one call", "server CPU for one"]);
    expect(results[1]).toMatchObject({ unit: "ms", at: { "in flight": 2 }, spread: { count: 20 } });
    expect(results[0]?.againstPeer === undefined).toBe(subject === "the other");
  }
  expect(stdout).toMatch(/^Steeple .*\n.* cores .*\nLoad \d/);
  expect(stdout).toMatch(/^JWT-SVIDs +2 in flight +the other +[\d.,]+\/s/m);
  const [entries, agents] = [await peer.admin.entry.ListEntries({}), await peer.admin.agent.ListAgents({})];
  expect([entries.entries, agents.agents]).toEqual([[], []]);
}, 300_000);

test("what cannot be read ends with an error, its code and status 1", async () => {
  const failure = await bench("jtw");
  expect(failure).toMatchObject({ code: 1, stderr: expect.stringContaining('there is no scenario "jtw"') });
  expect(failure.stderr).toContain("Code: usage");
});
