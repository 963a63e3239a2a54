import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, test } from "vitest";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { PROJECT } from "../support/server.ts";
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
    agent = await startAgent(server);
  });
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
  });

  test.each(readdirSync(FOLDER).sort())("%s", async (file) => {
    await runTranscript(join(FOLDER, file), new Map(), () => ["-socketPath", agent.socketPath]);
  });
});
