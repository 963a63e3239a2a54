import type { Clock } from "../../../src/runtime/clock.ts";
import { messageOf } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import type { ImageVerifier } from "../image-verifier.ts";
import { registryHost } from "./image.ts";
import type { RegistryCredentials } from "./registry.ts";
import type { SignaturePolicy } from "./signature.ts";
import { openTrustedRoot, type TrustSource } from "./trust-source.ts";
import { SigstoreVerifier } from "./verifier.ts";

export interface SigstoreOptions extends SignaturePolicy {
  readonly ignoreAttestations: boolean;
  readonly skippedImages: ReadonlySet<string>;
  /** By the registry's name, as the operator writes it. */
  readonly registryCredentials: ReadonlyMap<string, RegistryCredentials>;
  readonly trust: TrustSource;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** The verifier that a `sigstore` block asks for. Says in the log when its trusted root cannot be had. */
export function openSigstore(options: SigstoreOptions): ImageVerifier {
  const { registryCredentials, trust, log } = options;
  const trustedRoot = openTrustedRoot(trust, options);
  trustedRoot().catch((error: unknown) => log.error(messageOf(error)));
  return new SigstoreVerifier({
    ...options,
    trustedRoot,
    registryCredentials: new Map([...registryCredentials].map(([name, each]) => [registryHost(name), each])),
  });
}
