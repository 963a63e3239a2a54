import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto";
import { readFile } from "node:fs/promises";
import { fetchX509Svid } from "../../src/client/index.ts";
import { type Certificate, parseCertificateUpTo } from "../../src/crypto/certificate.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import { MOST_RSA_BITS } from "../../src/crypto/public-key.ts";
import { answerChallenge, writeEvidence, X509POP } from "../../src/evidence/x509pop.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { AgentConfig } from "../config.ts";
import type { NodeAttestor } from "./attestor.ts";

export type X509PopSource = Extract<AgentConfig["nodeAttestor"], { readonly type: "x509pop" }>["source"];

interface Credential {
  /** Leaf first. */
  readonly chain: readonly Certificate[];
  readonly privateKey: KeyObject;
}

/** Shows a certificate and answers for its key. Both are read for each attestation, so that they may be replaced. */
export function x509popAttestor(source: X509PopSource): NodeAttestor {
  let shown: Credential | undefined;
  return {
    type: X509POP,
    async evidence(signal) {
      shown = source.kind === "socket" ? await fromWorkloadApi(source.socket, signal) : await fromFiles(source);
      return writeEvidence(shown.chain.map(({ raw }) => raw));
    },
    async respond(challenge) {
      if (shown === undefined) throw new Fault("internal", "the server sent a challenge before it had a certificate");
      return answerChallenge(shown.privateKey, challenge);
    },
  };
}

async function fromWorkloadApi(socket: string, signal: AbortSignal): Promise<Credential> {
  try {
    const { svids } = await fetchX509Svid({
      socket: socket.startsWith("/") ? `unix://${socket}` : socket,
      deadlineMs: 30_000,
      signal,
    });
    return svids[0];
  } catch (error) {
    signal.throwIfAborted();
    throw new Fault("unavailable", `unable to fetch SVID from workload API: ${messageOf(error)}`, {
      code: "x509pop-workload-api",
      hint: `check the agent at ${socket}, and its registration entry for this agent`,
      cause: error,
    });
  }
}

async function fromFiles(source: Extract<X509PopSource, { readonly kind: "files" }>): Promise<Credential> {
  const { privateKeyPath, certificatePath, intermediatesPath } = source;
  const chain = [
    ...(await certificatesIn(certificatePath)),
    ...(intermediatesPath === undefined ? [] : await certificatesIn(intermediatesPath)),
  ];
  const privateKey = await keyIn(privateKeyPath);
  const publicKey = createPublicKey(privateKey).export({ type: "spki", format: "der" });
  if (chain[0] === undefined || Buffer.compare(chain[0].publicKey, publicKey) !== 0)
    throw unusable("private key does not match public key", `${privateKeyPath} and ${certificatePath}`);
  return { chain, privateKey };
}

async function certificatesIn(path: string): Promise<readonly Certificate[]> {
  const text = await read(path);
  try {
    const found = decodePem(text, "CERTIFICATE").map((der) => parseCertificateUpTo(der, MOST_RSA_BITS));
    if (found.length > 0) return found;
  } catch (error) {
    throw unusable(messageOf(error), path);
  }
  throw unusable("no certificates found", path);
}

async function keyIn(path: string): Promise<KeyObject> {
  const text = await read(path);
  try {
    return createPrivateKey(text);
  } catch {
    throw unusable("not a private key in PEM form", path);
  }
}

async function read(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw unusable(messageOf(error), path);
  }
}

function unusable(reason: string, where: string): Fault {
  return new Fault("precondition", `unable to load keypair: ${where}: ${reason}`, {
    code: "x509pop-keypair",
    hint: "check private_key_path, certificate_path and intermediates_path",
  });
}
