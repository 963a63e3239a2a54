import type { Channel } from "../rpc/dial.ts";
import { BrokerApi } from "../rpc/protos.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import { brokerAddress, type EndpointAddress } from "./address.ts";
import { BrokerChannels } from "./broker-channels.ts";
import { brokerFault } from "./broker-fault.ts";
import { checkScope, type WorkloadReference } from "./broker-reference.ts";
import { type CallOptions, type FetchOptions, firstOf } from "./endpoint.ts";
import type { SourceOptions } from "./followed.ts";
import { type JwtSvidTokens, readJwtBundles, readJwtSvids } from "./jwt-context.ts";
import { JwtSource, type JwtSourceOptions, type SourceFetchOptions } from "./jwt-source.ts";
import { askForServices, servicesOver } from "./services.ts";
import type { MtlsOptions } from "./tls.ts";
import type { TokenBundles } from "./token-context.ts";
import { type AnswerRules, type OpenStream, type WatchOptions, watch } from "./watch.ts";
import { readX509Bundles, readX509Context, type X509Bundles, type X509Context } from "./x509-context.ts";
import { X509Source, type X509SourceOptions } from "./x509-source.ts";

/** Every request has it. SPIFFE Broker Endpoint, section 3. */
const SECURITY_HEADER = { "broker.spiffe.io": "true" } as const;

export interface BrokerOptions extends MtlsOptions {
  /** A URI such as `unix:///run/broker.sock` or `tcp://broker.example.org:8443`, or an address; default: `SPIFFE_BROKER_SOCKET`. */
  readonly socket?: string | EndpointAddress | undefined;
  /** Sent with every call, besides the security header. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** Sends references to local processes to addresses other than loopback: those of this node that only look remote. */
  readonly allowRemote?: boolean;
}

export interface BrokeredWatchOptions extends WatchOptions {
  /**
   * Asks again, ever more rarely, while the workload is not there yet, or is not entitled. Default: either ends the
   * watch. What was there and has gone ends it in any case.
   */
  readonly retryRefused?: boolean;
}

type Brokered<O extends SourceOptions> = Omit<O, "socket" | "metadata"> & Pick<BrokeredWatchOptions, "retryRefused">;
export type BrokeredX509SourceOptions = Brokered<X509SourceOptions>;
export type BrokeredJwtSourceOptions = Brokered<JwtSourceOptions>;
/** As for `fetchJwtSvids`. */
export type BrokeredFetchOptions = SourceFetchOptions;

/**
 * A broker at an endpoint of the SPIFFE Broker API: it proves itself with its own X.509-SVID, lets in only an endpoint
 * whose SPIFFE ID is authorised, and asks for the workloads that it acts for. Incubating, as the documents are.
 */
export class BrokerClient implements Disposable {
  readonly #options: BrokerOptions;
  readonly #address: EndpointAddress;
  readonly #channels: BrokerChannels;
  readonly #stop = new AbortController();

  /** Connects on use. Throws `invalid` for a wrong address, or none. */
  constructor(options: BrokerOptions) {
    this.#options = options;
    this.#address = typeof options.socket === "object" ? options.socket : brokerAddress(options.socket);
    this.#channels = new BrokerChannels(this.#address, options);
  }

  /** Closes the connections; sources and watches of workloads end. */
  [Symbol.dispose](): void {
    this.#stop.abort();
    this.#channels[Symbol.dispose]();
  }

