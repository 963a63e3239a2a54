import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { PROJECT } from "../support/server-process.ts";
import { startTokenServer, type TestTokenServer } from "../support/token-server.ts";

const run = promisify(execFile);
const WEB = "spiffe://example.org/web";

interface Example {
  readonly where: string;
  readonly code: string;
}

/** What the examples print, in the order in which they stand. */
const OUTPUT: Readonly<Record<string, readonly string[]>> = {
  "README.md": [`${WEB} true`],
  "src/client/README.md": [
    `${WEB} true`,
    `hello ${WEB}`,
    `hello ${WEB}`,
    `${WEB} ${WEB}`,
    WEB,
    `hello ${WEB} ${WEB}`,
    `${WEB} ${WEB}`,
  ],
};

const examples: Example[] = [];
for (const file of Object.keys(OUTPUT)) {
  const text = await readFile(join(PROJECT, file), "utf8");
  for (const [index, match] of [...text.matchAll(/^```ts\n(.*?)^```$/gms)].entries())
    examples.push({ where: `${file} ${index}`, code: match[1] ?? "" });
}

describe("the examples of the documents do what they say", () => {
  let server: TestTokenServer;
  let agent: TestAgent;
  let folder: string;
  let broker: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(PROJECT, "test", ".example-"));
    server = await startTokenServer();
    server.entries({ id: "web", spiffeId: WEB, selectors: [OWN_SELECTOR] });
    broker = join(folder, "broker", "api.sock");
    const brokers = [{ id: WEB, allowed_reference_types: [{ type_url: "*" }] }];
    agent = await startAgent(server, {
      agent: { experimental: { feature_flags: ["wit-svid"], broker: { socket_path: broker, brokers } } },
    });
  });
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  test("there are as many as there are outputs", () => {
    expect(examples).toHaveLength(Object.values(OUTPUT).flat().length);
  });

  test.each(examples)("$where", async ({ where, code }) => {
    const path = join(folder, `${where.replaceAll(/\W/g, "-")}.mjs`);
    const entry = (name: string): string => `from "${join(PROJECT, "src/client", name)}"`;
    const here = code.replaceAll('from "steeple"', entry("index.ts"));
    await writeFile(path, here.replaceAll('from "steeple/incubating"', entry("incubating.ts")));
    const env = { ...process.env, SPIFFE_ENDPOINT_SOCKET: agent.socket, SPIFFE_BROKER_SOCKET: `unix://${broker}` };
    const { stdout } = await run(process.execPath, [path], { env, timeout: 30_000 });
    const [file = "", index] = where.split(" ");
    expect(stdout).toBe(`${OUTPUT[file]?.[Number(index)]}\n`);
  });
});
