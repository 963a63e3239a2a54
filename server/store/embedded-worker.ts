import { parentPort, workerData } from "node:worker_threads";
import type { PGlite } from "@electric-sql/pglite";
import { initialise } from "./embedded-directory.ts";
import { openEngine } from "./embedded-engine.ts";

/** `session` numbers the connections: at most one is open, and what is late for an old one is dropped. */
export type ToWorker =
  | { readonly type: "data"; readonly session: number; readonly bytes: Uint8Array }
  | { readonly type: "end"; readonly session: number }
  | { readonly type: "close" };
export type FromWorker =
  | { readonly type: "ready" }
  /** `last`: of what one batch is answered with. */
  | { readonly type: "answer"; readonly session: number; readonly bytes: Uint8Array; readonly last: boolean }
  | { readonly type: "failed"; readonly message: string };
export interface WorkerInput {
  /** Holds the database; made when it is not there. */
  readonly directory: string;
}

/** Collected before they go to the other thread in one message. */
const ANSWER_BYTES = 256 * 1024;

/** Frontend messages of PostgreSQL's protocol: Sync ends a failed batch, the rest gives the session back as new. */
const RESET = [
  message("S", Buffer.alloc(0)),
  message("Q", Buffer.from("rollback\0")),
  message("Q", Buffer.from("discard all\0")),
];

function message(type: string, body: Buffer): Uint8Array {
  const head = Buffer.alloc(5);
  head.write(type, "latin1");
  head.writeUInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

async function serve(): Promise<void> {
  const port = parentPort;
  if (port === null) throw new Error("this module runs in a worker thread");
  const post = (answer: FromWorker, transfer: readonly ArrayBuffer[] = []): void =>
    port.postMessage(answer, [...transfer]);
  try {
    const { directory } = workerData as WorkerInput;
    await initialise(directory);
    const engine = await openEngine(directory);
    let last: Promise<void> = Promise.resolve();
    port.on("message", (request: ToWorker) => {
      last = last.then(() => answer(engine, request, post)).catch(fail);
    });
    post({ type: "ready" });
  } catch (error) {
    fail(error);
  }

  function fail(error: unknown): void {
    post({ type: "failed", message: error instanceof Error ? error.message : String(error) });
  }
}

type Post = (answer: FromWorker, transfer?: readonly ArrayBuffer[]) => void;

async function answer(engine: PGlite, request: ToWorker, post: Post): Promise<void> {
  if (request.type === "close") {
    await engine.close();
    parentPort?.close();
  } else if (request.type === "end") {
    for (const bytes of RESET) await exchange(engine, bytes, () => undefined);
  } else {
    const { session } = request;
    await exchange(engine, request.bytes, (bytes, last) =>
      post({ type: "answer", session, bytes, last }, [bytes.buffer]),
    );
  }
}

/** What the engine hands out is a view of its memory and is copied at once. */
async function exchange(
  engine: PGlite,
  bytes: Uint8Array,
  send: (bytes: Uint8Array<ArrayBuffer>, last: boolean) => void,
): Promise<void> {
  let chunks: Uint8Array[] = [];
  let size = 0;
  const flush = (last: boolean): void => {
    send(Uint8Array.from(Buffer.concat(chunks)), last);
    chunks = [];
    size = 0;
  };
  await engine.execProtocolRawStream(bytes, {
    syncToFs: false,
    onRawData: (chunk) => {
      chunks.push(chunk.slice());
      size += chunk.length;
      if (size >= ANSWER_BYTES) flush(false);
    },
  });
  flush(true);
}

await serve();
