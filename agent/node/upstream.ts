import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { bundleFromProto, idFromProto } from "../../src/rpc/convert.ts";
import { type Channel, dialTls } from "../../src/rpc/dial.ts";
import type { AttestAgentRequest } from "../../src/rpc/gen/spire/api/server/agent/v1/AttestAgentRequest.ts";
import type { SyncAuthorizedEntriesRequest } from "../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesRequest.ts";
import type { SyncAuthorizedEntriesResponse__Output } from "../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesResponse.ts";
import type { JWTSVID__Output } from "../../src/rpc/gen/spire/api/types/JWTSVID.ts";
import type { WatchAuthorizedEntriesRequest } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import type { WatchAuthorizedEntriesResponse__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesResponse.ts";
import { AgentApi, BundleApi, ContinuityApi, EntryApi, PushApi, SvidApi } from "../../src/rpc/protos.ts";
import { faultFrom, rpcErrorText } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isAbort, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { insecureBootstrap } from "../events.ts";
import type { NodeAttestor } from "./attestor.ts";
import { bundleOf, type Trust } from "./bootstrap.ts";
import { followContinuity } from "./continuity.ts";
import type { AgentIdentity, Credentials } from "./credentials.ts";
import { Gate } from "./gate.ts";
import { Outbox } from "./outbox.ts";
import type { ServerTrust } from "./server-trust.ts";
import { verifyServer, verifyServerIdOnly } from "./verify.ts";

export interface UpstreamOptions {
  readonly trustDomain: TrustDomain;
  readonly address: string;
  readonly port: number;
  readonly credentials: Credentials;
  readonly serverTrust: ServerTrust;
  readonly clock: Clock;
  readonly log: Log;
}

export interface SigningParam {
  readonly entryId: string;
  readonly csr: Uint8Array;
}

export type SignedX509 =
  | { readonly kind: "signed"; readonly chain: readonly Uint8Array[] }
  | { readonly kind: "refused"; readonly status: number; readonly error: string };

export interface JwtRequest {
  readonly entryId: string;
  readonly audience: readonly string[];
  readonly deadlineMs: number;
}

export interface WitRequest {
  readonly entryId: string;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  /** What the key signs with. */
  readonly algorithm: string;
  readonly deadlineMs: number;
}

/** A JWT-SVID or WIT-SVID. */
export interface SignedToken {
  readonly token: string;
  readonly id: SpiffeId;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
}

export interface Attestation {
  readonly chain: readonly Uint8Array[];
  readonly reattestable: boolean;
  readonly bundle: Bundle;
}

const DEADLINE_MS = 30_000;
/** The server queues attestations from one address, one a second. */
const ATTESTATION_DEADLINE_MS = 120_000;
const MAX_VERSION_LENGTH = 255;

interface Connection {
  readonly channel: Channel;
  readonly identity: AgentIdentity;
  readonly bundle: Bundle;
  users: number;
  retired: boolean;
}

/**
 * The server, as typed calls. One connection with the agent's SVID is shared by all; it is made anew after an error and
 * when the SVID or the bundle has changed, and calls that are under way finish on the old one.
 */
export class Upstream implements Disposable {
  readonly #options: UpstreamOptions;
  readonly #gate = new Gate();
  /** Streams without an end give way to `exclusively`. */
  #watches = new AbortController();
  #connection: Connection | undefined;

  constructor(options: UpstreamOptions) {
    this.#options = options;
  }

  /** While `work` replaces the agent's SVID no other call is under way: the server would find it without one. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.#gate.exclusive(() => {
      this.#watches.abort();
      this.#watches = new AbortController();
      return work();
    });
  }

  /** Over a connection of its own, without a client certificate. */
  async attest(
    request: { readonly attestor: NodeAttestor; readonly csr: Uint8Array; readonly trust: Trust },
    signal: AbortSignal,
  ): Promise<Attestation> {
    const { address, port } = this.#options;
    using channel = dialTls({ address, port, verifyServer: (chain) => this.#verifyBy(request.trust, chain) });
    const { chain, reattestable } = await runAttestation(channel, request, signal);
    return { chain, reattestable, bundle: await this.#bundleAfterAttestation(channel, request.trust, signal) };
  }

  /**
   * Asks the server, which nobody has vouched for yet, for the way from the bundle that is held to an authority that
   * vouches for it. Nothing else is said on that connection. Throws `denied` when there is none.
   */
  async followBundles(held: Bundle, signal: AbortSignal): Promise<Bundle> {
    const { address, port, clock } = this.#options;
    let shown: readonly Certificate[] = [];
    const remember = (chain: readonly Certificate[]): void => {
      shown = chain;
    };
    using channel = dialTls({ address, port, verifyServer: remember });
    const client = channel.client(ContinuityApi);
    const now = clock.now();
    const { x509Authorities, sequenceNumber } = await followContinuity({
      ...{ held, now },
      ask: async (ids) => {
        const { links } = await client.GetBundleLinks({ authority_ids: [...ids] }, options(signal));
        return links.map(({ statement, x509_authorities }) => ({ statement, x509Authorities: x509_authorities }));
      },
      suffices: (authorities) => isServer(shown, bundleOf(held.trustDomain, authorities.x509Authorities), now),
    });
    return { ...bundleOf(held.trustDomain, x509Authorities), sequenceNumber };
  }

  /** For use inside `exclusively`. Returns the new chain, DER, leaf first. */
  renew(csr: Uint8Array, signal: AbortSignal): Promise<readonly Uint8Array[]> {
    return this.#call("failed to renew agent", async (channel) => {
      const { svid } = await channel
        .client(AgentApi)
        .RenewAgent({ params: { csr: Buffer.from(csr) } }, options(signal));
      return chainOf(svid?.cert_chain, "failed to renew agent");
    });
  }

  async postStatus(agentVersion: string, signal: AbortSignal): Promise<void> {
    await this.#sharedCall("failed to post agent status", (channel) =>
      channel
        .client(AgentApi)
        .PostStatus({ agent_version: agentVersion.slice(0, MAX_VERSION_LENGTH) }, options(signal)),
    );
  }

  /** Hands `work` the stream; the call lasts as long as `work` does. */
  syncEntries<T>(
    work: (
      open: (
        requests: AsyncIterable<SyncAuthorizedEntriesRequest>,
      ) => AsyncIterable<SyncAuthorizedEntriesResponse__Output>,
    ) => Promise<T>,
    signal: AbortSignal,
  ): Promise<T> {
    return this.#sharedCall("failed to fetch authorized entries", (channel) =>
      work((requests) => channel.client(EntryApi).SyncAuthorizedEntries(requests, options(signal))),
    );
  }

  /** The same for a stream that lasts. It is aborted when the agent's SVID is about to be replaced. */
  async watchEntries<T>(
    work: (
      open: (
        requests: AsyncIterable<WatchAuthorizedEntriesRequest>,
        signal: AbortSignal,
      ) => AsyncIterable<WatchAuthorizedEntriesResponse__Output>,
      signal: AbortSignal,
    ) => Promise<T>,
    signal: AbortSignal,
  ): Promise<T> {
    await this.#gate.shared(async () => undefined);
    const until = AbortSignal.any([signal, this.#watches.signal]);
    return this.#call("failed to watch authorized entries", (channel) =>
      work((requests, stop) => channel.client(PushApi).WatchAuthorizedEntries(requests, { signal: stop }), until),
    );
  }

  /** Throws `invalid` when the answer does not parse. */
  async bundle(signal: AbortSignal): Promise<Bundle> {
    return bundleFromProto(
      await this.#sharedCall("failed to fetch bundle", (channel) =>
        channel.client(BundleApi).GetBundle({}, options(signal)),
      ),
    );
  }

  /** Throws `not_found` when the server holds none, `invalid` when the answer does not parse. */
  async federatedBundle(trustDomain: TrustDomain, signal: AbortSignal): Promise<Bundle> {
    const message = await this.#sharedCall("failed to fetch federated bundle", (channel) =>
      channel.client(BundleApi).GetFederatedBundle({ trust_domain: trustDomain }, options(signal)),
    );
    return bundleFromProto(message);
  }

  /** At most 500 at once. One answer per param, in order. */
  async signX509(params: readonly SigningParam[], signal: AbortSignal): Promise<readonly SignedX509[]> {
    const { results } = await this.#sharedCall("failed to batch new X509 SVID(s)", (channel) =>
      channel
        .client(SvidApi)
        .BatchNewX509SVID(
          { params: params.map(({ entryId, csr }) => ({ entry_id: entryId, csr: Buffer.from(csr) })) },
          options(signal),
        ),
    );
    return results.map(({ status, svid }): SignedX509 => {
      const code = status?.code ?? 0;
      if (code === 0 && svid !== null) return { kind: "signed", chain: svid.cert_chain };
      return { kind: "refused", status: code, error: status?.message ?? "the server left out the SVID" };
    });
  }

  /** Throws `internal` when the answer lacks something. What the server says reaches the workload with its code. */
  async signJwt({ entryId, audience, deadlineMs }: JwtRequest, signal: AbortSignal): Promise<SignedToken> {
    const { svid } = await this.#sharedCall("failed to fetch JWT SVID", (channel) =>
      channel
        .client(SvidApi)
        .NewJWTSVID({ entry_id: entryId, audience: [...audience] }, { signal, deadlineMs })
        .catch((error: unknown) => {
          throw saying(error, rpcErrorText);
        }),
    );
    return signedToken(svid, "JWT");
  }

  /** Throws what the server answered for this one, and `internal` when the answer lacks something. */
  async signWit({ entryId, publicKey, algorithm, deadlineMs }: WitRequest, signal: AbortSignal): Promise<SignedToken> {
    const what = "failed to fetch WIT SVID";
    const params = [{ entry_id: entryId, public_key: Buffer.from(publicKey), signing_algorithm: algorithm }];
    const { results } = await this.#sharedCall(what, (channel) =>
      channel.client(SvidApi).BatchNewWITSVID({ params }, { signal, deadlineMs }),
    );
    const [result] = results;
    const { code = 0, message = "" } = result?.status ?? {};
    if (code !== 0) throw during(what, faultFrom(code, message, undefined));
    return signedToken(result?.svid ?? null, "WIT");
  }

  [Symbol.dispose](): void {
    this.#retire(this.#connection);
  }

  #verifyBy(trust: Trust, chain: readonly Certificate[]): void {
    const { trustDomain, clock, log, serverTrust } = this.#options;
    if (trust.kind === "bundle") {
      serverTrust.watch(() => verifyServer({ chain, bundle: trust.bundle, at: clock.now() }));
    } else {
      insecureBootstrap(log);
      verifyServerIdOnly(chain, trustDomain);
    }
  }

  /** The SVID is issued by now and a token spent, so a failure here must not throw it away when that can be helped. */
  async #bundleAfterAttestation(channel: Channel, trust: Trust, signal: AbortSignal): Promise<Bundle> {
    try {
      return bundleFromProto(await channel.client(BundleApi).GetBundle({}, options(signal)));
    } catch (error) {
      signal.throwIfAborted();
      if (trust.kind === "bundle") return trust.bundle;
      throw during("failed to get updated bundle", error);
    }
  }

  #sharedCall<T>(what: string, work: (channel: Channel) => Promise<T>): Promise<T> {
    return this.#gate.shared(() => this.#call(what, work));
  }

  async #call<T>(what: string, work: (channel: Channel) => Promise<T>): Promise<T> {
    const connection = this.#connect();
    connection.users += 1;
    try {
      return await work(connection.channel);
    } catch (error) {
      if (!isFault(error, "not_found") && !isFault(error, "unimplemented")) this.#retire(connection);
      throw during(what, error);
    } finally {
      connection.users -= 1;
      closeIfUnused(connection);
    }
  }

  #connect(): Connection {
    const { credentials, address, port, clock, serverTrust } = this.#options;
    const identity = credentials.identity.value;
    const bundle = credentials.bundle.value;
    if (identity === undefined)
      throw new Fault("precondition", "the agent has no SVID yet", { code: "agent-not-attested" });
    const current = this.#connection;
    if (current?.identity === identity && current.bundle === bundle) return current;
    this.#retire(current);
    const channel = dialTls({
      address,
      port,
      identity,
      verifyServer: (chain) => serverTrust.watch(() => verifyServer({ chain, bundle, at: clock.now() })),
    });
    this.#connection = { channel, identity, bundle, users: 0, retired: false };
    return this.#connection;
  }

  #retire(connection: Connection | undefined): void {
    if (connection === undefined) return;
    if (this.#connection === connection) this.#connection = undefined;
    connection.retired = true;
    closeIfUnused(connection);
  }
}

