import { execFile } from "node:child_process";
import { chmod, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { dialUnix } from "../../src/rpc/dial.ts";
import { AttestationApi } from "../../src/rpc/protos.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { PROJECT } from "../support/imports.ts";
import { startServer } from "../support/server.ts";
import { runProgram } from "../support/transcript.ts";
import { isRoot, NOBODY, temporaryDirectory } from "../support/workload.ts";

let scope: AsyncDisposableStack;
let agent: TestAgent;
let socket: string;

beforeAll(async () => {
  scope = new AsyncDisposableStack();
  const server = scope.use(await startServer());
  const { path } = scope.use(await temporaryDirectory());
  socket = join(path, "private", "admin.sock");
  const bus = { DBUS_SYSTEM_BUS_ADDRESS: `unix:path=${join(path, "nobody-is-here")}` };
  agent = scope.use(
    await startAgent(server, {
      agent: { admin_socket_path: socket },
      workloadAttestors: { unix: { discover_workload_path: true }, systemd: {} },
      env: bus,
    }),
  );
  await server.createEntry({
    parentId: agent.id(),
    spiffeId: "spiffe://example.org/me",
    selectors: [OWN_SELECTOR],
  });
  await eventually("the agent serves us", () => agent.fetch().catch(() => undefined));
});
afterAll(() => scope.disposeAsync());

const run = (line: string) => runProgram(`agent attestation ${line} -socketPath ${socket}`);

test("attestation show tells what each attestor found of a caller, how long it took, and why one failed", async () => {
  const { status, stdout } = await run(`show -pid ${process.pid}`);
  expect(status).toBe(0);
  const lines = stdout.split("\n");
  expect(lines).toContain(`PID       : ${process.pid}`);
  expect(lines).toContain(`Caller    : uid ${process.getuid?.()}, gid ${process.getgid?.()}`);
  expect(stdout).toMatch(/^Took {6}: [\d.]+\S+$/m);
  expect(stdout).toMatch(/^Attestor {2}: unix, \S+, \d+ selectors$/m);
  expect(stdout).toMatch(/^Attestor {2}: systemd, \S+, failed: \S+/m);
  expect(lines).toContain(`  Selector: unix:uid:${process.getuid?.()}`);
  expect(stdout).toMatch(/^ {2}Selector: unix:sha256:[0-9a-f]{64}$/m);
});

test("attestation list names the last callers, the newest first, without what was found", async () => {
  await agent.fetch();
  const { stdout } = await run("list -output json");
  const { attestations } = JSON.parse(stdout) as {
    attestations: { at_ms: string; pid: number; results: { attestor: string; selectors: unknown[] }[] }[];
  };
  expect(attestations.length).toBeGreaterThan(1);
  const times = attestations.map(({ at_ms }) => Number(at_ms));
  expect(times).toEqual(times.toSorted((a, b) => b - a));
  expect(attestations[0]?.pid).toBe(process.pid);
  expect(attestations.flatMap(({ results }) => results.flatMap(({ selectors }) => selectors))).toEqual([]);
  expect(stdout).not.toContain("unix:uid");
  const table = await run(`list -pid ${process.pid} -output table`);
  expect(table.stdout).toMatch(/^TIME +PID +UID +TOOK +SELECTORS +ATTESTORS +ERROR$/m);
  expect(table.stdout).toContain("unix,systemd (failed)");
  expect((await run("list -pid 1")).stdout).toBe("Found 0 attestations\n");
});

test("a process that did not call, or none, is told from one that did", async () => {
  expect(await run("show -pid 1")).toMatchObject({ status: 1, stderr: expect.stringContaining("attestation-unknown") });
  expect(await run("show")).toMatchObject({ stderr: expect.stringContaining("attestation-pid") });
  using channel = dialUnix(socket);
  const asked = channel.client(AttestationApi).ListAttestations({ limit: -1 });
  await expect(asked).rejects.toMatchObject({ kind: "invalid" });
});

test("what was found is in no log, and not to be had on the public socket", async () => {
  await run(`show -pid ${process.pid}`);
  expect(agent.output()).toContain("PID attested to have selectors");
  expect(agent.output()).not.toMatch(/unix:uid|"uid:|sha256:/);
  using channel = dialUnix(agent.socketPath);
  const metadata = { "workload.spiffe.io": "true" };
  await expect(channel.client(AttestationApi).ListAttestations({}, { metadata })).rejects.toMatchObject({
    kind: "unimplemented",
  });
});

test.skipIf(!isRoot)("nobody but root and the agent's user is shown it, whoever may connect", async () => {
  await using folder = await temporaryDirectory();
  const open = join(folder.path, "open");
  await mkdir(open);
  for (const path of [folder.path, open, join(socket, ".."), join(socket, "..", ".."), socket])
    await chmod(path, 0o777);
  const args = [join(PROJECT, "agent/main.ts"), "attestation", "list", "-socketPath", socket];
  const asking = promisify(execFile)(process.execPath, args, { uid: NOBODY, gid: NOBODY, cwd: open });
  await expect(asking).rejects.toMatchObject({ stdout: "", stderr: expect.stringContaining("attestations-private") });
});
