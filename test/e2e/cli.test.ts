import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, test } from "vitest";
import { startServer, type TestServer } from "../support/server.ts";
import { PROJECT } from "../support/server-process.ts";
import { runTranscript } from "../support/transcript.ts";

const FOLDER = join(PROJECT, "test/e2e/cli");

/** The commands that take the server's socket; the others run as they are written. */
const ONLINE =
  /^server (agent|bundle|debug|entry|federation|healthcheck|jwt|localauthority|logger|token|upstreamauthority|wit|x509)\b/;

/** The scripts run one after the other against one server, in the order of their names; what one makes it removes. */
describe("command line transcripts", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await startServer({ server: { experimental: { feature_flags: ["wit-svid"] } } });
  }, 60_000);
  afterAll(() => server[Symbol.asyncDispose]());

  for (const file of readdirSync(FOLDER)
    .filter((name) => name.endsWith(".script"))
    .sort()) {
    test(file.replace(".script", ""), { timeout: 120_000 }, async () => {
      const variables = new Map([["folder", server.folder]]);
      if (file === "agent-attested.script") variables.set("agent", (await server.attest()).id);
      await runTranscript(join(FOLDER, file), variables, (command) =>
        ONLINE.test(command) && !/--help/.test(command) ? ["-socketPath", server.socketPath] : [],
      );
    });
  }
});
