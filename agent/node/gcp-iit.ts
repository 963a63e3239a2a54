import { GCP_AUDIENCE, GCP_IIT } from "../../src/evidence/gcp-iit.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface GcpIitConfig {
  /** Host of the metadata service, with a port if need be. */
  readonly identityTokenHost: string;
  readonly serviceAccount: string;
}

const MAX_BYTES = 64 * 1024;

/** Shows the identity token that the metadata service gives the instance for this purpose. */
export function gcpIitAttestor(
  { identityTokenHost, serviceAccount }: GcpIitConfig,
  clock: Pick<Clock, "sleep">,
): NodeAttestor {
  const http = new HttpCaller({ clock, code: "gcp-metadata", maxBytes: MAX_BYTES });
  return {
    type: GCP_IIT,
    async evidence(signal) {
      const path = `computeMetadata/v1/instance/service-accounts/${encodeURIComponent(serviceAccount)}/identity`;
      const url = new URL(`http://${identityTokenHost}/${path}?audience=${GCP_AUDIENCE}&format=full`);
      const { status, body } = await http.call({ url, headers: { "metadata-flavor": "Google" } }, signal);
      if (status !== 200)
        throw http.fault(
          `unable to retrieve valid identity token: the metadata service answered with status ${status}`,
        );
      return body;
    },
    async respond() {
      throw new Fault("internal", "the server sent a challenge to an instance identity token", {
        code: "attestation-unexpected-challenge",
      });
    },
  };
}
