import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect } from "vitest";
import { type AgentConfig, type AgentFlags, loadAgentConfig } from "../../agent/config.ts";
import { faultOf, refusal } from "./faults.ts";

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-agent-config-"));
});
afterEach(() => rm(folder, { recursive: true }));

/** What the file means. */
export async function load(text: string, flags: AgentFlags = {}, name = "agent.conf"): Promise<AgentConfig> {
  const path = join(folder, name);
  await writeFile(path, text);
  return loadAgentConfig({ path, flags, env: {} });
}

/** The message, with the path of the file left out. */
export async function refused(text: string, flags: AgentFlags = {}): Promise<string> {
  const path = join(folder, "agent.conf");
  await writeFile(path, text);
  const fault = faultOf(() => loadAgentConfig({ path, flags, env: {} }));
  expect(fault).toMatchObject(refusal("invalid", "config-invalid"));
  return fault.message.replaceAll(path, "");
}

/** The smallest `agent` section, with these lines. */
export function agent(lines: string, bootstrap = "insecure_bootstrap = true"): string {
  return `agent {\n trust_domain = "a.test"\n server_address = "s"\n server_port = 8081\n ${bootstrap}\n ${lines}\n}\n`;
}
