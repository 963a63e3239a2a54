import { AWS_IID, writeEvidence } from "../../src/evidence/aws-iid.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Ec2Metadata } from "../../src/runtime/ec2-metadata.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface AwsIidConfig {
  /** Of the instance metadata service. */
  readonly endpoint: string;
}

const MAX_BYTES = 64 * 1024;

/** Shows the instance's identity document with AWS's signatures. */
export function awsIidAttestor({ endpoint }: AwsIidConfig, clock: Pick<Clock, "sleep">): NodeAttestor {
  const http = new HttpCaller({ clock, code: "ec2-metadata", maxBytes: MAX_BYTES });
  return {
    type: AWS_IID,
    async evidence(signal) {
      const read = await new Ec2Metadata(http, new URL(endpoint)).open(signal);
      const [document, signature, rsa2048] = [
        await read("dynamic/instance-identity/document"),
        await read("dynamic/instance-identity/signature"),
        await read("dynamic/instance-identity/rsa2048"),
      ];
      return writeEvidence({ document, signature, rsa2048 });
    },
    async respond() {
      throw new Fault("internal", "the server sent a challenge to an instance identity document", {
        code: "attestation-unexpected-challenge",
      });
    },
  };
}
