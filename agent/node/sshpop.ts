import type { KeyObject } from "node:crypto";
import { readFile } from "node:fs/promises";
import { publicBlob, readPrivateKey } from "../../src/evidence/ssh-key.ts";
import { answerChallenge, parseSshCertificate, SSHPOP, writeEvidence } from "../../src/evidence/sshpop.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface SshPopConfig {
  readonly hostKeyPath: string;
  readonly hostCertPath: string;
}

/** Shows the host's SSH certificate and answers for its key; both are read for each attestation. */
export function sshpopAttestor({ hostKeyPath, hostCertPath }: SshPopConfig): NodeAttestor {
  let key: KeyObject | undefined;
  return {
    type: SSHPOP,
    async evidence() {
      key = await load(hostKeyPath, readPrivateKey);
      const certificate = await load(hostCertPath, readCertificate);
      const own = publicBlob(key);
      if (Buffer.compare(publicBlobOf(certificate), own) !== 0)
        throw unusable(hostCertPath, `it is not for the key in ${hostKeyPath}`);
      return writeEvidence(certificate);
    },
    async respond(challenge) {
      if (key === undefined) throw new Fault("internal", "the server sent a challenge before it had a certificate");
      return answerChallenge(key, challenge);
    },
  };
}

/** One line: type, base64, comment. */
function readCertificate(text: string): Uint8Array {
  const raw = Buffer.from(text.trim().split(/\s+/)[1] ?? "", "base64");
  return parseSshCertificate(raw).raw;
}

function publicBlobOf(certificate: Uint8Array): Buffer {
  return publicBlob(parseSshCertificate(certificate).key);
}

async function load<T>(path: string, read: (text: string) => T): Promise<T> {
  try {
    return read(await readFile(path, "utf8"));
  } catch (error) {
    throw unusable(path, messageOf(error));
  }
}

function unusable(path: string, reason: string): Fault {
  return new Fault("precondition", `unable to use ${path}: ${reason}`, {
    code: "sshpop-keypair",
    hint: "check host_key_path and host_cert_path",
  });
}
