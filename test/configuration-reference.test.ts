import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { agentReference } from "../agent/config.ts";
import { serverReference } from "../server/config.ts";
import { PROJECT } from "./support/imports.ts";

test.each([
  { file: "server/configuration.md", print: serverReference },
  { file: "agent/configuration.md", print: agentReference },
])("$file is what the schema says", ({ file, print }) => {
  // `npx steeple-server validate -explain > server/configuration.md`, and the agent's likewise.
  expect(readFileSync(join(PROJECT, file), "utf8")).toBe(print());
});
