import { generateKeyPairSync, sign, verify } from "node:crypto";
import { localSigner } from "../../src/crypto/key.ts";
import { type Channel, dialUnix } from "../../src/rpc/dial.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseSpiffeId } from "../../src/spiffe/id.ts";
import { signJwtSvid, validateJwtSvid } from "../../src/spiffe/jwt-svid.ts";
import { OWN_SELECTOR } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { scenario } from "./scenario.ts";
import { calls, perCpuSecond } from "./stats.ts";

/** Fewer than an HTTP/2 server lets be reset on one connection. */
const CALLS = 400;

/** Signing and checking a JWT-SVID, beside the one operation in each that no implementation can do without. */
export const tokens = scenario({
  summary: "signing and checking a JWT-SVID, per second of CPU of one process",
  async run({ figure, of, limits }) {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const data = Buffer.alloc(300, 1);
    const signature = sign("sha256", data, privateKey);
    const speed = await limits.openssl("ec-p256");
    const [signing, checking] = [
      { name: "openssl speed ec-p256, sign, one core", value: speed.sign },
      { name: "openssl speed ec-p256, verify, one core", value: speed.verify },
    ];
    const node = of("node:crypto");
    const rawSign = await perCpuSecond(() => sign("sha256", data, privateKey));
    const rawVerify = await perCpuSecond(() => verify("sha256", data, publicKey, signature));
    node.figure({ name: "sign", unit: "/s", values: rawSign, at: { "in flight": 1 }, limit: signing });
    node.figure({ name: "validate", unit: "/s", values: rawVerify, at: { "in flight": 1 }, limit: checking });
    const key = { keyId: "k", signer: localSigner(privateKey) };
    const at = systemClock.now();
    const expiresAt = new Date(at.getTime() + 300_000);
    const template = { subject: parseSpiffeId("spiffe://example.org/web"), audience: ["a"], issuedAt: at, expiresAt };
    const token = await signJwtSvid(template, key);
    const authority = { publicKey: key.signer.publicKey, keyId: "k", expiresAt: 0, tainted: false };
    const authorities = () => [authority];
    const make = () => signJwtSvid(template, key);
    const check = () => validateJwtSvid({ token, audience: ["a"], authorities, at });
    for (const inFlight of [1, 16]) {
      const size = { "in flight": inFlight };
      figure({ name: "sign", unit: "/s", values: await perCpuSecond(make, { inFlight }), at: size, limit: signing });
      const checked = await perCpuSecond(check, { inFlight });
      figure({ name: "validate", unit: "/s", values: checked, at: size, limit: checking });
    }
  },
});

/** Each method of the Workload API for tokens from the agent's cache, attestation and client included, on one connection. */
export const tokenCalls = scenario({
  summary: "the Workload API's methods for tokens from the agent's cache, on one connection",
  async run({ onAgents, limits }) {
    const limit = await limits.roundTrip("unix", 1024);
    await onAgents({ wireOnly: true }, async ({ server, socketPath, id, pid }, { figure }) => {
      const spiffeId = `spiffe://${server.trustDomain}/bench/tokens`;
      await server.createEntry({ spiffeId, parentId: id, selectors: [OWN_SELECTOR] });
      using channel = dialUnix(socketPath);
      const { fetch, validate, bundles } = callsOf(channel);
      const [svid] = await eventually("a token", async () => (await fetch()).svids);
      const methods = {
        FetchJWTSVID: fetch,
        ValidateJWTSVID: () => validate(svid?.svid ?? ""),
        FetchJWTBundles: bundles,
      };
      for (const [name, call] of Object.entries(methods)) {
        await call();
        const { ms, cpuUs } = await calls({ count: CALLS, pid }, call);
        figure({ name, unit: "ms", values: ms, limit });
        if (cpuUs !== undefined) figure({ name: `${name}, agent CPU`, unit: "us", values: cpuUs });
      }
      const at = { "in flight": 16 };
      const { count, seconds } = await calls({ count: 5 * CALLS, inFlight: 16, pid }, fetch);
      figure({ name: "JWT-SVIDs from the cache", unit: "/s", values: count / seconds, at });
    });
  },
});

/** NewJWTSVID between processes: tokens per second, and the server's CPU for one. */
export const jwt = scenario({
  summary: "JWT-SVIDs one by one, by an agent over TLS",
  parameters: {
    calls: { doc: "Calls in all.", default: 2000 },
    inFlight: { doc: "Calls at the same time.", default: [1, 16] },
  },
  async run({ parameters: { calls: count, inFlight }, limits, onServers }) {
    const [floor, trip] = [await limits.signing("ec-p256", "sign"), await limits.roundTrip("tcp", 1024)];
    await onServers({ anyStore: true, wireOnly: true }, async (server, { figure }) => {
      const agent = await server.attest();
      using apis = server.connect(agent.tls);
      const spiffeId = `spiffe://${server.trustDomain}/bench/jwt`;
      const { id: entry_id } = await server.createEntry({ spiffeId, parentId: agent.id });
      const sign = () => apis.svid.NewJWTSVID({ entry_id, audience: ["bench"] });
      await eventually("the server signs for the entry", sign);
      for (const each of inFlight) {
        const { seconds, ms, cpuUs } = await calls({ count, inFlight: each, pid: server.pid }, sign);
        const at = { "in flight": each };
        figure({ name: "JWT-SVIDs", unit: "/s", values: count / seconds, at });
        figure({ name: "one call", unit: "ms", values: ms, at, limit: trip });
        if (cpuUs !== undefined) figure({ name: "server CPU for one", unit: "us", values: cpuUs, at, limit: floor });
      }
    });
  },
});

function callsOf(channel: Channel) {
  const api = channel.client(WorkloadApi);
  const options = { metadata: { "workload.spiffe.io": "true" } };
  const first = async <T>(open: (signal: AbortSignal) => AsyncIterable<T>): Promise<void> => {
    const stop = new AbortController();
    for await (const _ of open(stop.signal)) break;
    stop.abort();
  };
  return {
    fetch: () => api.FetchJWTSVID({ audience: ["bench"] }, options),
    validate: (svid: string) => api.ValidateJWTSVID({ audience: "bench", svid }, options),
    bundles: () => first((signal) => api.FetchJWTBundles({}, { ...options, signal })),
  };
}
