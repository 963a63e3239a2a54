import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { chmod } from "node:fs/promises";
import { join } from "node:path";
import type { CachedEntry } from "../../agent/cache/entry.ts";
import type { HeldSvid } from "../../agent/cache/svid.ts";
import type { TrustBundles } from "../../agent/cache/update.ts";
import type { BrokerEntry } from "../../agent/config/broker.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { parseSpiffeId, parseTrustDomain, type SpiffeId } from "../../src/spiffe/id.ts";
import { parseSelector, selectorSet } from "../../src/spiffe/selector.ts";
import type { EndpointCommand, EndpointOrders, EndpointView } from "./endpoint-process.ts";
import { eventually } from "./eventually.ts";
import type { Issued, TestCa } from "./pki.ts";
import { temporaryDirectory } from "./workload.ts";

interface EndpointOptions extends Omit<EndpointOrders, "path" | "admin" | "broker"> {
  /** Opens the broker's Unix socket, and a TCP port on loopback. */
  readonly broker?: { readonly svid: Issued; readonly brokers: readonly BrokerEntry[] };
  /** Opens the admin socket, for these. */
  readonly delegates?: readonly SpiffeId[];
}

/** The agent's endpoint under test, in another process, with a cache that the test fills. */
export class Endpoint implements AsyncDisposable {
  readonly path: string;
  readonly #child: ChildProcess;
  readonly #scope: AsyncDisposableStack;

  private constructor(path: string, child: ChildProcess, scope: AsyncDisposableStack) {
    this.path = path;
    this.#child = child;
    this.#scope = scope;
  }

  static async start({ delegates, broker, ...options }: EndpointOptions): Promise<Endpoint> {
    await using scope = new AsyncDisposableStack();
    const { path: folder } = scope.use(await temporaryDirectory());
    await chmod(folder, 0o1777);
    const path = join(folder, "api.sock");
    const script = new URL("./endpoint-process.ts", import.meta.url);
    const child = fork(script, {
      execArgv: [],
      serialization: "advanced",
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    scope.defer(async () => {
      if (child.exitCode === null && child.kill("SIGKILL")) await once(child, "exit");
    });
    const admin = delegates && { path: join(folder, "admin.sock"), delegates };
    const bind = { address: "127.0.0.1", port: 0 };
    const brokers = broker && { ...broker, svid: svidOf(broker.svid), socketPath: join(folder, "broker.sock"), bind };
    const orders = { path, ...options, ...(admin && { admin }), ...(brokers && { broker: brokers }) };
    child.send(orders satisfies EndpointOrders);
    await once(child, "message");
    return new Endpoint(path, child, scope.move());
  }

  get folder(): string {
    return join(this.path, "..");
  }

  get adminPath(): string {
    return join(this.folder, "admin.sock");
  }

  /** The state as after a sync and the signing that follows. */
  async replace(entries: readonly CachedEntry[], bundles: TrustBundles): Promise<void> {
    await this.#order({ do: "replace", entries: new Map(entries.map((entry) => [entry.id, entry])), bundles });
  }

  async accept(...svids: readonly (readonly [CachedEntry, Issued])[]): Promise<void> {
    const held = svids.map(([entry, issued]) => [entry.id, heldSvid(entry, issued)] as const);
    await this.#order({ do: "accept", svids: new Map(held) });
  }

  get brokerPath(): string {
    return join(this.folder, "broker.sock");
  }

  /** The port of the Broker API, once it listens. */
  brokerPort(): Promise<number> {
    return eventually("the broker endpoint listens", async () => {
      const { lines } = await this.look();
      const fields = lines.map(({ fields: each }) => each as { readonly network?: string; readonly address?: string });
      const port = Number(
        fields
          .find(({ network }) => network === "tcp")
          ?.address?.split(":")
          .at(-1),
      );
      return Number.isNaN(port) ? undefined : port;
    });
  }

  /** Another SVID of the agent itself. */
  async renew(svid: Issued): Promise<void> {
    await this.#order({ do: "renew", svid: svidOf(svid) });
  }

  look(): Promise<EndpointView> {
    return this.#order({ do: "look" });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#scope.disposeAsync();
  }

  async #order(command: EndpointCommand): Promise<EndpointView> {
    this.#child.send(command);
    const [view] = await once(this.#child, "message");
    return view as EndpointView;
  }
}

function svidOf({ chain, privateKey }: Issued) {
  return { chain: chain.map((der) => Buffer.from(der)), privateKey: Buffer.from(privateKey) };
}

function bundleOf(...authorities: readonly TestCa[]): Bundle {
  return {
    trustDomain: parseTrustDomain(authorities[0]?.trustDomain ?? ""),
    x509Authorities: authorities.map(({ der }) => ({ asn1: Buffer.from(der), tainted: false })),
    jwtAuthorities: [],
    witAuthorities: [],
    refreshHint: 0,
    sequenceNumber: 0n,
  };
}

export function bundlesOf(own: TestCa, ...foreign: readonly TestCa[]): TrustBundles {
  return {
    own: bundleOf(own),
    federated: new Map(foreign.map((ca) => [parseTrustDomain(ca.trustDomain), bundleOf(ca)])),
  };
}

export interface EntrySketch extends Partial<Omit<CachedEntry, "id" | "spiffeId" | "selectors">> {
  readonly id: string;
  readonly selectors: readonly string[];
}

/** `spiffe://example.org/<id>`. */
export function cachedEntry({ id, selectors, ...rest }: EntrySketch): CachedEntry {
  return {
    id,
    spiffeId: parseSpiffeId(`spiffe://example.org/${id}`),
    selectors: selectorSet(selectors.map(parseSelector)),
    federatesWith: [],
    admin: false,
    downstream: false,
    storeSvid: false,
    hint: "",
    disableX509SvidPrefetch: false,
    jwtSvidIncludeJti: false,
    revisionNumber: 0,
    createdAt: 1000,
    ...rest,
  };
}

function heldSvid(entry: CachedEntry, issued: Issued): HeldSvid {
  const { notAfter } = issued.certificate;
  return {
    spiffeId: entry.spiffeId,
    revisionNumber: entry.revisionNumber,
    createdAt: entry.createdAt,
    chain: issued.chain.map((der) => Buffer.from(der)),
    privateKey: Buffer.from(issued.privateKey),
    expiresAt: notAfter,
    rotation: { renewAt: notAfter, soonest: 0, latest: Number.POSITIVE_INFINITY },
    authorityKeyId: "",
  };
}