function isServer(chain: readonly Certificate[], bundle: Bundle, at: Date): boolean {
  try {
    verifyServer({ chain, bundle, at });
    return true;
  } catch {
    return false;
  }
}

function closeIfUnused(connection: Connection): void {
  if (connection.retired && connection.users === 0) connection.channel[Symbol.dispose]();
}

async function runAttestation(
  channel: Channel,
  { attestor, csr }: { readonly attestor: NodeAttestor; readonly csr: Uint8Array },
  signal: AbortSignal,
): Promise<{ readonly chain: readonly Uint8Array[]; readonly reattestable: boolean }> {
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(async () => attestor.done?.());
  const payload = Buffer.from(await attestor.evidence(signal));
  const requests = new Outbox<AttestAgentRequest>();
  requests.push({ params: { data: { type: attestor.type, payload }, params: { csr: Buffer.from(csr) } } });
  try {
    const responses = channel.client(AgentApi).AttestAgent(requests, { signal, deadlineMs: ATTESTATION_DEADLINE_MS });
    for await (const response of responses) {
      if (response.step !== "challenge") {
        const chain = chainOf(response.result?.svid?.cert_chain, "failed to parse attestation response");
        return { chain, reattestable: response.result?.reattestable ?? false };
      }
      requests.push({
        challenge_response: Buffer.from(await attestor.respond(response.challenge ?? new Uint8Array(), signal)),
      });
    }
    throw new Fault("unavailable", "the server ended the stream without an answer", {
      code: "attestation-ended-early",
    });
  } catch (error) {
    signal.throwIfAborted();
    throw during("failed to receive attestation response", error);
  } finally {
    requests.end();
  }
}

