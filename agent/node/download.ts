import { type IncomingMessage, request as requestPlain } from "node:http";
import { request } from "node:https";
import { getCACertificates } from "node:tls";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";

export interface DownloadOptions {
  readonly url: string;
  /** PEM. Only these authorities are believed; without them, those of the operating system. */
  readonly roots?: string | undefined;
  /** The URL is http, and fetched through this socket; redirects are refused. */
  readonly socketPath?: string;
  readonly maxBytes: number;
  readonly clock: Clock;
}

const TIMEOUT_MS = 30_000;
const MAX_REDIRECTS = 5;

/**
 * Fetches over https alone, or through a Unix socket: a redirect to anything else is refused, and so is a body above the
 * cap.
 */
export async function downloadTrustBundle(options: DownloadOptions, signal: AbortSignal): Promise<string> {
  const timeout = new AbortController();
  const over = AbortSignal.any([signal, timeout.signal]);
  const timer = options.clock.sleep(TIMEOUT_MS, over).then(
    () => timeout.abort(new Error(`no answer within ${TIMEOUT_MS / 1000} s`)),
    () => undefined,
  );
  try {
    return await (options.socketPath === undefined ? follow(options, over) : throughSocket(options, over));
  } catch (error) {
    signal.throwIfAborted();
    const cause = timeout.signal.aborted ? timeout.signal.reason : error;
    throw new Fault("unavailable", `unable to fetch trust bundle URL ${options.url}: ${messageOf(cause)}`, {
      code: "trust-bundle-download",
      cause,
    });
  } finally {
    timeout.abort();
    await timer;
  }
}

async function follow({ url, roots, maxBytes }: DownloadOptions, signal: AbortSignal): Promise<string> {
  const ca = roots ?? systemRoots();
  let target = secureUrl(url);
  for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects += 1) {
    const response = await get(target, ca, signal);
    const location = response.headers.location;
    if (response.statusCode === 200) return await body(response, maxBytes);
    response.destroy();
    if (location === undefined || Math.floor((response.statusCode ?? 0) / 100) !== 3) {
      throw new Error(`error downloading trust bundle: status ${response.statusCode}`);
    }
    target = secureUrl(new URL(location, target).href);
  }
  throw new Error("too many redirects");
}

async function throughSocket({ url, socketPath, maxBytes }: DownloadOptions, signal: AbortSignal): Promise<string> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    requestPlain(url, { signal, agent: false, socketPath }, resolve).on("error", reject).end();
  });
  if (response.statusCode === 200) return await body(response, maxBytes);
  response.destroy();
  throw new Error(`error downloading trust bundle: status ${response.statusCode}`);
}

function secureUrl(text: string): URL {
  const url = new URL(text);
  if (url.protocol !== "https:") throw new Error(`${url.protocol}//${url.host} is not https`);
  return url;
}

function get(url: URL, ca: string | string[] | undefined, signal: AbortSignal): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const options = { signal, agent: false, minVersion: "TLSv1.2", ...(ca === undefined ? {} : { ca }) } as const;
    request(url, options, resolve).on("error", reject).end();
  });
}

async function body(response: IncomingMessage, maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) {
      response.destroy();
      throw new Error(`the bundle is larger than ${maxBytes} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Undefined, which means those that Node carries, on a system that has none of its own. */
function systemRoots(): string[] | undefined {
  const roots = getCACertificates("system");
  return roots.length === 0 ? undefined : roots;
}
