import { randomBytes, timingSafeEqual } from "node:crypto";
import { lookup } from "node:dns/promises";
import { type IncomingMessage, request } from "node:http";
import type { BlockList } from "node:net";
import {
  challengePath,
  HTTP_CHALLENGE,
  type HttpChallengeEvidence,
  readEvidence,
  writeChallenge,
} from "../../src/evidence/http-challenge.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { isReachable } from "../../src/runtime/networks.ts";
import { checkDnsNames } from "../../src/spiffe/dns-name.ts";
import { agentId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";

export interface HttpChallengeConfig {
  /** A host's whole name has to match one of them; none means that any name will do. */
  readonly allowedDnsPatterns: readonly RegExp[];
  readonly requiredPort: number | undefined;
  readonly allowNonRootPorts: boolean;
  readonly tofu: boolean;
  /** Networks of hosts that may attest although they are not on the internet. */
  readonly allowedNetworks: BlockList;
}

export interface HttpChallengeOptions extends HttpChallengeConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  /** Addresses of a host name. Default: the system's resolver. */
  readonly resolve?: (hostname: string) => Promise<readonly string[]>;
}

const AGENT_NAME = /^[A-Za-z][A-Za-z0-9-]{0,31}$/;
const TIMEOUT_MS = 10_000;
/** What is read of an answer; the nonce is shorter. */
const MAX_ANSWER_BYTES = 64;

/**
 * The node serves a nonce under its host name. The request goes to an address that was looked up and judged, and to no
 * other: no redirect is followed, and nothing of the answer is ever told (T-N4).
 */
export class HttpChallengeAttestor implements NodeAttestor {
  readonly type = HTTP_CHALLENGE;
  readonly #options: HttpChallengeOptions;

  constructor(options: HttpChallengeOptions) {
    this.#options = options;
  }

  async attest(payload: Uint8Array, challenge: Challenge, { signal }: AttestationContext): Promise<NodeClaim> {
    const { trustDomain, tofu } = this.#options;
    const evidence = this.#check(readEvidence(payload));
    const nonce = base64url(randomBytes(32));
    await challenge(writeChallenge(nonce));
    await this.#verify(evidence, nonce, signal);
    return {
      id: agentId(trustDomain, `${HTTP_CHALLENGE}/${evidence.hostname}`),
      selectors: [{ type: HTTP_CHALLENGE, value: `hostname:${evidence.hostname}` }],
      canReattest: !tofu,
      once: tofu,
    };
  }

  #check(evidence: HttpChallengeEvidence): HttpChallengeEvidence {
    const { requiredPort, allowNonRootPorts, allowedDnsPatterns } = this.#options;
    const { hostname, agentname, port } = evidence;
    if (requiredPort !== undefined && port !== requiredPort)
      throw refused("invalid", `port ${port} is not allowed to be used by this server`);
    if (!allowNonRootPorts && port >= 1024) throw refused("invalid", `port ${port} is not allowed to be >= 1024`);
    if (port < 1 || port > 65_535) throw refused("invalid", "port is invalid");
    if (!AGENT_NAME.test(agentname)) throw refused("invalid", "agent name is not valid");
    if (hostname === "localhost") throw refused("denied", "you can not use localhost as a hostname");
    if (!isHostName(hostname)) {
      throw new Fault("invalid", "hostname is not valid", {
        code: "http-challenge-evidence",
        hint: "use a DNS name in lower-case letters; an address is none",
      });
    }
    if (allowedDnsPatterns.length > 0 && !allowedDnsPatterns.some((pattern) => pattern.test(hostname)))
      throw refused("denied", "the requested hostname is not allowed to connect");
    return evidence;
  }

  async #verify({ hostname, agentname, port }: HttpChallengeEvidence, nonce: string, call: AbortSignal): Promise<void> {
    const timeout = new AbortController();
    const signal = AbortSignal.any([call, timeout.signal]);
    const timer = this.#options.clock.sleep(TIMEOUT_MS, signal).then(
      () => timeout.abort(),
      () => undefined,
    );
    try {
      const address = await this.#addressOf(hostname);
      const url = { host: address, port, path: challengePath(agentname), headers: { host: `${hostname}:${port}` } };
      const answer = await fetchStart(url, signal);
      if (!isSame(answer.trim(), nonce)) throw unproven("expected nonce was not found in HTTP response");
    } catch (error) {
      call.throwIfAborted();
      if (timeout.signal.aborted) throw unproven("no answer within 10 s");
      throw Fault.from(error).code === UNPROVEN ? error : unproven("the HTTP request failed", error);
    } finally {
      timeout.abort();
      await timer;
    }
  }

  async #addressOf(hostname: string): Promise<string> {
    const { resolve = systemResolve, allowedNetworks } = this.#options;
    let addresses: readonly string[];
    try {
      addresses = await resolve(hostname);
    } catch (error) {
      throw unproven("the hostname cannot be resolved", error);
    }
    const address = addresses.find((candidate) => isReachable(candidate, allowedNetworks));
    if (address !== undefined) return address;
    throw new Fault("denied", "challenge verification failed: the hostname has no address that may be asked", {
      code: UNPROVEN,
      hint: "name the network of the nodes in allowed_networks",
    });
  }
}

async function systemResolve(hostname: string): Promise<readonly string[]> {
  return (await lookup(hostname, { all: true })).map(({ address }) => address);
}

/** One spelling per host, so that a host has one ID; numbers alone are an address. */
function isHostName(name: string): boolean {
  if (name.length > 253 || name !== name.toLowerCase() || /(^|\.)[0-9]+$/.test(name)) return false;
  if (name.includes("*") || name.endsWith(".localhost")) return false;
  try {
    checkDnsNames([name]);
    return true;
  } catch {
    return false;
  }
}

interface Target {
  readonly host: string;
  readonly port: number;
  readonly path: string;
  readonly headers: { readonly host: string };
}

async function fetchStart(target: Target, signal: AbortSignal): Promise<string> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    request({ ...target, method: "GET", agent: false, signal, maxHeaderSize: 8192 }, resolve)
      .on("error", reject)
      .end();
  });
  try {
    if (response.statusCode !== 200) throw unproven("the HTTP response was not a success");
    return await readStart(response);
  } finally {
    response.destroy();
  }
}

async function readStart(response: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) break;
  }
  return Buffer.concat(chunks).subarray(0, MAX_ANSWER_BYTES).toString("latin1");
}

function isSame(answer: string, nonce: string): boolean {
  const [a, b] = [Buffer.from(answer), Buffer.from(nonce)];
  return a.length === b.length && timingSafeEqual(a, b);
}

/** With padding, as Go's URLEncoding. */
function base64url(bytes: Buffer): string {
  return bytes.toString("base64").replaceAll("+", "-").replaceAll("/", "_");
}

const UNPROVEN = "http-challenge-failed";

function unproven(reason: string, cause?: unknown): Fault {
  return new Fault("denied", `challenge verification failed: ${reason}`, { code: UNPROVEN, cause });
}

function refused(kind: "invalid" | "denied", message: string): Fault {
  return new Fault(kind, message, { code: "http-challenge-evidence" });
}
