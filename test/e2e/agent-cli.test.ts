import { readdirSync } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { agentProgram } from "../../agent/cli/program.ts";
import { runCommandLine } from "../../src/runtime/cli.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { PROJECT } from "../support/server-process.ts";
import { startTokenServer, type TestTokenServer } from "../support/token-server.ts";
import { runTranscript } from "../support/transcript.ts";

const FOLDER = join(PROJECT, "test/e2e/agent-cli");

describe("transcripts of the commands that ask an agent", () => {
  let server: TestTokenServer;
  let agent: TestAgent;
  beforeAll(async () => {
    server = await startTokenServer();
    server.entries(
      { id: "web", spiffeId: "spiffe://example.org/web", selectors: [OWN_SELECTOR], hint: "internal" },
      { id: "api", spiffeId: "spiffe://example.org/api", selectors: [OWN_SELECTOR] },
    );
    agent = await startAgent(server, { agent: { experimental: { feature_flags: ["wit-svid"] } } });
  });
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
  });

  /** Until the first update is there. */
  async function watchOnce(flags: readonly string[]): Promise<{ readonly out: string }> {
    const stop = new AbortController();
    const out: string[] = [];
    const io = {
      stdout: { write: (part: string) => out.push(part) },
      stderr: { write: () => undefined },
      stdin: (async function* () {})(),
      env: {},
    };
    const args = ["api", "watch", "-socketPath", agent.socketPath, ...flags];
    const watching = runCommandLine(agentProgram(), { args, io, signal: stop.signal });
    await eventually("the first update", () => out.join("").endsWith("\n"));
    stop.abort();
    expect(await watching).toBe(0);
    return { out: out.join("") };
  }

  test.each(readdirSync(FOLDER).sort())("%s", async (file) => {
    await runTranscript(join(FOLDER, file), new Map([["folder", agent.folder]]), () => [
      "-socketPath",
      agent.socketPath,
    ]);
    expect((await stat(join(agent.folder, "wit.0.key"))).mode & 0o777).toBe(0o600);
  });

  test("api watch prints SPIRE's text, which leaves hints out", async () => {
    const { out } = await watchOnce([]);
    expect(out).toMatch(
      /^Received 2 svids after \S+\n\nSPIFFE ID:\t\tspiffe:\/\/example.org\/web\nSVID Valid After:\t/,
    );
    expect(out).not.toContain("Hint");
  });

  test("api watch prints each update in the form that is asked for, without private keys", async () => {
    const { out } = await watchOnce(["-output", "json"]);
    const { svids, trust_domains } = JSON.parse(out.split("\n")[0] ?? "");
    expect(trust_domains).toEqual(["example.org"]);
    expect(svids.map(({ spiffe_id }: { readonly spiffe_id: string }) => spiffe_id)).toEqual([
      "spiffe://example.org/web",
      "spiffe://example.org/api",
    ]);
    expect(out).not.toContain("key");
  });
});
