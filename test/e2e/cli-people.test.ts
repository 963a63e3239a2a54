import { execFile } from "node:child_process";
import { symlink } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { serverProgram } from "../../server/cli/program.ts";
import { runCommandLine } from "../../src/runtime/cli.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { eventually } from "../support/eventually.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { PROJECT } from "../support/server-process.ts";

interface Person {
  /** What is typed. */
  readonly input?: string;
  /** Columns of the terminal; none without it. */
  readonly terminal?: number;
  readonly env?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

interface Outcome {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

interface Running {
  readonly ended: Promise<number>;
  out(): string;
  err(): string;
}

function start(args: readonly string[], person: Person = {}): Running {
  const { input = "", terminal, env = {}, signal = new AbortController().signal } = person;
  const [out, err]: [string[], string[]] = [[], []];
  const tty = terminal === undefined ? {} : { isTTY: true, columns: terminal };
  const io: Io = {
    stdout: { write: (part) => out.push(part), ...tty },
    stderr: { write: (part) => err.push(part), ...tty },
    stdin: Object.assign(Readable.from([input]), tty),
    env: { TERM: "xterm", ...env },
  };
  const ended = runCommandLine(serverProgram(io.env), { args, io, signal });
  return { ended, out: () => out.join(""), err: () => err.join("") };
}

async function run(args: readonly string[], person?: Person): Promise<Outcome> {
  const running = start(args, person);
  const status = await running.ended;
  return { status, out: running.out(), err: running.err() };
}

describe("the command line for people", () => {
  let server: TestServer;
  let socket: readonly string[];
  beforeAll(async () => {
    server = await startServer();
    socket = ["-socketPath", server.socketPath];
  }, 60_000);
  afterAll(() => server[Symbol.asyncDispose]());

  async function makeEntry(name: string): Promise<string> {
    const { id } = await server.createEntry({
      spiffeId: `spiffe://example.org/${name}`,
      parentId: "spiffe://example.org/node",
    });
    return id;
  }

  describe("destructive commands", () => {
    const TERMINAL = { terminal: 120 };

    test("say what they will touch and ask on a terminal, and change nothing without a yes", async () => {
      const id = await makeEntry("asked");
      const refused = await run(["entry", "delete", ...socket, "--entry-id", id], { ...TERMINAL, input: "n\n" });
      expect(refused).toMatchObject({ status: 1, out: "" });
      expect(refused.err).toContain(`  ${id}  spiffe://example.org/asked under spiffe://example.org/node\n`);
      expect(refused.err).toContain("Go on? [y/N] ");
      expect(refused.err).toContain("Code: not-confirmed\n");
      expect((await run(["entry", "delete", ...socket, "--entry-id", id], { ...TERMINAL, input: "" })).status).toBe(1);
      expect((await run(["entry", "show", ...socket, "-entryID", id])).status).toBe(0);

      const done = await run(["entry", "delete", ...socket, "--entry-id", id], { ...TERMINAL, input: "y\n" });
      expect(done).toMatchObject({ status: 0, out: expect.stringContaining("Deleted 1 entries successfully\n") });
    });

    test.each([{ flag: "-entryID" }, { flag: "--entryID" }])(
      "never ask when spelled as SPIRE's: $flag",
      async ({ flag }) => {
        const id = await makeEntry("habit");
        const done = await run(["entry", "delete", ...socket, flag, id], TERMINAL);
        expect(done).toMatchObject({ status: 0, err: "" });
      },
    );

    test("with --yes they only say it", async () => {
      const id = await makeEntry("yes");
      const done = await run(["entry", "delete", ...socket, "--entry-id", id, "--yes"]);
      expect(done.status).toBe(0);
      expect(done.err).toMatch(/^This will delete 1 entry, .*\n {2}.* spiffe:\/\/example\.org\/yes /);
    });

    test("without a terminal a line that SPIRE would read asks nothing, and any other needs --yes", async () => {
      const id = await makeEntry("script");
      const refused = await run(["entry", "delete", ...socket, "--entry-id", id]);
      expect(refused).toMatchObject({ status: 1, out: "" });
      expect(refused.err).toContain("Hint: add -yes\nCode: confirmation-needed\n");
      const file = ["entry", "delete", ...socket, "--file", "-"];
      expect(await run(file, { input: JSON.stringify({ ids: [id] }) })).toMatchObject({ status: 0, err: "" });
    });

    test("agents, bundles, relationships and authorities are described as well", async () => {
      const agent = await server.attest();
      const ask = (...words: string[]) => run([...words.slice(0, -2), ...socket, ...words.slice(-2)], { ...TERMINAL });
      expect((await ask("agent", "evict", "--spiffe-id", agent.id)).err).toMatch(
        /^This will evict spiffe:.* \(attested by join_token; 0 entries have it as parent\) so that it/,
      );
      expect((await ask("agent", "ban", "--spiffe-id", agent.id)).err).toMatch(/^This will ban spiffe:/);
      expect((await ask("bundle", "delete", "--id", "other.test")).err).toMatch(
        /^This will delete the bundle of other\.test; it is refused while an entry/,
      );
      expect((await ask("federation", "delete", "--id", "other.test")).err).toMatch(/^This will delete the federation/);
      const taint = ["localauthority", "x509", "taint", "--authority-id", "x"];
      expect((await ask(...taint)).err).toMatch(/^This will taint the X\.509 authority x: /);
      const revoke = ["upstreamauthority", "revoke", "--subject-key-id", "x"];
      expect((await ask(...revoke)).err).toMatch(/^This will revoke the upstream authority x: /);
      expect((await run(["agent", "show", ...socket, "-spiffeID", agent.id])).status).toBe(0);
    });
  });

  describe("--watch", () => {
    test("prints a list again when it changed, until it is stopped", async () => {
      const stop = new AbortController();
      const args = [
        "entry",
        "show",
        ...socket,
        "-output",
        "json",
        "-hint",
        "watched",
        "--watch",
        "-watchInterval",
        "20ms",
      ];
      const watching = start(args, { signal: stop.signal });
      await eventually("the first list", () => watching.out() === '{"entries":[],"next_page_token":""}\n');
      const { id } = await server.createEntry({
        spiffeId: "spiffe://example.org/watched",
        parentId: "spiffe://example.org/node",
        hint: "watched",
      });
      await eventually("the second list", () => watching.out().includes(`"id":"${id}"`));
      stop.abort();
      expect(await watching.ended).toBe(0);
      expect(watching.out().trimEnd().split("\n")).toHaveLength(2);
      await server.admin.entry.BatchDeleteEntry({ ids: [id] });
    });

    test("clears a terminal before each list", async () => {
      const stop = new AbortController();
      const watching = start(["agent", "list", ...socket, "--watch"], { terminal: 80, signal: stop.signal });
      await eventually("the list", () => watching.out().startsWith("\u001b[H\u001b[2J"));
      stop.abort();
      expect(await watching.ended).toBe(0);
    });

    test("fails at once when the first look does", async () => {
      const outcome = await run(["agent", "list", "-socketPath", join(server.folder, "none"), "--watch"]);
      expect(outcome).toMatchObject({ status: 1, out: "" });
    });

    test("is a flag of every list", async () => {
      for (const words of [
        ["agent", "list"],
        ["entry", "show"],
        ["bundle", "list"],
        ["federation", "list"],
      ]) {
        expect((await run([...words, "--help"])).out).toContain("  -watch\n");
      }
    });
  });

  test("tables are cut to the terminal's width", async () => {
    const id = await makeEntry("a-workload-with-quite-a-long-name");
    const cut = await run(["entry", "show", ...socket, "-output", "table"], { terminal: 60 });
    expect(Math.max(...cut.out.split("\n").map((line) => line.length))).toBeLessThanOrEqual(60);
    expect(cut.out).toContain("…");
    expect((await run(["entry", "show", ...socket, "-output", "wide"], { terminal: 60 })).out).toContain(
      "spiffe://example.org/a-workload-with-quite-a-long-name",
    );
    await server.admin.entry.BatchDeleteEntry({ ids: [id] });
  });

  test("--show-request prints each request as a grpcurl command, and nothing else changes", async () => {
    const { status, out, err } = await run([
      "entry",
      "count",
      ...socket,
      "-hint",
      "it's",
      "-downstream",
      "--show-request",
    ]);
    expect({ status, out }).toEqual({ status: 0, out: "0 registration entries\n" });
    expect(err).toBe(
      `grpcurl -plaintext -import-path ${join(PROJECT, "proto")} -proto spire/api/server/entry/v1/entry.proto ` +
        `-d '{"filter":{"by_downstream":true,"by_hint":"it'\\''s"}}' unix://${server.socketPath} spire.api.server.entry.v1.Entry/CountEntries\n`,
    );
  });

  test("the socket comes from the flag, then -instance, then the environment", async () => {
    const SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE = join(server.folder, "%i.sock");
    const env = { SPIRE_SERVER_PRIVATE_SOCKET: server.socketPath };
    expect((await run(["bundle", "count"], { env })).out).toBe("1 bundle\n");
    expect(
      (await run(["bundle", "count", "-instance", "api"], { env: { SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE } })).out,
    ).toBe("1 bundle\n");
    const both = { ...env, SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE };
    expect((await run(["bundle", "count", "-instance", "none"], { env: both })).status).toBe(1);
    expect((await run(["bundle", "count", ...socket, "-instance", "none"], { env: both })).status).toBe(0);
    expect((await run(["bundle", "count", "-instance", "api"], { env })).err).toMatch(
      /^Error: you must define SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE to use the instance flag\n/,
    );
    const without = { SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE: "/run/api.sock" };
    expect((await run(["bundle", "count", "-instance", "api"], { env: without })).err).toMatch(
      /^Error: failed to find %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE\n/,
    );
  });

  describe("completion", () => {
    /** What bash would offer at the end of the line. */
    async function completed(line: string): Promise<readonly string[]> {
      const script = `
        source <(steeple-server completion bash)
        COMP_LINE=$1 COMP_POINT=\${#1}
        _steeple_server
        printf '%s\\n' "\${COMPREPLY[@]}"
      `;
      const { stdout } = await promisify(execFile)("bash", ["-c", script, "bash", line], {
        env: { ...process.env, PATH: `${server.folder}:${process.env["PATH"]}` },
      });
      return stdout.split("\n").filter(Boolean);
    }

    beforeAll(() => symlink(join(PROJECT, "src/runtime/launch.sh"), join(server.folder, "steeple-server")));

    test("in bash: commands, flags, values of flags and what lives on the server", async () => {
      const id = await makeEntry("completed");
      const at = `-socketPath ${server.socketPath}`;
      const [commands, flags, formats, ids, names] = await Promise.all([
        completed("steeple-server entry c"),
        completed("steeple-server entry show --match"),
        completed("steeple-server entry show -output "),
        completed(`steeple-server entry delete ${at} -entryID ${id.slice(0, 4)}`),
        completed(`steeple-server entry show ${at} -spiffeID spiffe://example.org/comp`),
      ]);
      expect(commands).toEqual(["count", "create"]);
      expect(flags).toEqual(["--match-selectors-on", "--match-federates-with-on"]);
      expect(formats).toEqual(["pretty", "json", "table", "wide", "yaml"]);
      expect(ids).toEqual([id]);
      // Bash takes what stands before the last colon as written.
      expect(names).toEqual(["//example.org/completed"]);
      await server.admin.entry.BatchDeleteEntry({ ids: [id] });
    });

    test("knows agents, their entries' parents, trust domains, relationships and authorities too", async () => {
      const { id } = await server.attest();
      const { x509_authorities } = await server.admin.bundle.GetBundle({});
      await server.admin.bundle.BatchSetFederatedBundle({ bundle: [{ trust_domain: "other.test", x509_authorities }] });
      const offered = async (...words: string[]) =>
        (await run(["__complete", "--", ...words.slice(0, -1), ...socket, words.at(-1) ?? "", ""])).out
          .split("\n")
          .map((line) => line.split("\t")[0]);
      expect(await offered("agent", "show", "-spiffeID")).toContain(id);
      expect(await offered("entry", "create", "-parentID")).toContain(id);
      expect(await offered("bundle", "delete", "-id")).toContain("other.test");
      expect(await offered("federation", "delete", "-id")).toEqual([""]);
      expect(await offered("localauthority", "x509", "taint", "-authorityID")).toHaveLength(2);
      await server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains: ["other.test"] });
    });

    test("is silent when the server is away", async () => {
      const words = ["agent", "show", "-socketPath", join(server.folder, "none"), "-spiffeID", ""];
      expect(await run(["__complete", "--", ...words])).toEqual({ status: 0, out: "", err: "" });
    });

    test.each([
      { words: ["f"], out: /^federation\tManages/ },
      { words: [""], out: /^agent\t/ },
      { words: ["agent", "list", "-banned="], out: /^-banned=true\t\n-banned=false\t\n$/ },
      { words: ["entry", "create", "-data", ""], out: /^:file\t\n$/ },
      { words: ["entry", "create", "-admin", "-dn"], out: /^-dns\t/ },
      { words: ["entry", "create", "--x509-svid-t"], out: /^--x509-svid-ttl\t.*\n$/ },
      { words: ["nothing", "like", "this"], out: /^$/ },
    ])("$words", async ({ words, out }) => {
      expect((await run(["__complete", "--", ...words])).out).toMatch(out);
    });
  });
});
