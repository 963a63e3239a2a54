import type { Clock } from "../../../src/runtime/clock.ts";
import { messageOf } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import type { ImageVerifier } from "../image-verifier.ts";
import { registryHost } from "./image.ts";
import { loginFiles, loginOf } from "./logins.ts";
import type { RegistryCredentials } from "./registry.ts";
import type { SignaturePolicy } from "./signature.ts";
import { openTrustedRoot, type TrustSource } from "./trust-source.ts";
import { SigstoreVerifier } from "./verifier.ts";

export interface SigstoreOptions extends SignaturePolicy {
  readonly ignoreAttestations: boolean;
  readonly skippedImages: ReadonlySet<string>;
  /** By the registry's name, as the operator writes it. */
  readonly registryCredentials: ReadonlyMap<string, RegistryCredentials>;
  /** Where logins stand for the registries without credentials of their own. Default: Docker's and Podman's places. */
  readonly loginFiles?: readonly string[];
  /** Repository for all signatures. Default: as the environment tells cosign, or else each image's own. */
  readonly signatureRepository?: string;
  readonly trust: TrustSource;
  readonly maxImages?: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** The verifier that a `sigstore` block asks for. Says in the log when its trusted root cannot be had. */
export function openSigstore(options: SigstoreOptions): ImageVerifier {
  const { registryCredentials, trust, log, loginFiles: files = loginFiles() } = options;
  const own = new Map([...registryCredentials].map(([name, each]) => [registryHost(name), each]));
  const trustedRoot = openTrustedRoot(trust, options);
  trustedRoot().catch((error: unknown) => log.error(messageOf(error)));
  return new SigstoreVerifier({
    ...options,
    trustedRoot,
    signatureRepository: options.signatureRepository ?? (process.env["COSIGN_REPOSITORY"] || undefined),
    credentialsOf: async (registry) => own.get(registry) ?? (await loginOf(registry, files)),
  });
}
