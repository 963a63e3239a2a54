import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { startServer, type TestServer } from "../support/server.ts";

/** A program of somebody else's, as a process. */
export class Peer implements AsyncDisposable {
  readonly child: ChildProcess;
  stdout = "";
  stderr = "";
  readonly #closed: Promise<unknown>;

  constructor([program = "", ...args]: readonly string[], socket = "", input = "") {
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

export interface House extends AsyncDisposable {
  readonly server: TestServer;
  readonly agent: TestAgent;
}

/** A server, an agent, and two identities for this user: `/web`, the default, and `/web-ext`. */
export async function identities(ttl = 3600): Promise<House> {
  const server = await startServer();
  const agent = await startAgent(server);
  const entry = { parentId: agent.id(), selectors: [OWN_SELECTOR], x509_svid_ttl: ttl };
  await server.createEntry({ ...entry, id: "1", spiffeId: "spiffe://example.org/web", hint: "internal" });
  const stack = new AsyncDisposableStack();
  stack.use(server);
  stack.use(agent);
  await server.createEntry({ ...entry, id: "2", spiffeId: "spiffe://example.org/web-ext", hint: "external" });
  await eventually("the agent serves both", async () => (await agent.fetch()).svids.length === 2);
  return { server, agent, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}
