import { type Channel, dialTls, dialUnixTls } from "../rpc/dial.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import type { EndpointAddress } from "./address.ts";
import type { MtlsOptions } from "./tls.ts";
import type { X509Svid } from "./x509-context.ts";

/** What servers of gRPC allow on one connection at the least. */
const MAX_CALLS = 100;

interface Shared {
  readonly channel: Channel;
  /** What its connection shows. */
  readonly svid: X509Svid;
  calls: number;
  /** Takes no more calls; closed with its last. */
  spent: boolean;
}

/**
 * The connections of one broker, each shared by up to a hundred calls for any workloads. A connection that failed, or
 * that shows an identity which is not the newest, takes no further calls.
 */
export class BrokerChannels implements Disposable {
  readonly #address: EndpointAddress;
  readonly #mtls: MtlsOptions;
  readonly #open = new Set<Shared>();
  /** The endpoint could not tell who this is by it. */
  #refused: X509Svid | undefined;

  constructor(address: EndpointAddress, mtls: MtlsOptions) {
    this.#address = address;
    this.#mtls = mtls;
  }

  [Symbol.dispose](): void {
    for (const shared of this.#open) shared.channel[Symbol.dispose]();
    this.#open.clear();
  }

  /**
   * Runs one call. An identity that the endpoint refused before is not shown again: a patient call waits for another
   * one, others throw `unauthenticated`. SPIFFE Broker Endpoint, section 6.
   */
  async *during<M>(
    { signal, patient }: { readonly signal: AbortSignal; readonly patient: boolean },
    call: (channel: Channel) => AsyncIterable<M>,
  ): AsyncGenerator<M, void, undefined> {
    if (!patient && this.#shown() === this.#refused)
      throw new Fault("unauthenticated", "the endpoint refused the broker's identity, and there is no newer one", {
        code: "broker-identity-refused",
      });
    const shared = this.#take(await this.#acceptable(signal));
    try {
      yield* call(shared.channel);
    } catch (error) {
      if (isFault(error, "unauthenticated")) this.#refused = shared.svid;
      if (isFault(error, "unauthenticated") || isFault(error, "unavailable")) shared.spent = true;
      throw error;
    } finally {
      shared.calls -= 1;
      this.#settle(shared);
    }
  }

  async #acceptable(signal: AbortSignal): Promise<X509Svid> {
    const { source } = this.#mtls;
    if (this.#shown() !== this.#refused) return this.#shown();
    for await (const context of source.watch(signal)) {
      const svid = context === undefined ? undefined : this.#shown();
      if (svid !== undefined && svid !== this.#refused) return svid;
    }
    signal.throwIfAborted();
    throw new Fault("unavailable", "the broker's own source is closed", { code: "broker-identity" });
  }

  /** Throws `unavailable`, whatever the reason: it says nothing of any workload. */
  #shown(): X509Svid {
    const { source, pick } = this.#mtls;
    try {
      return pick === undefined ? source.svid : pick(source);
    } catch (cause) {
      const { message } = Fault.from(cause);
      throw new Fault("unavailable", `the broker has no identity to show: ${message}`, {
        code: "broker-identity",
        cause,
      });
    }
  }

  #take(svid: X509Svid): Shared {
    for (const shared of this.#open) {
      if (shared.svid !== svid) shared.spent = true;
      this.#settle(shared);
    }
    const found = [...this.#open].find(({ calls, spent }) => !spent && calls < MAX_CALLS) ?? this.#dial(svid);
    found.calls += 1;
    return found;
  }

  #dial(svid: X509Svid): Shared {
    const { source, authorize } = this.#mtls;
    const ends = {
      identity: { chain: svid.chain.map(({ raw }) => raw), privateKey: svid.privateKey },
      verifyServer: (chain: Parameters<typeof source.verify>[0]) => authorize(source.verify(chain)),
    };
    const address = this.#address;
    const channel =
      address.transport === "unix"
        ? dialUnixTls({ path: address.path, ...ends })
        : dialTls({ address: address.host, port: address.port, ...ends });
    const shared = { channel, svid, calls: 0, spent: false };
    this.#open.add(shared);
    return shared;
  }

  #settle(shared: Shared): void {
    if (!shared.spent || shared.calls > 0 || !this.#open.delete(shared)) return;
    shared.channel[Symbol.dispose]();
  }
}
