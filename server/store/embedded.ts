import { once } from "node:events";
import { extname, join } from "node:path";
import { Worker } from "node:worker_threads";
import pg from "pg";
import { lockDirectory } from "../../src/runtime/directory-lock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { ensurePrivateDirectory } from "../../src/runtime/files.ts";
import type { Log } from "../../src/runtime/log.ts";
import { writtenBy } from "./embedded-directory.ts";
import type { FromWorker, ToWorker, WorkerInput } from "./embedded-worker.ts";
import { type OpenWire, type WireEnd, WireStream } from "./wire-stream.ts";

/** Waiting for the one connection counts too. A nested query inside a transaction fails after this long. */
const CONNECT_TIMEOUT_MS = 30_000;
const QUERY_TIMEOUT_MS = 60_000;

/** The driver's goodbye, which has no answer. */
const TERMINATE = "X".charCodeAt(0);

type Receiver = Parameters<OpenWire>[0];

/**
 * PostgreSQL in a worker thread, for this process alone: the directory is locked while it is open. A worker that dies
 * is replaced at the next connection; the database recovers as after a crash.
 */
export class EmbeddedServer implements AsyncDisposable {
  readonly #directory: string;
  readonly #lock: AsyncDisposable;
  readonly #log: Log;
  #worker: Promise<Worker> | undefined;
  /** Two engines on one directory would destroy it: the next starts when the last is gone. */
  #gone: Promise<unknown> = Promise.resolve();
  #current: Worker | undefined;
  #session = 0;
  #receiver: Receiver | undefined;
  /** Batches that the worker was given and has not answered to the end. */
  #unanswered = 0;

  private constructor(directory: string, lock: AsyncDisposable, log: Log) {
    this.#directory = directory;
    this.#lock = lock;
    this.#log = log;
  }

  /** Throws `precondition` naming the process that has the directory, or when another release wrote it. */
  static async open(directory: string, log: Log): Promise<EmbeddedServer> {
    await ensurePrivateDirectory(directory);
    const lock = await lockDirectory(directory);
    const data = join(directory, "pgdata");
    const server = new EmbeddedServer(data, lock, log);
    try {
      await server.#running();
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw await cannotOpen(data, error);
    }
    return server;
  }

  /** Of one connection. Ends with `end()` of the pool. */
  pool(): pg.Pool {
    const pool = new pg.Pool({
      user: "postgres",
      database: "postgres",
      password: "",
      ssl: false,
      max: 1,
      idleTimeoutMillis: 0,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      query_timeout: QUERY_TIMEOUT_MS,
      stream: () => new WireStream((receiver) => this.#open(receiver)),
      onConnect: (client) => void client.on("error", () => undefined),
    });
    pool.on("error", () => undefined);
    return pool;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      const worker = await this.#worker?.catch(() => undefined);
      if (worker !== undefined) {
        const exited = once(worker, "exit");
        worker.postMessage({ type: "close" } satisfies ToWorker);
        await exited;
      }
    } finally {
      await this.#lock[Symbol.asyncDispose]();
    }
  }

  async #open(receiver: Receiver): Promise<WireEnd> {
    const worker = await this.#running();
    this.#session += 1;
    const session = this.#session;
    this.#receiver = receiver;
    const post = (message: ToWorker): void => worker.postMessage(message);
    return {
      send: (bytes) => {
        if (bytes[0] === TERMINATE) return;
        this.#unanswered += 1;
        post({ type: "data", session, bytes });
      },
      end: () => {
        if (session !== this.#session) return;
        this.#receiver = undefined;
        if (this.#unanswered > 0) this.#abandon(worker);
        else post({ type: "end", session });
      },
    };
  }

  #running(): Promise<Worker> {
    this.#worker ??= this.#gone.then(() => this.#start());
    return this.#worker;
  }

  /** A statement cannot be stopped, only the engine that runs it. */
  #abandon(worker: Worker): void {
    this.#log.warn("A statement of the embedded datastore was given up; starting it again");
    this.#worker = undefined;
    this.#gone = worker.terminate();
  }

  async #start(): Promise<Worker> {
    const path = new URL(`./embedded-worker${extname(import.meta.url)}`, import.meta.url);
    const worker = new Worker(path, { workerData: { directory: this.#directory } satisfies WorkerInput, execArgv: [] });
    try {
      await started(worker);
    } catch (error) {
      this.#worker = undefined;
      await worker.terminate();
      throw error;
    }
    worker.on("message", (message: FromWorker) => this.#received(message));
    worker.on("error", (error: Error) => this.#log.error("The embedded datastore failed", { error }));
    worker.once("exit", () => this.#exited(worker));
    this.#current = worker;
    this.#unanswered = 0;
    return worker;
  }

  #received(message: FromWorker): void {
    if (message.type === "failed") this.#log.error("The embedded datastore failed", { reason: message.message });
    if (message.type !== "answer") return;
    if (message.last) this.#unanswered -= 1;
    if (message.session === this.#session && message.bytes.length > 0) this.#receiver?.receive(message.bytes);
  }

  #exited(worker: Worker): void {
    if (worker !== this.#current) return;
    this.#worker = undefined;
    this.#receiver?.broken(new Error("Connection terminated"));
    this.#receiver = undefined;
  }
}

async function started(worker: Worker): Promise<void> {
  const [message] = (await Promise.race([
    once(worker, "message"),
    once(worker, "exit").then(([code]) => [{ type: "failed", message: `the worker ended with status ${code}` }]),
  ])) as [FromWorker];
  if (message.type !== "ready") throw new Error(message.type === "failed" ? message.message : "unexpected answer");
}

async function cannotOpen(directory: string, cause: unknown): Promise<Fault> {
  const release = await writtenBy(directory);
  return new Fault("precondition", `cannot open the embedded datastore in ${directory}: ${messageOf(cause)}`, {
    code: "embedded-open",
    hint: `it was written by PostgreSQL ${release}; if another release of this program wrote it, export it with that one`,
    cause,
  });
}
