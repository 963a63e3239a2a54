import { generateKeyPairSync, sign, verify } from "node:crypto";
import { localSigner } from "../../src/crypto/key.ts";
import { type Channel, dialUnix } from "../../src/rpc/dial.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseSpiffeId } from "../../src/spiffe/id.ts";
import { signJwtSvid, validateJwtSvid } from "../../src/spiffe/jwt-svid.ts";
import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { startServer } from "../support/server.ts";
import { perSecond, perSecondInFlight, spread } from "./stats.ts";

/** Fewer than an HTTP/2 server lets be reset on one connection. */
const CALLS = 400;

/** Signing and checking a JWT-SVID, beside the one operation in each that no implementation can do without. */
export async function measureTokens(): Promise<string[]> {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const data = Buffer.alloc(300, 1);
  const signature = sign("sha256", data, privateKey);
  const rawSign = await perSecond(() => sign("sha256", data, privateKey));
  const rawVerify = await perSecond(() => verify("sha256", data, publicKey, signature));
  const key = { keyId: "k", signer: localSigner(privateKey) };
  const at = systemClock.now();
  const expiresAt = new Date(at.getTime() + 300_000);
  const template = { subject: parseSpiffeId("spiffe://example.org/web"), audience: ["a"], issuedAt: at, expiresAt };
  const token = await signJwtSvid(template, key);
  const authority = { publicKey: key.signer.publicKey, keyId: "k", expiresAt: 0, tainted: false };
  const authorities = () => [authority];
  const check = () => validateJwtSvid({ token, audience: ["a"], authorities, at });
  const rate = (value: number): string => `${Math.round(value)}/s`;
  return [
    `sign: ${rate(await perSecond(() => signJwtSvid(template, key)))}, 16 in flight ${rate(await perSecondInFlight(() => signJwtSvid(template, key), 16))}; node:crypto alone ${rate(rawSign)}`,
    `validate: ${rate(await perSecond(check))}, 16 in flight ${rate(await perSecondInFlight(check, 16))}; node:crypto alone ${rate(rawVerify)}`,
  ];
}

/** Each method of the Workload API for tokens from the agent's cache, attestation and client included, on one connection. */
export async function measureTokenCalls(): Promise<string[]> {
  const flags = { feature_flags: ["wit-svid"] };
  await using server = await startServer({ server: { log_level: "INFO", experimental: flags } });
  await using agent = await startAgent(server, { agent: { log_level: "INFO", experimental: flags } });
  const { agents } = await server.admin.agent.ListAgents({});
  const parentId = `spiffe://example.org${agents[0]?.id?.path}`;
  await server.createEntry({ spiffeId: "spiffe://example.org/bench", parentId, selectors: [OWN_SELECTOR] });
  using channel = dialUnix(agent.socketPath);
  const calls = callsOf(channel);
  const [svid] = await eventually("a token", async () => (await calls.fetch()).svids);
  const validate = () => calls.validate(svid?.svid ?? "");
  const lines: string[] = [];
  const methods = {
    FetchJWTSVID: calls.fetch,
    ValidateJWTSVID: validate,
    FetchJWTBundles: calls.bundles,
    FetchWITSVID: calls.wit,
  };
  for (const [name, call] of Object.entries(methods)) {
    await call();
    const times: number[] = [];
    for (let count = 0; count < CALLS; count += 1) {
      const started = performance.now();
      await call();
      times.push(performance.now() - started);
    }
    lines.push(`${name}: ${spread(times)}`);
  }
  return lines;
}

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
    wit: () => first((signal) => api.FetchWITSVID({}, { ...options, signal })),
  };
}
