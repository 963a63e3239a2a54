import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import { withDeadline } from "../deadline.ts";
import { jsonOf } from "../http.ts";
import type { ImageVerifier } from "../image-verifier.ts";
import { listOf, objectOf } from "../pods.ts";
import { companionTag, type Image, parseImage } from "./image.ts";
import { type RegistryCredentials, Repository } from "./registry.ts";
import { type Layer, type SignaturePolicy, type Verified, verifyLayer } from "./signature.ts";
import type { TrustedRoot } from "./trusted-root.ts";

export interface SigstoreVerifierOptions extends SignaturePolicy {
  readonly ignoreAttestations: boolean;
  /** Images, as the attestor names them, that need no signature and get no selectors. */
  readonly skippedImages: ReadonlySet<string>;
  /** By the registry's host; undefined where there are none. */
  readonly credentialsOf: (registry: string) => Promise<RegistryCredentials | undefined>;
  /** Repository that holds the signatures of all images; undefined where each image's own does. */
  readonly signatureRepository: string | undefined;
  readonly trustedRoot: () => Promise<TrustedRoot>;
  /** Images whose outcome is kept. */
  readonly maxImages?: number;
  readonly clock: Clock;
  readonly log: Log;
  /** The verifier's own life. */
  readonly signal: AbortSignal;
}

/** One image, from the first question to the registry to the last. */
const VERIFY_MS = 20_000;
/** What failed is not tried again for so long: workloads ask in a loop, and registries count. */
const FAILURE_MS = 5_000;
/** An image in use is verified again, beside its use: signers and authorities may be believed no longer. */
const AGAIN_MS = 60 * 60_000;
const AGAIN_FAILURE_MS = 5 * 60_000;
/** While it cannot be verified again, it counts as verified for no longer than this. */
const MAX_AGE_MS = 24 * 60 * 60_000;
const MAX_IMAGES = 1_000;
const MAX_LAYERS = 1_000;
const MAX_REASONS = 5;
const MAX_SHOWN = 512;
const AT_ONCE = { signature: 10, attestation: 2 } as const;
/** Simple signing takes a few hundred bytes; an attestation can be a bill of materials. */
const MAX_PAYLOAD_BYTES = { signature: 64 * 1024, attestation: 16 * 1024 * 1024 } as const;
const SUFFIX = { signature: "sig", attestation: "att" } as const;

/** Times by the monotonic clock. */
interface Outcome {
  /** When it held last. */
  readonly verified?: { readonly selectors: readonly string[]; readonly at: number };
  readonly failure?: Fault;
  /** The registry is not asked again before. */
  readonly notBefore: number;
}

/** Selectors of images by cosign's signatures in their registry. One verification at a time for each image. */
export class SigstoreVerifier implements ImageVerifier {
  readonly #options: SigstoreVerifierOptions;
  /** What was used longest ago first. */
  readonly #known = new Map<string, Outcome>();
  readonly #running = new Map<string, Promise<readonly string[]>>();

  constructor(options: SigstoreVerifierOptions) {
    this.#options = options;
  }

  held(image: string): readonly string[] | undefined {
    if (this.#options.skippedImages.has(image)) return [];
    const known = this.#known.get(image);
    const now = this.#options.clock.monotonic();
    if (known?.verified === undefined || now - known.verified.at >= MAX_AGE_MS) return undefined;
    this.#remember(image, known);
    const { selectors, at } = known.verified;
    if (now - at >= AGAIN_MS && now >= known.notBefore) void this.#once(image).catch(() => undefined);
    return selectors;
  }

  async verify(image: string): Promise<readonly string[]> {
    const held = this.held(image);
    if (held !== undefined) return held;
    const { failure, notBefore = 0 } = this.#known.get(image) ?? {};
    if (failure !== undefined && this.#options.clock.monotonic() < notBefore) throw failure;
    return await this.#once(image);
  }

  #once(image: string): Promise<readonly string[]> {
    const running = this.#running.get(image) ?? this.#run(image);
    this.#running.set(image, running);
    return running;
  }

  async #run(image: string): Promise<readonly string[]> {
    const { clock, signal } = this.#options;
    try {
      const selectors = await withDeadline({ ms: VERIFY_MS, clock, signal }, (limit) => this.#verify(image, limit));
      this.#remember(image, { verified: { selectors, at: clock.monotonic() }, notBefore: 0 });
      return selectors;
    } catch (error) {
      const fault = Fault.from(error);
      const what = `error verifying sigstore image signature for imageID ${image.slice(0, MAX_SHOWN)}`;
      const failure = because(fault, `${what}: ${fault.message}`);
      this.#failed(image, failure);
      throw failure;
    } finally {
      this.#running.delete(image);
    }
  }

  /** That the registry, or what it takes to judge, is away takes nothing from an image that held before. */
  #failed(image: string, failure: Fault): void {
    const { clock, log } = this.#options;
    const now = clock.monotonic();
    const verified = this.#known.get(image)?.verified;
    const isKept = verified !== undefined && now - verified.at < MAX_AGE_MS && !isVerdict(failure);
    if (isKept) {
      this.#remember(image, { verified, failure, notBefore: now + AGAIN_FAILURE_MS });
      log.warn("Image could not be verified again; it counts as verified until then", {
        until: new Date(clock.now().getTime() + verified.at + MAX_AGE_MS - now),
        error: failure,
      });
    } else {
      this.#remember(image, { failure, notBefore: now + FAILURE_MS });
      if (verified !== undefined) log.error("Image does not count as verified any more", { error: failure });
    }
  }

