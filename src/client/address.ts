import { isIPv4, isIPv6 } from "node:net";
import { Fault } from "../runtime/fault.ts";

/** The variable that names the Workload Endpoint. SPIFFE Workload Endpoint, section 4. */
export const SOCKET_VARIABLE = "SPIFFE_ENDPOINT_SOCKET";

/** Where a Workload Endpoint listens. */
export type EndpointAddress =
  | { readonly transport: "unix"; readonly path: string }
  | { readonly transport: "tcp"; readonly host: string; readonly port: number };

/** `sockaddr_un` holds 108 bytes, the last of them NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

/**
 * The explicit address, or else the one in `SPIFFE_ENDPOINT_SOCKET`; no well-known path is guessed. Throws `invalid`.
 */
export function endpointAddress(
  explicit: string | undefined,
  environment: NodeJS.ProcessEnv = process.env,
): EndpointAddress {
  const text = explicit ?? environment[SOCKET_VARIABLE];
  if (text === undefined) {
    throw new Fault("invalid", "workload endpoint socket address is not configured", {
      code: "endpoint-address-missing",
      hint: `set ${SOCKET_VARIABLE}, for example to unix:///tmp/spire-agent/public/api.sock`,
    });
  }
  return parseEndpointAddress(text);
}

/** Reads `unix:` with an absolute path, or `tcp://` with IP address and port, and nothing else. Throws `invalid`. */
export function parseEndpointAddress(text: string): EndpointAddress {
  const colon = text.indexOf(":");
  const scheme = colon < 0 ? "" : text.slice(0, colon).toLowerCase();
  const rest = text.slice(colon + 1);
  if (scheme === "unix") return parseUnix(rest);
  if (scheme === "tcp") return parseTcp(rest);
  throw bad('workload endpoint socket URI must have a "tcp" or "unix" scheme', "endpoint-address-scheme");
}

function parseUnix(rest: string): EndpointAddress {
  refuseParts(rest, "unix");
  const slash = rest.startsWith("//") ? rest.indexOf("/", 2) : 0;
  if (slash < 0 || (slash > 2 && rest.startsWith("//"))) {
    throw bad("workload endpoint unix socket URI must not have an authority", "endpoint-address-authority");
  }
  const path = decodePath(rest.slice(slash));
  if (!path.startsWith("/") || path === "/") {
    throw bad("workload endpoint unix socket URI must include an absolute path", "endpoint-address-path");
  }
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
    throw bad(
      `workload endpoint unix socket path is longer than ${MAX_SOCKET_PATH_BYTES} bytes`,
      "endpoint-address-path",
    );
  }
  return { transport: "unix", path };
}

function decodePath(encoded: string): string {
  try {
    const path = decodeURIComponent(encoded);
    if (!path.includes("\0")) return path;
  } catch {
    // Falls through: a broken escape is as bad as a NUL.
  }
  throw bad("workload endpoint unix socket path is not a valid URI path", "endpoint-address-path");
}

function parseTcp(rest: string): EndpointAddress {
  refuseParts(rest, "tcp");
  if (!rest.startsWith("//")) throw bad("workload endpoint tcp socket URI must not be opaque", "endpoint-address-host");
  const authority = rest.slice(2);
  if (authority.includes("@")) {
    throw bad("workload endpoint tcp socket URI must not include user info", "endpoint-address-extra");
  }
  if (authority.includes("/"))
    throw bad("workload endpoint tcp socket URI must not include a path", "endpoint-address-extra");
  const [, six, four, port] = /^(?:\[([^\]]*)\]|([^:]*))(?::(\d*))?$/.exec(authority) ?? [];
  const host = six ?? four ?? "";
  if (six === undefined ? !isIPv4(host) : !isIPv6(host) || host.includes("%")) {
    throw bad("workload endpoint tcp socket URI host component must be an IP:port", "endpoint-address-host");
  }
  if (port === undefined || !/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535) {
    throw bad(
      "workload endpoint tcp socket URI host component must include a port from 1 to 65535",
      "endpoint-address-port",
    );
  }
  return { transport: "tcp", host, port: Number(port) };
}

function refuseParts(rest: string, scheme: string): void {
  if (rest.includes("#"))
    throw bad(`workload endpoint ${scheme} socket URI must not include a fragment`, "endpoint-address-extra");
  if (rest.includes("?"))
    throw bad(`workload endpoint ${scheme} socket URI must not include query values`, "endpoint-address-extra");
}

function bad(message: string, code: string): Fault {
  return new Fault("invalid", message, {
    code,
    hint: "write it as unix:///absolute/path or tcp://IP:port",
  });
}
