import { afterAll, beforeAll, beforeEach } from "vitest";
import type { CachedEntry } from "../../agent/cache/entry.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { bundlesOf, cachedEntry, Endpoint } from "./endpoint.ts";
import { createCa, type Issued, type TestCa } from "./pki.ts";
import { SdsClient, SECRET_TYPE } from "./sds.ts";
import { NOBODY } from "./workload.ts";

// An agent's SDS for the tests of one file: a process of its own, with the entries below before each test.

const PARTNER = parseTrustDomain("partner.test");
const OTHER = parseTrustDomain("another.test");
export const mine = [`unix:uid:${process.getuid?.()}`];
export const web = cachedEntry({ id: "web", selectors: mine, createdAt: 1, federatesWith: [PARTNER, OTHER] });
export const ext = cachedEntry({ id: "web-ext", selectors: mine, createdAt: 2 });
export const nobodys = cachedEntry({ id: "nobody", selectors: [`unix:uid:${NOBODY}`], createdAt: 3 });

export let root: TestCa;
export let next: TestCa;
export let rootB: TestCa;
export let rootC: TestCa;
export let endpoint: Endpoint;
export let client: SdsClient;
beforeAll(async () => {
  root = await createCa({ trustDomain: "example.org" });
  next = await createCa({ trustDomain: "example.org" });
  rootB = await createCa({ trustDomain: "partner.test" });
  rootC = await createCa({ trustDomain: "another.test" });
  endpoint = await Endpoint.start({ bundles: bundlesOf(root) });
  client = new SdsClient(endpoint.path);
});
export let issued: ReadonlyMap<string, Issued>;
beforeEach(async () => {
  issued = await grant(endpoint, web, ext);
});
afterAll(async () => {
  client[Symbol.dispose]();
  await endpoint[Symbol.asyncDispose]();
});

export const issueFor = ({ spiffeId }: CachedEntry): Promise<Issued> => root.issue({ id: spiffeId });

export async function grant(at: Endpoint, ...entries: readonly CachedEntry[]): Promise<ReadonlyMap<string, Issued>> {
  const svids = await Promise.all(entries.map(async (entry) => [entry, await issueFor(entry)] as const));
  await at.replace(entries, bundlesOf(root, rootB, rootC));
  await at.accept(...svids);
  return new Map(svids.map(([{ id }, svid]) => [id, svid]));
}

export const pemOf = (...cas: readonly TestCa[]): string =>
  cas.map(({ der }) => encodePem("CERTIFICATE", der)).join("");
export const chainOf = (svid: Issued | undefined): string =>
  (svid?.chain ?? []).map((der) => encodePem("CERTIFICATE", der)).join("");
export const logged = async (message: string) =>
  (await endpoint.look()).lines.filter((line) => line.message === message);

/** A stream that has been answered once. */
export async function opened(names: readonly string[], more: object = {}) {
  const stream = client.world();
  stream.send({ type_url: SECRET_TYPE, resource_names: [...names], ...more });
  const first = await stream.response(1);
  const ack = (change: object = {}): void => {
    const { version_info, nonce } = stream.responses.at(-1) ?? first;
    stream.send({ version_info, response_nonce: nonce, resource_names: [...names], type_url: SECRET_TYPE, ...change });
  };
  return { stream, first, ack };
}
