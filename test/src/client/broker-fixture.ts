import { BrokerClient, type BrokeredWatchOptions, type BrokerOptions } from "../../../src/client/broker.ts";
import { pidReference } from "../../../src/client/broker-reference.ts";
import { authorizeId } from "../../../src/client/tls.ts";
import { X509Source } from "../../../src/client/x509-source.ts";
import { errorInfo, richStatus } from "../../../src/rpc/protos.ts";
import { type Clock, systemClock } from "../../../src/runtime/clock.ts";
import type { Fault } from "../../../src/runtime/fault.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { FakeAgent, hold, type Step } from "../../support/fake-agent.ts";
import type { CertificateOptions } from "../../support/pki.ts";
import { forge, testKey } from "../../support/tokens.ts";
import { svidMessage, svidPart, type World } from "./fixtures.ts";

const BROKER_ID = parseSpiffeId("spiffe://example.org/broker");
export const PROVIDER_ID = parseSpiffeId("spiffe://example.org/spire/agent/a");

/** A broker with its own identity, at a Broker API that does what the test says. */
export interface BrokerAt extends AsyncDisposable {
  readonly client: BrokerClient;
  readonly source: X509Source;
  /** The Workload API that the broker has its own identity from. */
  readonly own: FakeAgent;
  readonly endpoint: FakeAgent;
  /** Gives the broker another certificate. */
  renew(): Promise<void>;
}

export interface BrokerAtOptions extends Partial<BrokerOptions> {
  readonly clock?: Clock;
  /** Changes the endpoint's certificate. */
  readonly certificate?: CertificateOptions;
}

export async function brokerAt(world: World, options: BrokerAtOptions, ...steps: readonly Step[]): Promise<BrokerAt> {
  await using scope = new AsyncDisposableStack();
  const { clock = systemClock, certificate = {}, ...given } = options;
  const identity = async () =>
    svidMessage(world, { svids: [svidPart(world, await world.intA.issue({ id: BROKER_ID }))] });
  const own = scope.use(await FakeAgent.start(systemClock, hold(await identity())));
  const source = scope.use(await X509Source.open({ socket: own.socket }));
  const endpoint = scope.use(await FakeAgent.absent(clock, ...steps));
  const provider = await world.rootA.issue({ id: PROVIDER_ID, ...certificate });
  endpoint.tls = { cert: provider.pem, key: provider.keyPem };
  await endpoint.listen();
  const authorize = authorizeId(PROVIDER_ID);
  const client = scope.use(new BrokerClient({ socket: endpoint.socket, source, authorize, ...given }));
  const held = scope.move();
  const renew = async (): Promise<void> => {
    const before = source.svid;
    own.calls[0]?.stream.send(await identity());
    await eventually("the new certificate", () => source.svid !== before);
  };
  return { client, source, own, endpoint, renew, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

/** The identities of one workload under watch, with everything that was told. */
export class WatchedWorkload implements AsyncDisposable {
  readonly updates: unknown[] = [];
  readonly errors: Fault[] = [];
  ended: { readonly error: unknown } | undefined;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  constructor(client: BrokerClient, options: Partial<BrokeredWatchOptions> = {}) {
    const onError = (fault: Fault): void => void this.errors.push(fault);
    const watched = client.workload(pidReference(7)).watchX509Svids({ onError, ...options, signal: this.#stop.signal });
    this.#running = this.#follow(watched);
  }

  async #follow(watch: AsyncIterable<unknown>): Promise<void> {
    try {
      for await (const update of watch) this.updates.push(update);
      this.ended = { error: undefined };
    } catch (error) {
      this.ended = { error };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}

/** As an endpoint sends it in `grpc-status-details-bin`. */
export function reasonDetails(code: number, reason: string, domain = "spiffe.io"): Buffer {
  const value = errorInfo().serialize({ reason, domain, metadata: { pid: "7" } });
  return richStatus().serialize({
    code,
    message: "",
    details: [{ type_url: "type.googleapis.com/google.rpc.ErrorInfo", value }],
  });
}

const ja1 = testKey("ja1");
const jwt = (sub: string) => {
  const exp = Math.floor(systemClock.now().getTime() / 1000) + 300;
  return forge({ alg: "ES256", kid: "ja1", typ: "JWT" }, { sub, aud: ["reports"], exp }, ja1.privateKey);
};
export const jwks = () =>
  Buffer.from(JSON.stringify({ keys: [{ ...ja1.publicKey.export({ format: "jwk" }), kid: "ja1", use: "jwt-svid" }] }));
export const tokens = (...svids: readonly { readonly spiffe_id: string; readonly hint?: string }[]) => ({
  svids: svids.map(({ spiffe_id, hint = "" }) => ({ spiffe_id, svid: jwt(spiffe_id), hint })),
});
