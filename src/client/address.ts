import { isIPv4, isIPv6 } from "node:net";
import { Fault } from "../runtime/fault.ts";

/** The variable that names the Workload Endpoint. SPIFFE Workload Endpoint, section 4. */
export const SOCKET_VARIABLE = "SPIFFE_ENDPOINT_SOCKET";

/** The variable that names the Broker Endpoint. SPIFFE Broker Endpoint, section 4. */
export const BROKER_SOCKET_VARIABLE = "SPIFFE_BROKER_SOCKET";

/** Where an endpoint listens. */
export type EndpointAddress =
  | { readonly transport: "unix"; readonly path: string }
  | { readonly transport: "tcp"; readonly host: string; readonly port: number };

/** One kind of endpoint, and what its document says of addresses. */
interface Kind {
  /** For messages. */
  readonly name: string;
  readonly variable: string;
  readonly example: string;
  /** The authority of a `tcp` address: its name, and as it is written. */
  readonly authority: string;
  readonly tcp: string;
  readonly isHost: (host: string) => boolean;
}

const isAddress = (host: string): boolean => isIPv4(host) || (isIPv6(host) && !host.includes("%"));

const WORKLOAD: Kind = {
  name: "workload endpoint",
  variable: SOCKET_VARIABLE,
  example: "unix:///tmp/spire-agent/public/api.sock",
  authority: "an IP:port",
  tcp: "tcp://IP:port",
  isHost: isAddress,
};

/** It has TLS, so names will do as well. */
const BROKER: Kind = {
  name: "broker endpoint",
  variable: BROKER_SOCKET_VARIABLE,
  example: "unix:///run/spire/broker/api.sock",
  authority: "a host:port",
  tcp: "tcp://host:port",
  isHost: (host) => isAddress(host) || isHostName(host),
};

/** `sockaddr_un` holds 108 bytes, the last of them NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

/**
 * The explicit address, or else the one in `SPIFFE_ENDPOINT_SOCKET`; no well-known path is guessed. Throws `invalid`.
 */
export function endpointAddress(
  explicit: string | undefined,
  environment: NodeJS.ProcessEnv = process.env,
): EndpointAddress {
  return located(WORKLOAD, explicit, environment);
}

/** As `endpointAddress`, for the Broker Endpoint: the variable is `SPIFFE_BROKER_SOCKET`. Throws `invalid`. */
export function brokerAddress(
  explicit: string | undefined,
  environment: NodeJS.ProcessEnv = process.env,
): EndpointAddress {
  return located(BROKER, explicit, environment);
}

/** Reads `unix:` with an absolute path, or `tcp://` with IP address and port, and nothing else. Throws `invalid`. */
export function parseEndpointAddress(text: string): EndpointAddress {
  return parse(WORKLOAD, text);
}

function located(kind: Kind, explicit: string | undefined, environment: NodeJS.ProcessEnv): EndpointAddress {
  const text = explicit ?? environment[kind.variable];
  if (text !== undefined) return parse(kind, text);
  throw new Fault("invalid", `${kind.name} socket address is not configured`, {
    code: "endpoint-address-missing",
    hint: `set ${kind.variable}, for example to ${kind.example}`,
  });
}

function parse(kind: Kind, text: string): EndpointAddress {
  const colon = text.indexOf(":");
  const scheme = colon < 0 ? "" : text.slice(0, colon).toLowerCase();
  const bad = refuser(kind, scheme);
  if (scheme !== "unix" && scheme !== "tcp")
    throw new Fault("invalid", `${kind.name} socket URI must have a "tcp" or "unix" scheme`, {
      code: "endpoint-address-scheme",
      hint: writeAs(kind),
    });
  const rest = text.slice(colon + 1);
  if (rest.includes("#")) throw bad("URI must not include a fragment", "endpoint-address-extra");
  if (rest.includes("?")) throw bad("URI must not include query values", "endpoint-address-extra");
  return scheme === "unix" ? parseUnix(rest, bad) : parseTcp(rest, kind, bad);
}

type Refuse = (message: string, code: string) => Fault;

function refuser(kind: Kind, scheme: string): Refuse {
  return (message, code) =>
    new Fault("invalid", `${kind.name} ${scheme} socket ${message}`, { code, hint: writeAs(kind) });
}

function writeAs({ tcp }: Kind): string {
  return `write it as unix:///absolute/path or ${tcp}`;
}

function parseUnix(rest: string, bad: Refuse): EndpointAddress {
  const slash = rest.startsWith("//") ? rest.indexOf("/", 2) : 0;
  if (slash < 0 || (slash > 2 && rest.startsWith("//")))
    throw bad("URI must not have an authority", "endpoint-address-authority");
  const path = decodePath(rest.slice(slash), bad);
  if (!path.startsWith("/") || path === "/") throw bad("URI must include an absolute path", "endpoint-address-path");
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES)
    throw bad(`path is longer than ${MAX_SOCKET_PATH_BYTES} bytes`, "endpoint-address-path");
  return { transport: "unix", path };
}

function decodePath(encoded: string, bad: Refuse): string {
  try {
    const path = decodeURIComponent(encoded);
    if (!path.includes("\0")) return path;
  } catch {
    // Falls through: a broken escape is as bad as a NUL.
  }
  throw bad("path is not a valid URI path", "endpoint-address-path");
}

function parseTcp(rest: string, { authority: form, isHost }: Kind, bad: Refuse): EndpointAddress {
  if (!rest.startsWith("//")) throw bad("URI must not be opaque", "endpoint-address-host");
  const authority = rest.slice(2);
  if (authority.includes("@")) throw bad("URI must not include user info", "endpoint-address-extra");
  if (authority.includes("/")) throw bad("URI must not include a path", "endpoint-address-extra");
  const [, six, name, port] = /^(?:\[([^\]]*)\]|([^:]*))(?::(\d*))?$/.exec(authority) ?? [];
  const host = six ?? name ?? "";
  if (!isHost(host) || (six !== undefined) !== isIPv6(host))
    throw bad(`URI host component must be ${form}`, "endpoint-address-host");
  if (port === undefined || !/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
    throw bad("URI host component must include a port from 1 to 65535", "endpoint-address-port");
  return { transport: "tcp", host, port: Number(port) };
}

const LABEL = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/i;

/** A last label of digits alone is an address that is written badly, such as `127.1`. */
function isHostName(host: string): boolean {
  const labels = host.split(".");
  return host.length <= 253 && labels.every((label) => LABEL.test(label)) && !/^\d+$/.test(labels.at(-1) ?? "");
}