  #remember(image: string, outcome: Outcome): void {
    this.#known.delete(image);
    this.#known.set(image, outcome);
    const { maxImages = MAX_IMAGES } = this.#options;
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= maxImages) return;
      this.#known.delete(oldest);
    }
  }

  async #verify(name: string, signal: AbortSignal): Promise<readonly string[]> {
    const { clock, credentialsOf, trustedRoot, ignoreAttestations, signatureRepository } = this.#options;
    const image = parseImage(name);
    const place = signatureRepository === undefined ? image : parseImage(`${signatureRepository}@${image.digest}`);
    const repository = new Repository(place, { clock, credentials: await credentialsOf(place.registry) });
    const question = { image, repository, trust: await trustedRoot(), signal };
    const signatures = await this.#verified("signature", question);
    const attested = ignoreAttestations ? [] : await this.#verified("attestation", question);
    return [
      "image-signature:verified",
      ...(attested.length > 0 ? ["image-attestations:verified"] : []),
      ...signatures.flatMap(selectorsOf),
    ];
  }

  /** Those that hold, of which there must be one. */
  async #verified(kind: Layer["kind"], question: Question): Promise<readonly Verified[]> {
    const { image, repository, signal } = question;
    const manifest = await repository.manifest(companionTag(image, SUFFIX[kind]), signal);
    if (manifest === undefined) throw unsigned(`it has no ${kind} in its registry`);
    const layers = listOf(objectOf(jsonOf(manifest, `the registry ${image.registry}`))["layers"]);
    if (layers.length > MAX_LAYERS) throw unsigned(`it has more than ${MAX_LAYERS} ${kind}s`);
    const found: Verified[] = [];
    const failures = new Map<string, Fault>();
    const rest = layers.values();
    const work = async (): Promise<void> => {
      for (const descriptor of rest) {
        try {
          found.push(await this.#layer(kind, descriptor, question));
        } catch (error) {
          signal.throwIfAborted();
          const failure = Fault.from(error);
          failures.set(failure.message, failure);
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE[kind] }, work));
    if (found.length > 0) return found;
    const [only, ...more] = failures.values();
    const reason = [...failures.keys()].slice(0, MAX_REASONS).join("; ") || "there is none";
    const unknown = [...failures.values()].find((failure) => !isVerdict(failure));
    throw because(unknown ?? (more.length > 0 ? undefined : only), `no ${kind} holds: ${reason}`);
  }

  async #layer(kind: Layer["kind"], descriptor: Json, question: Question): Promise<Verified> {
    const { image, repository, trust, signal } = question;
    const { digest, size } = descriptor;
    const isNamed = typeof digest === "string" && /^sha256:[0-9a-f]{64}$/.test(digest);
    if (!isNamed || !Number.isSafeInteger(size) || Number(size) < 0) throw unsigned("its descriptor is malformed");
    if (Number(size) > MAX_PAYLOAD_BYTES[kind]) throw unsigned(`it is larger than ${MAX_PAYLOAD_BYTES[kind]} bytes`);
    const payload = await repository.blob(digest, Number(size), signal);
    const layer = { kind, payload, annotations: objectOf(descriptor["annotations"]) };
    const now = this.#options.clock.now();
    return await verifyLayer({ layer, digest: image.digest, policy: this.#options, trust, now, signal });
  }
}

type Json = Readonly<Record<string, unknown>>;

interface Question {
  readonly image: Image;
  readonly repository: Repository;
  readonly trust: TrustedRoot;
  readonly signal: AbortSignal;
}

function selectorsOf({ signer, signature, entry }: Verified): readonly string[] {
  const [subject] = signer.subjects;
  const values = {
    subject,
    issuer: signer.issuer,
    value: signature,
    ...(entry === undefined ? {} : loggedValues(entry)),
  };
  return Object.entries(values).map(([name, value]) => `image-signature-${name}:${value}`);
}

function loggedValues({ logId, logIndex, integratedTime, promise }: NonNullable<Verified["entry"]>) {
  return {
    ...{ "log-id": logId, "log-index": logIndex, "integrated-time": integratedTime },
    "signed-entry-timestamp": promise,
  };
}

/** The fault with another message. */
function because(fault: Fault | undefined, message: string): Fault {
  const { kind, code, hint, cause } = fault ?? unsigned(message);
  return new Fault(kind, message, { code, ...(hint === undefined ? {} : { hint }), cause });
}

/** It is about the image, and not about somebody who could not be asked. */
function isVerdict({ kind, code }: Fault): boolean {
  return kind === "denied" && code.startsWith("image-");
}

function unsigned(message: string): Fault {
  return new Fault("denied", message, { code: "image-signature" });
}
