import type { X509Svid } from "../../../src/client/x509-context.ts";
import { X509Source } from "../../../src/client/x509-source.ts";
import { bundleFromProto } from "../../../src/rpc/convert.ts";
import { type Channel, dialTls } from "../../../src/rpc/dial.ts";
import { BundleApi, type Service, SvidApi } from "../../../src/rpc/protos.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault, isFault } from "../../../src/runtime/fault.ts";
import type { Log } from "../../../src/runtime/log.ts";
import { type Bundle, sameAuthorities, type TokenAuthority } from "../../../src/spiffe/bundle.ts";
import { serverId, type TrustDomain } from "../../../src/spiffe/id.ts";
import type { TokenKind } from "../bundle-edits.ts";
import type { UpstreamAuthority } from "../upstream.ts";

export interface SpireUpstreamOptions {
  readonly trustDomain: TrustDomain;
  readonly address: string;
  readonly port: number;
  /** Of the agent that gives this server its identity; an entry with `downstream` has to name it. */
  readonly workloadApiSocket: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** SPIRE's. */
const POLL_MS = 5000;
const IDENTITY_WAIT_MS = 30_000;

/** A SPIRE or Steeple server above this one, reached with the SVID that its agent gives to this process. */
export function openSpireUpstream(options: SpireUpstreamOptions): UpstreamAuthority {
  const connection = new Connection(options);
  return {
    name: "spire",
    async mintX509CA({ csr, ttlSeconds }) {
      const svids = await connection.client(SvidApi);
      const { ca_cert_chain } = await svids.NewDownstreamX509CA({ csr: Buffer.from(csr), preferred_ttl: ttlSeconds });
      // Its own list of roots does not say which are tainted.
      const { x509Authorities } = await fetchBundle(connection);
      return { chain: ca_cert_chain, roots: x509Authorities };
    },
    publishToken: (kind, key) => publish(connection, kind, key),
    bundles: (signal) => follow(connection, options, signal),
    [Symbol.asyncDispose]: () => connection[Symbol.asyncDispose](),
  };
}

/** Made anew whenever the SVID has changed. */
class Connection implements AsyncDisposable {
  readonly #options: SpireUpstreamOptions;
  #source: X509Source | undefined;
  #held: { readonly svid: X509Svid; readonly channel: Channel } | undefined;

  constructor(options: SpireUpstreamOptions) {
    this.#options = options;
  }

  async client<M extends object>(service: Service<M>) {
    return (await this.#channel()).client(service);
  }

  async #channel(): Promise<Channel> {
    const source = await this.#identity();
    const { svid } = source;
    if (this.#held !== undefined && this.#held.svid === svid) return this.#held.channel;
    this.#held?.channel[Symbol.dispose]();
    const { address, port, trustDomain } = this.#options;
    const channel = dialTls({
      ...{ address, port },
      identity: { chain: svid.chain.map(({ raw }) => raw), privateKey: svid.privateKey },
      verifyServer: (chain) => {
        const id = source.verify(chain);
        if (id !== serverId(trustDomain))
          throw new Fault("denied", `unexpected ID "${id}" of the upstream server`, { code: "unexpected-id" });
      },
      backoff: { firstMs: 500, maxMs: 5000 },
    });
    this.#held = { svid, channel };
    return channel;
  }

  async #identity(): Promise<X509Source> {
    const { workloadApiSocket, signal, clock } = this.#options;
    if (this.#source !== undefined) return this.#source;
    const wait = AbortSignal.any([signal, AbortSignal.timeout(IDENTITY_WAIT_MS)]);
    try {
      this.#source = await X509Source.open({ socket: `unix://${workloadApiSocket}`, signal: wait, clock });
      return this.#source;
    } catch (cause) {
      signal.throwIfAborted();
      const reason = isFault(cause) ? cause.message : "it gave none in time";
      throw new Fault("unavailable", `no identity from the Workload API at ${workloadApiSocket}: ${reason}`, {
        code: "upstream-identity",
        hint: "see that the agent runs, and that an entry with downstream names this process",
        cause,
      });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#held?.channel[Symbol.dispose]();
    await this.#source?.[Symbol.asyncDispose]();
  }
}

async function fetchBundle(connection: Connection): Promise<Bundle> {
  const bundles = await connection.client(BundleApi);
  return bundleFromProto(await bundles.GetBundle({}));
}

async function publish(
  connection: Connection,
  kind: TokenKind,
  { publicKey, keyId, expiresAt }: TokenAuthority,
): Promise<readonly TokenAuthority[] | undefined> {
  const bundles = await connection.client(BundleApi);
  const key = { public_key: Buffer.from(publicKey), key_id: keyId, expires_at: expiresAt };
  try {
    if (kind === "jwt") await bundles.PublishJWTAuthority({ jwt_authority: key });
    else await bundles.PublishWITAuthority({ wit_authority: key });
  } catch (error) {
    if (isFault(error, "unimplemented")) return undefined;
    throw error;
  }
  const bundle = await fetchBundle(connection);
  return kind === "jwt" ? bundle.jwtAuthorities : bundle.witAuthorities;
}

async function* follow(
  connection: Connection,
  { clock, log }: SpireUpstreamOptions,
  signal: AbortSignal,
): AsyncGenerator<Bundle, void, undefined> {
  let last: Bundle | undefined;
  let away = false;
  while (!signal.aborted) {
    try {
      const bundle = await fetchBundle(connection);
      if (last === undefined || !sameAuthorities(bundle, last)) yield bundle;
      last = bundle;
      away = false;
    } catch (error) {
      signal.throwIfAborted();
      if (!away) log.warn("Failed to fetch bundle while polling", { error: Fault.from(error) });
      away = true;
    }
    await clock.sleep(POLL_MS, signal);
  }
}
