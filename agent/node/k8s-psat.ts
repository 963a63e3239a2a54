import { readFile } from "node:fs/promises";
import { K8S_PSAT, writeEvidence } from "../../src/evidence/k8s-psat.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface K8sPsatConfig {
  readonly cluster: string;
  readonly tokenPath: string;
}

/** Shows the pod's service account token, read for each attestation: the kubelet replaces it from time to time. */
export function k8sPsatAttestor({ cluster, tokenPath }: K8sPsatConfig): NodeAttestor {
  return {
    type: K8S_PSAT,
    async evidence() {
      return writeEvidence({ cluster, token: await load(tokenPath) });
    },
    async respond() {
      throw new Fault("internal", "the server sent a challenge to a service account token", {
        code: "attestation-unexpected-challenge",
      });
    },
  };
}

async function load(path: string): Promise<string> {
  let reason = "the file is empty";
  try {
    const token = (await readFile(path, "utf8")).trim();
    if (token !== "") return token;
  } catch (error) {
    reason = messageOf(error);
  }
  throw new Fault("unavailable", `unable to load token from ${path}: ${reason}`, {
    code: "k8s-psat-token",
    hint: "mount a projected service account token there, for the audience that the server expects",
  });
}
