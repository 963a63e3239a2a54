import { createReadStream } from "node:fs";
import type { Clock } from "../src/runtime/clock.ts";
import { lockDirectory } from "../src/runtime/directory-lock.ts";
import { ensurePrivateDirectory } from "../src/runtime/files.ts";
import type { Log } from "../src/runtime/log.ts";
import type { ServerConfig } from "./config.ts";
import { openStore, type SqlStore } from "./store/database.ts";
import { exportStore, importStore } from "./store/transfer.ts";

export interface TransferOptions {
  readonly config: ServerConfig;
  readonly log: Log;
  readonly clock: Clock;
}

/** The whole store as JSON lines, without line ends. It has join tokens in it: keep it private. */
export async function* exportDatastore(options: TransferOptions): AsyncGenerator<string, void, undefined> {
  await using opened = await open(options);
  yield* exportStore(opened.store);
}

/** Fills an empty store from the lines of an export; resolves with the number of rows. Throws `precondition`. */
export async function importDatastore(
  options: TransferOptions,
  input: AsyncIterable<string | Uint8Array> | string,
): Promise<number> {
  await using opened = await open(options);
  const stream = typeof input === "string" ? createReadStream(input) : input;
  return await importStore(opened.store, linesOf(stream));
}

async function* linesOf(stream: AsyncIterable<string | Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  for await (const chunk of stream) {
    const parts = (rest + (typeof chunk === "string" ? chunk : decoder.decode(chunk, { stream: true }))).split("\n");
    rest = parts.pop() ?? "";
    yield* parts;
  }
  if (rest !== "") yield rest;
}

/** The embedded store belongs to one process: a running server has its folder, and is named. */
async function open({ config, log, clock }: TransferOptions): Promise<AsyncDisposable & { readonly store: SqlStore }> {
  await using scope = new AsyncDisposableStack();
  if (config.dataStore.kind === "embedded") {
    await ensurePrivateDirectory(config.dataDir);
    scope.use(await lockDirectory(config.dataDir));
  }
  const store = scope.use(await openStore(config.dataStore, { log, clock }));
  const resources = scope.move();
  return { store, [Symbol.asyncDispose]: () => resources.disposeAsync() };
}
