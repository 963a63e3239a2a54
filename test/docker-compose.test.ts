import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { agentProgram } from "../agent/cli/program.ts";
import { loadAgentConfig } from "../agent/config.ts";
import { serverProgram } from "../server/cli/program.ts";
import { loadServerConfig } from "../server/config.ts";
import { tpmCommands } from "../src/dev/tpm.ts";
import type { CommandTree } from "../src/runtime/cli.ts";
import { compose } from "./support/compose.ts";
import { PROJECT } from "./support/imports.ts";

const programs = {
  "steeple-server": serverProgram({}).commands,
  "steeple-agent": agentProgram().commands,
  steeple: { tpm: tpmCommands } as CommandTree,
};

/** Every `steeple-…` command line in the file: commands, healthchecks, and the lines of shell scripts. */
function commandLines(): string[] {
  const texts = Object.values(compose.services).flatMap(({ command = [], healthcheck }) => [
    command[0] === "sh" ? (command[2] ?? "") : command.join(" "),
    (healthcheck?.test ?? []).slice(1).join(" "),
  ]);
  return texts.flatMap((text) =>
    [...text.matchAll(/\bsteeple(?:-server|-agent| tpm) [^|>\n]*/g)].map(([line]) => line.trim()),
  );
}

test("every command in docker-compose.yml exists, with the flags it is given", () => {
  const lines = commandLines();
  expect(lines.length).toBeGreaterThan(12);
  for (const line of lines) {
    const [program = "", ...words] = line.split(/\s+/);
    let tree: CommandTree | undefined = programs[program as keyof typeof programs];
    let flags: readonly string[] = [];
    for (const word of words.filter(
      (candidate, index) =>
        !candidate.startsWith("-") && !words.slice(0, index).some((before) => before.startsWith("-")),
    )) {
      const node: CommandTree[string] | undefined = tree?.[word];
      expect(node, `${line}: ${word}`).toBeDefined();
      flags = Object.keys(node?.command?.flags ?? {});
      tree = node?.commands;
    }
    for (const flag of words.filter((word) => word.startsWith("-")))
      expect(flags, line).toContain(flag.replace(/^--?/, ""));
  }
});

test("the configurations in docker-compose.yml are valid", () => {
  const folder = mkdtempSync(join(tmpdir(), "steeple-compose-"));
  for (const [name, { content }] of Object.entries(compose.configs)) {
    const path = join(folder, `${name}.conf`);
    writeFileSync(path, content);
    const config = name === "server" ? loadServerConfig({ path }) : loadAgentConfig({ path });
    expect(config.trustDomain).toBe("example.org");
  }
});

test("what the image copies exists, volumes and configurations are declared, nothing runs as root", () => {
  const dockerfile = compose["x-image"].build.dockerfile_inline;
  const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, files = ""]) => files.split(" "));
  expect(copied.length).toBeGreaterThan(5);
  for (const file of copied) expect(() => readFileSync(join(PROJECT, file)), file).not.toThrow(/ENOENT/);
  const stages = dockerfile.split(/^FROM /m).map((stage) => stage.trimEnd());
  for (const { volumes = [], configs = [], user, build, depends_on = {} } of Object.values(compose.services)) {
    expect(user).toBeUndefined();
    if (build !== undefined)
      expect(stages.find((stage) => stage.split("\n")[0]?.endsWith(` AS ${build.target}`))).toMatch(/\nUSER node$/);
    for (const volume of volumes) expect(Object.keys(compose.volumes)).toContain(volume.split(":")[0]);
    for (const { source } of configs) expect(Object.keys(compose.configs)).toContain(source);
    for (const name of Object.keys(depends_on)) expect(Object.keys(compose.services)).toContain(name);
  }
});
