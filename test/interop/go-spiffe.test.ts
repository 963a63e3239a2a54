import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isSpiffeId } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { PROJECT, startServer } from "../support/server.ts";

const program = process.env["INTEROP_GO_SPIFFE"] ?? "";

class Peer implements AsyncDisposable {
  readonly child: ChildProcess;
  stdout = "";
  stderr = "";
  readonly #closed: Promise<unknown>;

  constructor(args: readonly string[], socket = "", input = "") {
    this.child = spawn(program, args, { stdio: "pipe", env: { ...process.env, SPIFFE_ENDPOINT_SOCKET: socket } });
    this.child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.stdout += text;
    });
    this.child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.stderr += text;
    });
    this.child.stdin?.end(input);
    this.#closed = once(this.child, "close");
  }

  /** Its output, once it has ended with status 0. */
  async result(): Promise<string> {
    await this.#closed;
    if (this.child.exitCode !== 0) throw new Error(`status ${this.child.exitCode}: ${this.stderr}`);
    return this.stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill("SIGKILL");
    await this.#closed;
  }
}

async function identities(ttl = 3600) {
  const server = await startServer();
  const agent = await startAgent(server);
  const entry = { parentId: agent.id(), selectors: [OWN_SELECTOR], x509_svid_ttl: ttl };
  await server.createEntry({ ...entry, id: "1", spiffeId: "spiffe://example.org/web", hint: "internal" });
  const stack = new AsyncDisposableStack();
  stack.use(server);
  stack.use(agent);
  await eventually("the agent serves the entry", () => agent.fetch().catch(() => undefined));
  return { server, agent, entry, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

describe("go-spiffe", () => {
  test("fetches every identity with its hint, and the bundle", async () => {
    await using house = await identities();
    await house.server.createEntry({
      ...house.entry,
      id: "2",
      spiffeId: "spiffe://example.org/web-ext",
      hint: "external",
    });
    await eventually("both identities are served", async () => (await house.agent.fetch()).svids.length === 2);
    await using peer = new Peer(["fetch"], house.agent.socket);
    expect(await peer.result()).toBe(
      'spiffe://example.org/web "internal"\nspiffe://example.org/web-ext "external"\nbundle example.org 1\n',
    );
  });

  test("two of its processes do mutual TLS with our identities", async () => {
    await using house = await identities();
    await using listener = new Peer(["serve"], house.agent.socket);
    const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1]);
    await using caller = new Peer(["dial", address, "spiffe://example.org/web"], house.agent.socket);
    expect(await caller.result()).toBe("hello world\n");
    await listener.result();
  });

  test("refuses a peer with another identity than the one it asked for", async () => {
    await using house = await identities();
    await using listener = new Peer(["serve"], house.agent.socket);
    const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1]);
    await using caller = new Peer(["dial", address, "spiffe://example.org/other"], house.agent.socket);
    await expect(caller.result()).rejects.toThrow(/unexpected ID "spiffe:\/\/example.org\/web"/);
  });

  test("its watcher receives rotations, each before the last one has ended", async () => {
    await using house = await identities(12);
    await using peer = new Peer(["watch", "4"], house.agent.socket);
    const lines = (await peer.result())
      .trim()
      .split("\n")
      .map((line) => line.split(" "));
    expect(new Set(lines.map(([serial]) => serial)).size).toBe(4);
    const ends = lines.map(([, end]) => Number(end));
    expect(ends).toEqual(ends.toSorted((a, b) => a - b));
  });

  test("T-S2: it and our parser accept the same SPIFFE IDs", async () => {
    const vectors = ["spiffe-id.valid.txt", "spiffe-id.invalid.txt"].flatMap((file) =>
      readFileSync(join(PROJECT, "test/vectors", file), "utf8").split("\n"),
    );
    const piece = fc.constantFrom(
      "spiffe://",
      "spiffe:/",
      "a",
      "A",
      "-",
      "_",
      ".",
      "..",
      "/",
      "//",
      "%2f",
      "?",
      "#",
      ":",
      "@",
      "é",
      " ",
      "0",
      "example.org",
    );
    const made = fc.sample(
      fc.array(piece, { maxLength: 8 }).map((parts) => parts.join("")),
      20_000,
    );
    const prefixed = made.map((text) => `spiffe://td/${text}`);
    // Ours refuses more than 2048 bytes, which the standard leaves open.
    const candidates = [...vectors, ...made, ...prefixed].filter((text) => text.length <= 2048 && text.isWellFormed());
    await using peer = new Peer(["parse"], "", candidates.map((text) => `${JSON.stringify(text)}\n`).join(""));
    const answers = (await peer.result()).trim().split("\n");
    expect(answers).toHaveLength(candidates.length);
    const different = candidates.filter((text, index) => isSpiffeId(text) !== (answers[index] === "ok"));
    expect(different).toEqual([]);
    expect(answers.filter((answer) => answer === "ok").length).toBeGreaterThan(100);
  });
});
