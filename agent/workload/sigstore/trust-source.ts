import { createHash } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import { parseTrustedRoot, type TrustedRoot } from "./trusted-root.ts";

/** A file, or a repository by The Update Framework, as Sigstore has one. */
export type TrustSource =
  | { readonly type: "file"; readonly path: string }
  | {
      readonly type: "tuf";
      readonly mirrorUrl: string;
      /** The repository's first root.json; undefined for that of Sigstore's own. */
      readonly rootPath: string | undefined;
      /** Folder for what was fetched, so that the agent starts while the repository is away. */
      readonly directory: string;
    };

/** The trusted root, read or fetched when it is asked for. Throws `unavailable`; `invalid` when it is none. */
export function openTrustedRoot(source: TrustSource, parts: { readonly clock: Clock; readonly log: Log }) {
  if (source.type === "file") return () => readTrustedRoot(source.path);
  const held = new FetchedRoot(source, parts);
  return () => held.get();
}

/** Read anew each time, so that a replaced file counts. */
async function readTrustedRoot(path: string): Promise<TrustedRoot> {
  return parseTrustedRoot(await load(path, "trusted_root_path"));
}

async function load(path: string, key: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw unavailable(`Sigstore's trusted root cannot be read: ${messageOf(cause)}`, `see ${key}`, cause);
  }
}

type Repository = Extract<TrustSource, { readonly type: "tuf" }>;

const FRESH_MS = 86_400_000;
const RETRY_MS = 3_600_000;
const REQUEST_MS = 5_000;
const TARGET = "trusted_root.json";

/** Fetched once a day at most. A repository that is away, or lies, takes nothing away from what is held. */
class FetchedRoot {
  readonly #source: Repository;
  readonly #clock: Clock;
  readonly #log: Log;
  #held: TrustedRoot | undefined;
  #freshUntil = Number.NEGATIVE_INFINITY;
  #running: Promise<void> | undefined;

  constructor(source: Repository, { clock, log }: { readonly clock: Clock; readonly log: Log }) {
    this.#source = source;
    this.#clock = clock;
    this.#log = log;
  }

  async get(): Promise<TrustedRoot> {
    if (this.#clock.monotonic() >= this.#freshUntil) {
      this.#running ??= this.#fetch().finally(() => {
        this.#running = undefined;
      });
      await this.#running;
    }
    if (this.#held === undefined) throw unavailable("Sigstore's trusted root is not there yet", "ask again");
    return this.#held;
  }

  async #fetch(): Promise<void> {
    try {
      this.#held = parseTrustedRoot(await fetchTarget(this.#source));
      this.#freshUntil = this.#clock.monotonic() + FRESH_MS;
    } catch (error) {
      if (this.#held === undefined) throw error;
      this.#log.warn("Sigstore's trusted root is not renewed", { error: messageOf(error) });
      this.#freshUntil = this.#clock.monotonic() + RETRY_MS;
    }
  }
}

/** By the network, or else what the last time left and has not expired. */
async function fetchTarget({ mirrorUrl, rootPath, directory }: Repository): Promise<string> {
  const { initTUF } = await import("@sigstore/tuf");
  const root = rootPath === undefined ? undefined : await load(rootPath, "tuf_root_path");
  /** Another first root begins a life of its own. */
  const name = root === undefined ? "sigstore" : `sigstore-${createHash("sha256").update(root).digest("hex")}`;
  const cachePath = join(directory, name);
  await mkdir(cachePath, { recursive: true, mode: 0o700 });
  const from = async (forceCache: boolean): Promise<string> => {
    const place = { mirrorURL: mirrorUrl, cachePath, ...(rootPath === undefined ? {} : { rootPath }) };
    const tuf = await initTUF({ ...place, forceCache, timeout: REQUEST_MS, retry: { retries: 0 } });
    return await tuf.getTarget(TARGET);
  };
  try {
    return await from(false);
  } catch (cause) {
    return await from(true).catch(() => {
      const reason = cause instanceof Error && cause.cause !== undefined ? `: ${messageOf(cause.cause)}` : "";
      const message = `Sigstore's trusted root cannot be had from ${mirrorUrl}: ${messageOf(cause)}${reason}`;
      throw unavailable(message, "see tuf_mirror_url and the network, or set trusted_root_path", cause);
    });
  }
}

function unavailable(message: string, hint: string, cause?: unknown): Fault {
  return new Fault("unavailable", message, { code: "trusted-root", hint, ...(cause === undefined ? {} : { cause }) });
}
