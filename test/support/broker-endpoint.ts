import { afterAll, beforeAll, beforeEach, expect } from "vitest";
import type { CachedEntry } from "../../agent/cache/entry.ts";
import type { Channel } from "../../src/rpc/dial.ts";
import type { WorkloadReference } from "../../src/rpc/gen/spiffe/broker/WorkloadReference.ts";
import { BrokerApi } from "../../src/rpc/protos.ts";
import { parseSpiffeId, parseTrustDomain } from "../../src/spiffe/id.ts";
import { BROKER_HEADER, dialBroker, pidReference, spiffeReasonOf } from "./broker.ts";
import { collect } from "./collect.ts";
import { bundlesOf, cachedEntry, Endpoint } from "./endpoint.ts";
import { createCa, type Issued, type TestCa } from "./pki.ts";
import { tlsIdentity } from "./scripted-server.ts";
import { NOBODY, startWorkload, type Workload } from "./workload.ts";

// An agent's Broker API for the tests of one file: a process of its own, with the entries below before each test.

const PARTNER = parseTrustDomain("partner.test");
export const PID_TYPE = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
export const mine = [`unix:uid:${process.getuid?.()}`];
const nobodys = [`unix:uid:${NOBODY}`];
export const web = cachedEntry({ id: "web", selectors: mine, createdAt: 1, hint: "inside" });
export const ext = cachedEntry({ id: "web-ext", selectors: mine, createdAt: 2, federatesWith: [PARTNER] });
export const admin = cachedEntry({ id: "admin", selectors: mine, createdAt: 3, admin: true });
export const other = cachedEntry({ id: "other", selectors: nobodys, createdAt: 4 });
export const BROKER = parseSpiffeId("spiffe://example.org/broker");
export const FAR_BROKER = parseSpiffeId("spiffe://example.org/far-broker");
export const FOREIGN_BROKER = parseSpiffeId("spiffe://partner.test/broker");
export const ANY = [{ typeUrl: "*", overTcp: false }];

export let root: TestCa;
export let rootB: TestCa;
export let endpoint: Endpoint;
export let broker: Issued;
export let channel: Channel;
beforeAll(async () => {
  root = await createCa({ trustDomain: "example.org" });
  rootB = await createCa({ trustDomain: "partner.test" });
  broker = await root.issue({ id: BROKER });
  endpoint = await Endpoint.start({
    bundles: bundlesOf(root),
    broker: {
      svid: await root.issue({ id: "spiffe://example.org/spire/agent/a" }),
      brokers: [
        { id: BROKER, allowed: ANY },
        { id: FAR_BROKER, allowed: [{ typeUrl: PID_TYPE, overTcp: true }] },
        { id: FOREIGN_BROKER, allowed: [{ typeUrl: "type.googleapis.com/acme.v1.VmRef", overTcp: true }] },
      ],
    },
  });
  await endpoint.brokerPort();
  channel = dialBroker(endpoint.brokerPath, { identity: tlsIdentity(broker) });
});
afterAll(async () => {
  channel[Symbol.dispose]();
  await endpoint[Symbol.asyncDispose]();
});
export let issued: ReadonlyMap<string, Issued>;
beforeEach(async () => {
  issued = await grant(web, ext, admin, other);
});

export const issueFor = ({ spiffeId }: CachedEntry): Promise<Issued> => root.issue({ id: spiffeId });

export async function grant(...entries: readonly CachedEntry[]): Promise<ReadonlyMap<string, Issued>> {
  const svids = await Promise.all(entries.map(async (entry) => [entry, await issueFor(entry)] as const));
  await endpoint.replace(entries, bundlesOf(root, rootB));
  await endpoint.accept(...svids);
  return new Map(svids.map(([{ id }, svid]) => [id, svid]));
}

type Request = { readonly reference: WorkloadReference | null };
type Options = { readonly metadata?: Record<string, string>; readonly over?: Channel };

export function streams({ metadata = BROKER_HEADER, over = channel }: Options = {}) {
  const api = over.client(BrokerApi);
  return {
    svids: (request: Request) => collect((options) => api.SubscribeToX509SVID(request, { ...options, metadata })),
    bundles: (request: Request) => collect((options) => api.SubscribeToX509Bundles(request, { ...options, metadata })),
    jwtBundles: (request: Request) =>
      collect((options) => api.SubscribeToJWTBundles(request, { ...options, metadata })),
    tokens: (request: Request & { readonly audience?: string[] }) =>
      api.FetchJWTSVID({ audience: ["a"], ...request }, { metadata }),
  };
}

/** How each of the four RPCs ends for this request. */
async function endings(request: Request, options: Options = {}): Promise<readonly unknown[]> {
  const calls = streams(options);
  const opened = [calls.svids(request), calls.bundles(request), calls.jwtBundles(request)];
  const ended = await Promise.all([
    ...opened.map(({ ended: end }) => end),
    calls.tokens(request).catch((error: unknown) => error),
  ]);
  for (const { answers } of opened) expect(answers).toEqual([]);
  return ended;
}

export async function expectAll(request: Request, expected: object, reason: string | undefined, options: Options = {}) {
  for (const end of await endings(request, options)) {
    expect(end).toMatchObject(expected);
    expect(spiffeReasonOf(end)).toBe(reason);
  }
}

export const ownReference = pidReference(process.pid);
export const asNobody = (): Promise<Workload> => startWorkload({ uid: NOBODY, gid: NOBODY, socket: endpoint.path });