  /** Everything for one workload, apart from all others. Throws `invalid` for a local reference to a remote address. */
  workload(reference: WorkloadReference): BrokeredWorkload {
    if (this.#options.allowRemote !== true) checkScope(reference, this.#address);
    return new BrokeredWorkload(reference, this.#stop.signal, (how, call) => this.#call(how, call));
  }

  /**
   * Full names of the services that the endpoint offers. One that has no reflection offers the Broker API and nothing
   * else. SPIFFE Broker Endpoint, section 7.
   */
  listServices(options: Pick<FetchOptions, "signal"> = {}): Promise<readonly string[]> {
    const open = (signal: AbortSignal) => this.#call({ signal, patient: false }, askForServices);
    return servicesOver(open, { ...options, without: BrokerApi.name });
  }

  async *#call<M>(how: Attempt, call: Call<M>): AsyncGenerator<M, void, undefined> {
    const metadata = { ...this.#options.metadata, ...SECURITY_HEADER };
    try {
      yield* this.#channels.during(how, (channel) => call(channel, { signal: how.signal, metadata }));
    } catch (error) {
      throw brokerFault(error);
    }
  }
}

type Call<M> = (channel: Channel, options: CallOptions) => AsyncIterable<M>;
type Caller = <M>(how: Attempt, call: Call<M>) => AsyncIterable<M>;
type Attempt = Parameters<BrokerChannels["during"]>[0];

/** SPIFFE Broker Endpoint, section 6; SPIFFE Broker API, sections 4.8 and 4.9. */
function rulesFor({ retryRefused = false }: Pick<BrokeredWatchOptions, "retryRefused">): AnswerRules {
  return {
    endpoint: "the Broker API",
    isFinal(fault, issued) {
      if (isFault(fault, "not_found")) return issued || !retryRefused;
      if (isFault(fault, "denied")) return !retryRefused;
      return isFault(fault, "invalid") || isFault(fault, "unimplemented");
    },
  };
}

/**
 * One workload that a broker acts for. What is got here is for this workload only. Once the workload has stopped, or is
 * no longer entitled, sources hold nothing of it.
 */
export class BrokeredWorkload {
  readonly reference: WorkloadReference;
  readonly #stop: AbortSignal;
  readonly #call: Caller;

  constructor(reference: WorkloadReference, stop: AbortSignal, call: Caller) {
    this.reference = reference;
    this.#stop = stop;
    this.#call = call;
  }

  /** The workload's identities and bundles as a source, for both ends of TLS as any other. Throws as `X509Source.open`. */
  x509Source(options: BrokeredX509SourceOptions = {}): Promise<X509Source> {
    return X509Source.over((asked) => this.watchX509Svids({ ...options, ...asked }), options);
  }

  /** The workload's tokens, and the keys to check those of its peers with. Throws as `JwtSource.open`. */
  jwtSource(options: BrokeredJwtSourceOptions = {}): Promise<JwtSource> {
    const fetch = (audience: string, asked: BrokeredFetchOptions) => this.fetchJwtSvids(audience, asked);
    return JwtSource.over({ watch: (asked) => this.watchJwtBundles({ ...options, ...asked }), fetch }, options);
  }

  /** All its identities, keys and bundles, now and after each change. Throws what ends it: `not_found` once it has stopped. */
  watchX509Svids(options: BrokeredWatchOptions): AsyncGenerator<X509Context, void, undefined> {
    const open = this.#stream((api, request, call) => api.SubscribeToX509SVID(request, call));
    return this.#watch(open, readX509Context, options);
  }

  /** The bundles that X.509-SVIDs of its peers are checked with. As `watchX509Svids`. */
  watchX509Bundles(options: BrokeredWatchOptions): AsyncGenerator<X509Bundles, void, undefined> {
    const open = this.#stream((api, request, call) => api.SubscribeToX509Bundles(request, call));
    return this.#watch(open, readX509Bundles, options);
  }

  /** The keys that JWT-SVIDs of its peers are checked with. As `watchX509Svids`. */
  watchJwtBundles(options: BrokeredWatchOptions): AsyncGenerator<TokenBundles, void, undefined> {
    const open = this.#stream((api, request, call) => api.SubscribeToJWTBundles(request, call));
    return this.#watch(open, readJwtBundles, options);
  }

  /** A token for each of its identities, or for the one asked for. Throws a `Fault` with what the endpoint answered. */
  async fetchJwtSvids(audience: string, options: BrokeredFetchOptions = {}): Promise<JwtSvidTokens> {
    const { otherAudiences = [], id: spiffe_id = "", deadlineMs } = options;
    const fields = { audience: [audience, ...otherAudiences], spiffe_id };
    const open = this.#stream(
      async function* (api, request, call) {
        yield await api.FetchJWTSVID(
          { ...request, ...fields },
          deadlineMs === undefined ? call : { ...call, deadlineMs },
        );
      },
      { patient: false },
    );
    return readJwtSvids(await firstOf(open, this.#stoppable(options)));
  }

  #stream<M>(call: ApiCall<M>, { patient }: Pick<Attempt, "patient"> = { patient: true }): OpenStream<M> {
    const { typeUrl: type_url, value, stillMeant = () => true } = this.reference;
    const request = { reference: { reference: { type_url, value: Buffer.from(value) } } };
    return (signal) => {
      if (!stillMeant())
        throw new Fault("not_found", "the referenced workload has stopped", { code: "workload-not-found" });
      return this.#call({ signal, patient }, (channel, options) => call(channel.client(BrokerApi), request, options));
    };
  }

  #watch<M, T>(open: OpenStream<M>, read: (message: M) => T, options: BrokeredWatchOptions) {
    return watch(open, read, this.#stoppable(options), rulesFor(options));
  }

  #stoppable<O extends Pick<FetchOptions, "signal">>(options: O): O & { readonly signal: AbortSignal } {
    const { signal } = options;
    return { ...options, signal: signal === undefined ? this.#stop : AbortSignal.any([signal, this.#stop]) };
  }
}

type ApiCall<M> = (
  api: ReturnType<typeof clientOf>,
  request: { readonly reference: { readonly reference: { readonly type_url: string; readonly value: Buffer } } },
  options: CallOptions,
) => AsyncIterable<M>;

const clientOf = (channel: Channel) => channel.client(BrokerApi);
