import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { type KeyType, type LocalSigner, privateKeyToPkcs8 } from "../../src/crypto/key.ts";
import { faultFrom, retryAfterOf } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Repeats } from "../../src/runtime/repeats.ts";
import { Backoff } from "../../src/runtime/task.ts";
import { readUnverifiedX509SvidId } from "../../src/spiffe/x509-svid.ts";
import {
  chore,
  clockTooEarly,
  signingFailed,
  svidRefused,
  svidRequested,
  svidsDue,
  svidUpdated,
  targetNotMet,
} from "../events.ts";
import { fitsTarget, rotationOfNew } from "../node/rotation.ts";
import type { SignedX509, SigningParam } from "../node/upstream.ts";
import { wait } from "../node/wait.ts";
import type { IdentityCache } from "./entries.ts";
import type { CachedEntry } from "./entry.ts";
import { ReadyKeys } from "./ready-keys.ts";
import type { HeldSvid, SigningRequest } from "./svid.ts";

/** The server signs at most so many at once. */
const MAX_BATCH = 500;
/** RSA keys take long to make: small batches bring the first ones out early. */
const MAX_RSA_BATCH = 25;
/** One server of several may hear of a change after the one that told the agent; then it signs for the entry as it was. */
const OTHER_ID = "svid-id";
const MOST_OUTDATED = 3;
/** DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE. */
const TRANSIENT: ReadonlySet<number> = new Set([4, 8, 10, 14]);
const RETRY = { firstMs: 500, maxMs: 4 * 60_000 } as const;
/** A caller that waits may cut a back-off short, but not below this. */
const LEAST_RETRY_MS = 1_000;
/** No longer without a look at the clock: it may have been set. */
const LONGEST_WAIT_MS = 5_000;

interface SigningUpstream {
  /** One answer per param, in order. Private keys stay here. */
  signX509(params: readonly SigningParam[], signal: AbortSignal): Promise<readonly SignedX509[]>;
}

export interface SvidSignerOptions {
  readonly cache: IdentityCache;
  readonly upstream: SigningUpstream;
  readonly keyType: KeyType;
  readonly availabilityTargetMs?: number | undefined;
  readonly clock: Clock;
  readonly log: Log;
}

/** Keeps every SVID in the cache signed: makes keys and CSRs, asks the server, and renews in time. */
export class SvidSigner {
  readonly #options: SvidSignerOptions;
  readonly #backoff: Backoff;
  readonly #repeats: Repeats;
  readonly #keys: ReadyKeys;
  readonly #maxBatch: number;
  #batch: number;
  #failsSince: Date | undefined;

  constructor(options: SvidSignerOptions) {
    this.#options = options;
    this.#backoff = new Backoff(options.clock, RETRY);
    this.#repeats = new Repeats(options.clock);
    this.#keys = new ReadyKeys(options.keyType);
    this.#maxBatch = options.keyType.startsWith("rsa-") ? MAX_RSA_BATCH : MAX_BATCH;
    this.#batch = this.#maxBatch;
  }

  /** Since when no attempt has succeeded; undefined when the last one did. */
  get failsSince(): Date | undefined {
    return this.#failsSince;
  }

  /** Until the signal ends it by throwing. A failure is logged, and what is held goes on being served. */
  async run(signal: AbortSignal): Promise<never> {
    const { cache, clock } = this.#options;
    void this.#keys.fill();
    for (;;) {
      const seen = cache.work.value;
      const failure = await this.#signDue(signal);
      if (failure !== undefined) {
        const least = Math.max(LEAST_RETRY_MS, retryAfterOf(failure));
        await clock.sleep(least, signal);
        await this.#wait(this.#retryDelay() - least, seen, signal);
      } else {
        await this.#wait(Math.min(LONGEST_WAIT_MS, cache.msUntilDue()), seen, signal);
      }
    }
  }

