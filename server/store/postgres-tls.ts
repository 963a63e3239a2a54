import { readFile } from "node:fs/promises";
import type { ConnectionOptions } from "node:tls";
import { Fault } from "../../src/runtime/fault.ts";
import type { ConnectionParameters } from "./connection-string.ts";

export interface TlsFiles {
  readonly rootCaPath?: string;
  readonly clientCertPath?: string;
  readonly clientKeyPath?: string;
}

/** `preferred`: fall back to plain text when the server has no TLS, as libpq does by default. */
export interface PostgresTls {
  readonly options: ConnectionOptions | false;
  readonly preferred: boolean;
}

/** Whether the chain and whether the name of the server are checked. */
const MODES: Readonly<Record<string, { readonly chain: boolean; readonly name: boolean }>> = {
  allow: { chain: false, name: false },
  prefer: { chain: false, name: false },
  require: { chain: false, name: false },
  "verify-ca": { chain: true, name: false },
  "verify-full": { chain: true, name: true },
};

/**
 * libpq's `sslmode`. A root certificate without a mode means verify-full; with `require` it means verify-ca. A Unix
 * socket never has TLS. Throws `invalid`.
 */
export async function postgresTls(parameters: ConnectionParameters, files: TlsFiles): Promise<PostgresTls> {
  const rootPath = parameters.get("sslrootcert") ?? files.rootCaPath;
  const mode = parameters.get("sslmode") ?? (rootPath === undefined ? "prefer" : "verify-full");
  if (mode === "disable" || isSocket(parameters)) return { options: false, preferred: false };
  const checks = MODES[mode];
  if (checks === undefined) throw badMode();
  const ca = rootPath === undefined || rootPath === "system" ? undefined : await readPem("root certificate", rootPath);
  const cert = await readOptional("client certificate", parameters.get("sslcert") ?? files.clientCertPath);
  const key = await readOptional("client key", parameters.get("sslkey") ?? files.clientKeyPath);
  const chain = checks.chain || (mode === "require" && ca !== undefined);
  return {
    preferred: mode === "prefer" || mode === "allow",
    options: {
      rejectUnauthorized: chain,
      ...(ca === undefined ? {} : { ca }),
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
      ...(checks.name ? {} : { checkServerIdentity: () => undefined }),
    },
  };
}

function isSocket(parameters: ConnectionParameters): boolean {
  return (parameters.get("host") ?? "").startsWith("/");
}

async function readOptional(what: string, path: string | undefined): Promise<Buffer | undefined> {
  return path === undefined ? undefined : readPem(what, path);
}

async function readPem(what: string, path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new Fault("invalid", `unable to read the ${what} of the datastore at ${path}`, {
      code: "datastore-tls",
      hint: "check root_ca_path, client_cert_path and client_key_path",
      cause,
    });
  }
}

function badMode(): Fault {
  return new Fault("invalid", "connection_string has an unknown sslmode", {
    code: "connection-string",
    hint: "use disable, prefer, require, verify-ca or verify-full",
  });
}