/** In SPIRE's words. */
function signedToken(svid: JWTSVID__Output | null, kind: "JWT" | "WIT"): SignedToken {
  const refuse = (reason: string): Fault => new Fault("internal", `${kind}SVID ${reason}`, { code: "svid-malformed" });
  if (svid === null) throw refuse("response missing SVID");
  const [issuedAt, expiresAt] = [Number(svid.issued_at), Number(svid.expires_at)];
  if (issuedAt === 0) throw refuse("missing issued at");
  if (expiresAt === 0) throw refuse("missing expires at");
  if (issuedAt > expiresAt) throw refuse("issued after it has expired");
  return {
    token: svid.token,
    id: idFromProto(svid.id),
    issuedAt: new Date(issuedAt * 1000),
    expiresAt: new Date(expiresAt * 1000),
  };
}

function chainOf(ders: readonly Uint8Array[] | undefined, what: string): readonly Uint8Array[] {
  if (ders === undefined || ders.length === 0)
    throw new Fault("internal", `${what}: empty SVID cert chain`, { code: "svid-chain-empty" });
  return ders.map((der) => parseCertificate(der).raw);
}

function options(signal: AbortSignal): { readonly signal: AbortSignal; readonly deadlineMs: number } {
  return { signal, deadlineMs: DEADLINE_MS };
}

/** The same fault, saying what was being done. */
function during(what: string, error: unknown): unknown {
  return saying(error, ({ message }) => `${what}: ${message}`);
}

/** The same fault in other words. Details stay: the agent acts on them. An abort stays an abort. */
function saying(error: unknown, words: (fault: Fault) => string): unknown {
  if (isAbort(error)) return error;
  const fault = Fault.from(error);
  const { kind, code, hint, details } = fault;
  return new Fault(kind, words(fault), {
    code,
    details,
    cause: error,
    ...(hint === undefined ? {} : { hint }),
  });
}