  #wait(ms: number, seen: number, signal: AbortSignal): Promise<void> {
    const { cache, clock } = this.#options;
    return wait({ clock, feed: cache.work, until: (ticks) => ticks !== seen, ms }, signal);
  }

  /** Grows with every failure, but leaves time to try again before something expires. */
  #retryDelay(): number {
    const { cache, clock } = this.#options;
    const delay = this.#backoff.next();
    const expiry = cache.nextExpiry();
    if (expiry === undefined) return delay;
    return Math.min(delay, Math.max(LEAST_RETRY_MS, (expiry.getTime() - clock.now().getTime()) / 2));
  }

  /** Batch after batch until nothing is due, or one failed: with what, then. */
  async #signDue(signal: AbortSignal): Promise<Fault | undefined> {
    const { cache, log, clock } = this.#options;
    for (;;) {
      const requests = cache.due().slice(0, this.#batch);
      if (requests.length === 0) return undefined;
      try {
        await this.#sign(requests, signal);
        this.#backoff.reset();
        this.#repeats.over();
        this.#failsSince = undefined;
        this.#batch = Math.min(this.#batch * 2, this.#maxBatch);
      } catch (error) {
        signal.throwIfAborted();
        this.#failsSince ??= clock.now();
        const failures = this.#repeats.worthSaying(messageOf(error));
        if (failures !== undefined) signingFailed(log, error, failures);
        this.#batch = Math.max(1, Math.floor(this.#batch / 2));
        cache.fail(
          requests.map(({ entry }) => entry.id),
          false,
        );
        return Fault.from(error);
      }
    }
  }

  async #sign(requests: readonly SigningRequest[], signal: AbortSignal): Promise<void> {
    const { cache, upstream, log } = this.#options;
    for (const { entry, expiresAt } of requests) svidRequested(log, entry, expiresAt);
    const keys = await Promise.all(requests.map(() => this.#keys.take()));
    const params = await Promise.all(requests.map(({ entry }, at) => paramFor(entry, keyAt(keys, at))));
    const outdated = requests.filter(({ isOutdated }) => isOutdated).length;
    const held = requests.filter(({ expiresAt }) => expiresAt !== undefined).length;
    svidsDue(log, { expiring: held - outdated, outdated });
    const answers = await chore(this.#options, "manager.sync.fetch_svids_updates", () =>
      upstream.signX509(params, signal),
    );
    const signed = new Map<string, HeldSvid>();
    const refused: string[] = [];
    const earlier: string[] = [];
    const busy = answers.find(isBusy);
    for (const [at, { entry }] of requests.entries()) {
      if (isBusy(answers[at])) continue;
      const svid = this.#read(entry, keyAt(keys, at), answers[at]);
      if (svid === undefined) refused.push(entry.id);
      else if (svid === "outdated") earlier.push(entry.id);
      else signed.set(entry.id, svid);
    }
    cache.fail(refused, true);
    cache.fail(earlier, true, MOST_OUTDATED);
    cache.accept(signed);
    for (const { entry } of requests) if (signed.has(entry.id)) svidUpdated(log, entry);
    if (busy !== undefined) throw faultFrom(busy.status, `the server could not sign all: ${busy.error}`, undefined);
  }

  /** Undefined, with a warning, for what the server refused or answered wrongly. */
  #read(entry: CachedEntry, key: LocalSigner, answer: SignedX509 | undefined): HeldSvid | "outdated" | undefined {
    const { log } = this.#options;
    if (answer?.kind !== "signed") {
      svidRefused(log, entry.id, answer ?? { status: 13, error: "the server left out the answer" });
      return undefined;
    }
    try {
      return this.#hold(entry, key, answer.chain);
    } catch (error) {
      svidRefused(log, entry.id, { status: 13, error: messageOf(error) });
      return error instanceof Fault && error.code === OTHER_ID ? "outdated" : undefined;
    }
  }

  #hold(entry: CachedEntry, key: LocalSigner, chain: readonly Uint8Array[]): HeldSvid {
    const { clock, log, availabilityTargetMs } = this.#options;
    const certificates = chain.map(parseCertificate);
    const leaf = checkedLeaf(certificates, entry, key);
    if (clock.now() < leaf.notBefore) clockTooEarly(log, `the X509-SVID of ${entry.spiffeId}`, leaf.notBefore);
    if (availabilityTargetMs !== undefined && !fitsTarget(leaf, availabilityTargetMs)) targetNotMet(log, entry);
    return Object.freeze({
      spiffeId: entry.spiffeId,
      revisionNumber: entry.revisionNumber,
      createdAt: entry.createdAt,
      chain,
      privateKey: privateKeyToPkcs8(key.privateKey),
      expiresAt: leaf.notAfter,
      rotation: rotationOfNew(leaf, { clock, availabilityTargetMs }),
      authorityKeyId: certificates.at(-1)?.authorityKeyId ?? "",
    });
  }
}

type Refusal = Extract<SignedX509, { readonly kind: "refused" }>;

/** Not the entry's fault: the same may be asked again. */
function isBusy(answer: SignedX509 | undefined): answer is Refusal {
  return answer?.kind === "refused" && TRANSIENT.has(answer.status);
}

async function paramFor(entry: CachedEntry, key: LocalSigner): Promise<SigningParam> {
  const csr = await createCertificateRequest({
    signer: key,
    subject: { country: "US", organization: "SPIRE" },
    uris: [entry.spiffeId],
  });
  return { entryId: entry.id, csr };
}

/** The certificate is for this entry and for the key made here, or it is nothing to serve (T-C4). */
function checkedLeaf(certificates: readonly Certificate[], entry: CachedEntry, key: LocalSigner): Certificate {
  const leaf = certificates[0];
  if (leaf === undefined) throw new Fault("internal", "empty SVID cert chain");
  const id = readUnverifiedX509SvidId(leaf);
  if (id !== entry.spiffeId)
    throw new Fault("internal", `the server signed ${id} instead of ${entry.spiffeId}`, { code: OTHER_ID });
  if (Buffer.compare(leaf.publicKey, key.publicKey) !== 0)
    throw new Fault("internal", "the server signed another public key");
  return leaf;
}

function keyAt(keys: readonly LocalSigner[], at: number): LocalSigner {
  const key = keys[at];
  if (key === undefined) throw new Fault("internal", "no key for the request");
  return key;
}
