import { constants, createHash, generateKeyPairSync, type KeyObject, privateEncrypt, randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { parseCertificateRequest } from "../../src/crypto/csr.ts";
import { decodePem, encodePem } from "../../src/crypto/pem.ts";
import { openssl } from "./openssl.ts";
import type { TestCa } from "./pki.ts";

/**
 * A double of Vault's HTTP API, for its wire only: tokens and AppRole logins with leases, the transit engine and
 * `root/sign-intermediate` of the PKI engine. Answers have Vault's form, errors too.
 */
export interface VaultDouble extends AsyncDisposable {
  readonly address: string;
  /** Method and path of every request. */
  readonly requests: readonly string[];
  readonly keyNames: () => readonly string[];
  /** Logins so far; a token is good until `revokeTokens`. */
  readonly logins: () => number;
  revokeTokens(): void;
  /** Answers 503 to everything, as a sealed server does. */
  seal(sealed: boolean): void;
}

export const VAULT_TOKEN = "hvs.test";
export const APPROLE = { roleId: "role", secretId: "secret" };

interface TransitKey {
  readonly type: string;
  readonly privateKey: KeyObject;
  readonly publicKey: string;
  readonly createdAt: string;
  deletable: boolean;
}

type Json = Readonly<Record<string, unknown>>;
type Result = readonly [status: number, body: Json];

const CURVES: Readonly<Record<string, string>> = { "ecdsa-p256": "P-256", "ecdsa-p384": "P-384" };
const BITS: Readonly<Record<string, number>> = { "rsa-2048": 2048, "rsa-4096": 4096 };
const HASHES: Readonly<Record<string, string>> = { "sha2-256": "sha256", "sha2-384": "sha384" };

export async function startVault(ca?: TestCa, chain: readonly Uint8Array[] = []): Promise<VaultDouble> {
  const keys = new Map<string, TransitKey>();
  const tokens = new Set([VAULT_TOKEN]);
  const requests: string[] = [];
  let [sealed, logins] = [false, 0];

  const transit = async (method: string, path: string, body: Json): Promise<Result> => {
    const [, name = "", rest = ""] = /^transit\/(?:keys|sign)\/([^/]+)(?:\/(.+))?$/.exec(path) ?? [];
    const key = keys.get(name);
    if (method === "GET" && path === "transit/keys?list=true")
      return keys.size === 0 ? [404, { errors: [] }] : data({ keys: [...keys.keys()] });
    if (method === "POST" && path === `transit/keys/${name}`) {
      if (body["exportable"] === true) return error(400, "not in this test");
      keys.set(name, newKey(String(body["type"])));
      return [200, {}];
    }
    if (key === undefined) return [404, { errors: [] }];
    if (method === "POST" && rest === "config") {
      key.deletable = body["deletion_allowed"] === true;
      return [204, {}];
    }
    if (method === "DELETE") {
      if (!key.deletable) return error(400, "deletion is not allowed for this key");
      keys.delete(name);
      return [204, {}];
    }
    if (method === "GET") {
      const version = { creation_time: key.createdAt, name: key.type, public_key: key.publicKey };
      return data({ name, type: key.type, exportable: false, latest_version: 1, keys: { "1": version } });
    }
    return signed(key, rest, body);
  };

  const pki = async (body: Json): Promise<Result> => {
    if (ca === undefined) return error(404, "no handler for route");
    const csr = parseCertificateRequest(decodePem(String(body["csr"]), "CERTIFICATE REQUEST")[0] ?? new Uint8Array());
    const ends = Date.now() + Number(body["ttl"]) * 1000;
    const made = await ca.issue({
      ...{ publicKey: csr.publicKey, ca: true, keyUsage: ["keyCertSign", "cRLSign"], extKeyUsage: null },
      ...{ uris: String(body["uri_sans"]).split(","), subject: { organization: String(body["organization"]) } },
      notAfter: new Date(Math.min(ends, ca.certificate.notAfter.getTime())),
    });
    const pem = (der: Uint8Array): string => encodePem("CERTIFICATE", der).trim();
    const certificate = pem(made.der);
    return data({ certificate, issuing_ca: pem(ca.der), ca_chain: [certificate, pem(ca.der), ...chain.map(pem)] });
  };

  const answer = async (request: IncomingMessage, body: Json): Promise<Result> => {
    const path = (request.url ?? "").replace(/^\/v1\//, "");
    requests.push(`${request.method} ${path}`);
    if (sealed) return error(503, "Vault is sealed");
    if (path === "auth/approle/login") {
      const known = body["role_id"] === APPROLE.roleId && body["secret_id"] === APPROLE.secretId;
      if (!known) return error(400, "invalid role or secret ID");
      const token = `hvs.${randomUUID()}`;
      tokens.add(token);
      logins += 1;
      return [200, { auth: { client_token: token, lease_duration: 3600, renewable: true } }];
    }
    if (!tokens.has(String(request.headers["x-vault-token"]))) return error(403, "permission denied");
    if (path === "auth/token/renew-self") return [200, { auth: { client_token: VAULT_TOKEN, lease_duration: 3600 } }];
    if (path === "pki/root/sign-intermediate") return pki(body);
    return transit(request.method ?? "", path, body);
  };

  const server = createServer((request, response) => {
    void readJson(request)
      .then((body) => answer(request, body))
      .then(([status, body]) => {
        response.writeHead(status, { "content-type": "application/json" });
        response.end(status === 204 ? "" : JSON.stringify(body));
      });
  });
  await listening(server);
  return {
    address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    keyNames: () => [...keys.keys()],
    logins: () => logins,
    revokeTokens: () => tokens.clear(),
    seal(value) {
      sealed = value;
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    },
  };
}

function listening(server: Server): Promise<void> {
  return new Promise((done) => server.listen(0, "127.0.0.1", done));
}

async function readJson(request: IncomingMessage): Promise<Json> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return chunks.length === 0 ? {} : JSON.parse(Buffer.concat(chunks).toString());
}

let made = 0;

function newKey(type: string): TransitKey {
  const curve = CURVES[type];
  const pair =
    curve === undefined
      ? generateKeyPairSync("rsa", { modulusLength: BITS[type] ?? 0 })
      : generateKeyPairSync("ec", { namedCurve: curve });
  made += 1;
  // Vault gives nanoseconds.
  const createdAt = new Date(Date.now()).toISOString().replace("Z", `${String(made).padStart(6, "0")}Z`);
  const publicKey = pair.publicKey.export({ type: "spki", format: "pem" }).toString();
  return { type, privateKey: pair.privateKey, publicKey, createdAt, deletable: false };
}

/** Prehashed, as the request says: ECDSA signs the digest as it is, RSA wraps it into a DigestInfo. */
async function signed({ type, privateKey }: TransitKey, hashName: string, body: Json): Promise<Result> {
  const hash = HASHES[hashName];
  const digest = Buffer.from(String(body["input"]), "base64");
  if (hash === undefined || body["prehashed"] !== true) return error(400, "unsupported hash algorithm");
  if (digest.length !== createHash(hash).digest().length) return error(400, "invalid digest length");
  if (type.startsWith("rsa") && body["signature_algorithm"] !== "pkcs1v15") return error(400, "pss is not expected");
  if (!type.startsWith("rsa") && body["marshaling_algorithm"] !== "asn1") return error(400, "jws is not expected");
  const signature = type.startsWith("rsa")
    ? privateEncrypt(
        { key: privateKey, padding: constants.RSA_PKCS1_PADDING },
        Buffer.concat([DIGEST_INFO_SHA256, digest]),
      )
    : await signDigest(privateKey, digest);
  return data({ signature: `vault:v1:${signature.toString("base64")}`, key_version: 1 });
}

const DIGEST_INFO_SHA256 = Buffer.from("3031300d060960864801650304020105000420", "hex");

/** Node hashes whatever it signs with ECDSA; the openssl program can leave that. */
async function signDigest(key: KeyObject, digest: Buffer): Promise<Buffer> {
  await using program = await openssl();
  await program.write("key.pem", key.export({ type: "pkcs8", format: "pem" }).toString());
  await program.write("digest", digest);
  return await program.run("pkeyutl", "-sign", "-inkey", "key.pem", "-in", "digest");
}

function data(value: Json): Result {
  return [200, { request_id: randomUUID(), lease_id: "", renewable: false, lease_duration: 0, data: value }];
}

function error(status: number, message: string): Result {
  return [status, { errors: [message] }];
}
