import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { encodePem } from "../../src/crypto/pem.ts";

const run = promisify(execFile);

/** A directory for the `openssl` program, removed with the scope. Files are named relative to it. */
export interface OpensslDirectory extends AsyncDisposable {
  readonly path: string;
  write(name: string, content: string | Uint8Array): Promise<void>;
  /** Standard output of one command. Rejects when it fails, with standard error in the message. */
  run(...args: readonly string[]): Promise<Buffer>;
}

export async function openssl(): Promise<OpensslDirectory> {
  const path = await mkdtemp(join(tmpdir(), "openssl-"));
  return {
    path,
    write: (name, content) => writeFile(join(path, name), content),
    async run(...args) {
      const { stdout } = await run("openssl", args, { cwd: path, encoding: "buffer" });
      return stdout;
    },
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}

export interface OpensslVerifyOptions {
  /** DER, leaf first. */
  readonly chain: readonly Uint8Array[];
  /** DER; may be other than self-signed. */
  readonly roots: readonly Uint8Array[];
  readonly at: Date;
}

/** Whether `openssl verify` finds a path, for no purpose in particular. */
export async function opensslVerifies({ chain, roots, at }: OpensslVerifyOptions): Promise<boolean> {
  await using directory = await openssl();
  const [leaf = new Uint8Array(), ...others] = chain;
  const pem = (ders: readonly Uint8Array[]): string => ders.map((der) => encodePem("CERTIFICATE", der)).join("");
  await directory.write("leaf.pem", pem([leaf]));
  await directory.write("others.pem", pem(others));
  await directory.write("roots.pem", pem(roots));
  const untrusted = others.length === 0 ? [] : ["-untrusted", "others.pem"];
  const trusted = roots.length === 0 ? ["-no-CAfile"] : ["-CAfile", "roots.pem"];
  const time = String(Math.floor(at.getTime() / 1000));
  try {
    await directory.run(
      "verify",
      "-no-CApath",
      "-no-CAstore",
      "-partial_chain",
      "-attime",
      time,
      ...trusted,
      ...untrusted,
      "leaf.pem",
    );
    return true;
  } catch (error) {
    if (/error \d+ at \d+ depth lookup|verification failed/.test(String(error))) return false;
    throw error;
  }
}
