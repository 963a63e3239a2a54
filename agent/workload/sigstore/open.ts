import { readFile } from "node:fs/promises";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import type { ImageVerifier } from "../image-verifier.ts";
import { registryHost } from "./image.ts";
import type { RegistryCredentials } from "./registry.ts";
import type { SignaturePolicy } from "./signature.ts";
import { parseTrustedRoot, type TrustedRoot } from "./trusted-root.ts";
import { SigstoreVerifier } from "./verifier.ts";

export interface SigstoreOptions extends SignaturePolicy {
  readonly ignoreAttestations: boolean;
  readonly skippedImages: ReadonlySet<string>;
  /** By the registry's name, as the operator writes it. */
  readonly registryCredentials: ReadonlyMap<string, RegistryCredentials>;
  readonly trustedRootPath: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** The verifier that a `sigstore` block asks for. Says in the log when its trusted root cannot be used. */
export async function openSigstore(options: SigstoreOptions): Promise<ImageVerifier> {
  const { registryCredentials, trustedRootPath, log } = options;
  const trustedRoot = () => readTrustedRoot(trustedRootPath);
  await trustedRoot().catch((error: unknown) => log.error(messageOf(error)));
  return new SigstoreVerifier({
    ...options,
    trustedRoot,
    registryCredentials: new Map([...registryCredentials].map(([name, each]) => [registryHost(name), each])),
  });
}

/** Read anew for each image, so that a replaced file counts. */
async function readTrustedRoot(path: string): Promise<TrustedRoot> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    const message = `Sigstore's trusted root cannot be read: ${messageOf(cause)}`;
    throw new Fault("unavailable", message, { code: "trusted-root", hint: "see trusted_root_path", cause });
  }
  return parseTrustedRoot(text);
}
