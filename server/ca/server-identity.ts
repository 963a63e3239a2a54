import { generateKey, type KeyType } from "../../src/crypto/key.ts";
import type { TlsIdentity } from "../../src/rpc/tls.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import { every, SingleFlight } from "../../src/runtime/task.ts";
import { shouldRotate } from "../../src/spiffe/lifetime.ts";
import * as events from "../events.ts";
import type { Authorities } from "./authorities.ts";
import type { Issuer, X509Svid } from "./issue.ts";
import type { X509SigningAuthority } from "./slots.ts";

export interface ServerIdentityOptions {
  readonly issuer: Pick<Issuer, "issueServer">;
  readonly authorities: Pick<Authorities<X509SigningAuthority>, "active">;
  readonly keyType: KeyType;
  readonly clock: Clock;
  readonly log: Log;
}

interface Issued {
  readonly tls: TlsIdentity;
  readonly svid: X509Svid;
  /** The authority that signed it. */
  readonly authorityId: string | undefined;
}

const CHECK_MS = 5000;
const SHORTEST_CHECK_MS = 200;

/**
 * The server's own SVID with a key that never leaves memory. Issued anew at every start, at half of its life, and as
 * soon as another authority is active.
 */
export class ServerIdentity {
  /** For the TLS listener; swapped whole. */
  readonly identity: Feed<TlsIdentity>;
  readonly #options: ServerIdentityOptions;
  readonly #renewal: SingleFlight<void>;
  #issued: Issued;

  private constructor(options: ServerIdentityOptions, first: Issued) {
    this.#options = options;
    this.#issued = first;
    this.identity = new Feed(first.tls);
    this.#renewal = new SingleFlight(() => this.#renewWhenDue());
  }

  /** Throws when the first SVID cannot be issued. */
  static async open(options: ServerIdentityOptions): Promise<ServerIdentity> {
    return new ServerIdentity(options, await issue(options));
  }

  get svid(): X509Svid {
    return this.#issued.svid;
  }

  /** Rotates until the signal. A failure is logged and tried again at the next check. */
  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([this.#byTime(signal), this.#byAuthority(signal)]);
  }

  #byTime(signal: AbortSignal): Promise<never> {
    return every(
      this.#options.clock,
      () => this.#pause(),
      () => this.#renewal.run(),
      signal,
    );
  }

  async #byAuthority(signal: AbortSignal): Promise<void> {
    for await (const _ of this.#options.authorities.active.watch(signal)) await this.#renewal.run();
  }

  /** Every 5 s, and at least four times in what is left of a short life. */
  #pause(): number {
    const left = this.#issued.svid.notAfter.getTime() - this.#options.clock.now().getTime();
    return Math.max(SHORTEST_CHECK_MS, Math.min(CHECK_MS, left / 4));
  }

  async #renewWhenDue(): Promise<void> {
    const { clock, authorities, log } = this.#options;
    const { svid, authorityId } = this.#issued;
    const replaced = authorities.active.value !== undefined && authorities.active.value.id !== authorityId;
    if (!replaced && !shouldRotate(clock.now(), svid.notBefore, svid.notAfter, 0.5)) return;
    log.debug("Rotating server SVID");
    try {
      this.#issued = await events.chore(this.#options, "svid.rotate", () => issue(this.#options));
      this.identity.set(this.#issued.tls);
    } catch (error) {
      log.error("Could not rotate server SVID", { error: Fault.from(error) });
    }
  }
}

async function issue({ issuer, authorities, keyType, log }: ServerIdentityOptions): Promise<Issued> {
  const { publicKey, privateKey } = await generateKey(keyType);
  const authorityId = authorities.active.value?.id;
  const svid = await issuer.issueServer({ publicKey });
  log.debug("Signed X509 SVID", { spiffe_id: svid.id, expiration: svid.notAfter });
  return { tls: { chain: svid.chain, privateKey }, svid, authorityId };
}
