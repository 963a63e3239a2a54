import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, chown, mkdir, readdir, rename, rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import type { Certificate } from "../crypto/certificate.ts";
import { encodePem } from "../crypto/pem.ts";
import { type Clock, systemClock } from "../runtime/clock.ts";
import { attempt, checkDirectory, ensurePrivateDirectory, writePrivateFile } from "../runtime/files.ts";
import { trustDomainOf } from "../spiffe/id.ts";
import type { X509Bundle, X509Context, X509Svid } from "./x509-context.ts";
import type { X509Source } from "./x509-source.ts";

export interface KeptFilesOptions {
  /**
   * Made when it is missing; refused when others could change it. What an earlier run left there is removed, other files
   * are left alone.
   */
  readonly folder: string;
  /** Ends the keeping; the files are removed. */
  readonly signal: AbortSignal;
  /** The ID of a group that may read everything and change nothing: the workload's. Default: none but this process's user. */
  readonly group?: number;
  /** Updates are held back by up to this long, at random, so that many workloads do not reload at once. Default: five seconds. */
  readonly jitterMs?: number;
  readonly clock?: Clock;
  /** Told when what the source holds lies there, whole; undefined when it was removed. */
  readonly onChange?: (context: X509Context | undefined) => void;
}

const DEFAULT_JITTER_MS = 5_000;
const CURRENT = "current";
const FEDERATED = "federated";
const OURS = /^(?:current|[0-9a-f]{16}(?:\.link)?)$/;
const MAX_NAME_BYTES = 200;

/**
 * Keeps the identities of a source in files, for a workload that reads files: in `current`, which is swapped whole, a
 * folder for each identity, by its hint, with `svid.pem`, `svid_key.pem` and `bundle.pem`; an identity without a hint
 * has its place in the order, `@0` for the first. Bundles of other trust domains lie in `federated`. What the source lets
 * go of is removed at once. Resolves when the source or the signal ends; throws `unavailable` when the files cannot be
 * written, and `precondition` for a folder that others could change. Nothing stays behind in either case.
 */
export async function keepX509Files(source: X509Source, options: KeptFilesOptions): Promise<void> {
  const { signal, jitterMs = DEFAULT_JITTER_MS, clock = systemClock, onChange = () => undefined } = options;
  const files = new Files(options);
  await files.clear();
  const leave = new AbortController();
  const either = AbortSignal.any([signal, leave.signal]);
  try {
    const updates = source.watch(either);
    let next = updates.next();
    let latest: X509Context | undefined;
    let shown = false;
    let due: Promise<"due"> | undefined;
    for (;;) {
      const event = await Promise.race(due === undefined ? [next] : [next, due]);
      if (event !== "due") {
        if (event.done === true) return;
        next = updates.next();
        latest = event.value;
      }
      if (latest !== undefined && shown && event !== "due") {
        due ??= clock.sleep(clock.random() * jitterMs, either).then(() => "due" as const);
        due.catch(() => undefined);
        continue;
      }
      due = undefined;
      await (latest === undefined ? files.clear() : files.show(latest));
      shown = latest !== undefined;
      onChange(latest);
    }
  } finally {
    leave.abort();
    await files.clear();
  }
}

/** What lies in the folder. */
class Files {
  readonly #folder: string;
  readonly #group: number | undefined;

  constructor({ folder, group }: KeptFilesOptions) {
    this.#folder = folder;
    this.#group = group;
  }

  async show(context: X509Context): Promise<void> {
    const name = randomBytes(8).toString("hex");
    const version = join(this.#folder, name);
    const own = new Set(context.svids.map(({ id }) => trustDomainOf(id)));
    const foreign = [...context.bundles].filter(([trustDomain]) => !own.has(trustDomain));
    await this.#directory(version);
    for (const [label, svid] of labelled(context.svids)) {
      const folder = join(version, label);
      await this.#directory(folder);
      await this.#file(join(folder, "svid.pem"), certificates(svid.chain));
      await this.#file(join(folder, "svid_key.pem"), String(svid.privateKey.export({ type: "pkcs8", format: "pem" })));
      await this.#file(join(folder, "bundle.pem"), pemOf(context.bundles.get(trustDomainOf(svid.id))));
    }
    await this.#directory(join(version, FEDERATED));
    for (const [trustDomain, bundle] of foreign)
      await this.#file(join(version, FEDERATED, `${trustDomain}.pem`), pemOf(bundle));
    await attempt(`unable to write ${this.#folder}`, this.#swap(name));
  }

  /** Leaves nothing of ours. */
  async clear(): Promise<void> {
    if (existsSync(this.#folder)) await checkDirectory(this.#folder);
    else {
      await ensurePrivateDirectory(this.#folder);
      await this.#open(this.#folder, 0o750);
    }
    await attempt(`unable to empty ${this.#folder}`, this.#removeBut(new Set()));
  }

  /** Whoever opens `current` sees the old or the new whole. */
  async #swap(name: string): Promise<void> {
    const link = join(this.#folder, `${name}.link`);
    await symlink(name, link);
    await rename(link, join(this.#folder, CURRENT));
    await this.#removeBut(new Set([CURRENT, name]));
  }

  /** The way in first, so that nobody enters what is being taken away. */
  async #removeBut(kept: ReadonlySet<string>): Promise<void> {
    const names = (await readdir(this.#folder)).filter((name) => OURS.test(name) && !kept.has(name));
    for (const name of names.sort((a, b) => Number(b === CURRENT) - Number(a === CURRENT)))
      await rm(join(this.#folder, name), { recursive: true, force: true });
  }

  async #directory(path: string): Promise<void> {
    await attempt(`unable to create directory ${path}`, mkdir(path, { mode: 0o700 }));
    await this.#open(path, 0o750);
  }

  async #file(path: string, text: string): Promise<void> {
    await writePrivateFile(path, text);
    await this.#open(path, 0o640);
  }

  /** The owner stays this process, so that no reader can lead a later write elsewhere. */
  async #open(path: string, mode: number): Promise<void> {
    if (this.#group === undefined) return;
    await attempt(
      `unable to give ${path} to group ${this.#group}`,
      chown(path, process.geteuid?.() ?? -1, this.#group),
    );
    await attempt(`unable to open ${path} to its group`, chmod(path, mode));
  }
}

/** Hints as file names; no two are alike, and none is that of another kind of folder. */
function labelled(svids: readonly X509Svid[]): readonly (readonly [string, X509Svid])[] {
  return svids.map((svid, index) => [svid.hint === "" ? `@${index}` : fileName(svid.hint), svid]);
}

function fileName(hint: string): string {
  const name = encodeURIComponent(hint.toWellFormed()).replace(/^\.+$/, (dots) => dots.replaceAll(".", "%2E"));
  if (name.length > MAX_NAME_BYTES) return `@${createHash("sha256").update(hint).digest("hex")}`;
  return name === FEDERATED ? "%66ederated" : name;
}

function pemOf(bundle: X509Bundle | undefined): string {
  return certificates(bundle?.authorities ?? []);
}

function certificates(list: readonly Certificate[]): string {
  return list.map(({ raw }) => encodePem("CERTIFICATE", raw)).join("");
}
