import type { ClientRequest, IncomingMessage } from "node:http";
import { request as httpRequest } from "node:http";
import { type ConnectionOptions, getCACertificates, type TLSSocket, connect as tlsConnect } from "node:tls";
import { contextOptions, peerChain, serverName } from "../../src/rpc/tls.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { EndpointProfile } from "../../src/spiffe/federation.ts";
import { isSpiffeId } from "../../src/spiffe/id.ts";
import { validateX509Svid, type X509SvidOptions } from "../../src/spiffe/x509-svid.ts";

/** Who the other end has to be. */
export interface Authentication {
  readonly profile: EndpointProfile;
  /** The authorities of the endpoint's own trust domain, for `https_spiffe`. */
  readonly authorities: X509SvidOptions["authorities"];
  readonly at: Date;
}

export interface HttpsAnswer {
  readonly status: number;
  readonly headers: IncomingMessage["headers"];
  readonly body: Buffer;
}

/** One GET on a connection of its own, made once the other end is verified. Throws `denied`, `unavailable`, `invalid`. */
export async function httpsGet(
  url: URL,
  authentication: Authentication,
  { maxBytes, signal }: { readonly maxBytes: number; readonly signal: AbortSignal },
): Promise<HttpsAnswer> {
  const socket = await connect(url, authentication, signal);
  try {
    return await get(url, socket, maxBytes);
  } finally {
    socket.destroy();
  }
}

async function connect(url: URL, authentication: Authentication, signal: AbortSignal): Promise<TLSSocket> {
  signal.throwIfAborted();
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? 443 : Number(url.port);
  const web = authentication.profile.type === "https_web";
  const socket = tlsConnect({ host, port, ALPNProtocols: ["http/1.1"], ...(web ? webOptions() : spiffeOptions(host)) });
  signal.addEventListener("abort", () => socket.destroy(Fault.from(signal.reason)), { once: true });
  await new Promise<void>((done, fail) => {
    socket.once("secureConnect", done);
    socket.on("error", (error) => fail(connectFault(error, socket, web)));
    socket.once("close", () => fail(new Fault("unavailable", "the endpoint closed the connection")));
  });
  try {
    if (authentication.profile.type === "https_spiffe") verifySvid(socket, authentication);
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Names and chain are checked against what the machine trusts, as browsers do. RFC 6125. */
function webOptions(): ConnectionOptions {
  const ca = [...new Set([...getCACertificates("default"), ...getCACertificates("system")])];
  return { ca, minVersion: "TLSv1.2", rejectUnauthorized: true };
}

function spiffeOptions(host: string): ConnectionOptions {
  return { ...contextOptions(undefined), rejectUnauthorized: false, servername: serverName(host) ?? "" };
}

/** SPIFFE Federation, section 5.2.2.4: a valid X.509-SVID of exactly this ID, whatever the host is called. */
function verifySvid(socket: TLSSocket, { profile, authorities, at }: Authentication): void {
  const id = validateX509Svid({ chain: peerChain(socket), authorities, at });
  if (profile.type === "https_spiffe" && id === profile.endpointSpiffeId) return;
  throw new Fault("denied", `unexpected ID "${id}"`, { code: "bundle-endpoint-identity" });
}

function connectFault(error: NodeJS.ErrnoException, socket: TLSSocket, web: boolean): Fault {
  if (error instanceof Fault) return error;
  const spiffeId = web ? uriOf(socket) : undefined;
  const hint =
    spiffeId === undefined ? {} : { hint: `its certificate names ${spiffeId}: maybe use https_spiffe, not https_web` };
  const reason = error.message.replace(/; if the root CA is installed locally.*$/, "");
  return new Fault("unavailable", `could not connect: ${reason}`, {
    code: "bundle-endpoint-unreachable",
    cause: error,
    ...hint,
  });
}

function uriOf(socket: TLSSocket): string | undefined {
  try {
    return peerChain(socket)[0]?.uris.find(isSpiffeId);
  } catch {
    return undefined;
  }
}

const MAX_HEADER_BYTES = 16 * 1024;

function get(url: URL, socket: TLSSocket, maxBytes: number): Promise<HttpsAnswer> {
  return new Promise((done, fail) => {
    const request: ClientRequest = httpRequest({
      createConnection: () => socket,
      method: "GET",
      path: `${url.pathname}${url.search}`,
      headers: { host: url.host, accept: "application/json", "accept-encoding": "identity", connection: "close" },
      maxHeaderSize: MAX_HEADER_BYTES,
    });
    const lost = (error: unknown): void =>
      fail(
        error instanceof Fault ? error : new Fault("unavailable", `no answer: ${messageOf(error)}`, { cause: error }),
      );
    request.once("response", (response) => {
      read(response, maxBytes).then(
        (body) => done({ status: response.statusCode ?? 0, headers: response.headers, body }),
        lost,
      );
    });
    request.once("error", lost);
    socket.once("error", lost);
    request.end();
  });
}

/** Throws `invalid` for a body that is longer, or packed: packed bytes say nothing about what they become. */
async function read(response: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const encoding = response.headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") throw new Fault("invalid", `the answer is encoded as ${encoding.slice(0, 64)}`);
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new Fault("invalid", `the answer is longer than ${maxBytes} bytes`);
    chunks.push(chunk);
  }
  if (!response.complete) throw new Fault("unavailable", "the answer was cut off");
  return Buffer.concat(chunks);
}
