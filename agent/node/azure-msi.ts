import * as v from "valibot";
import { AZURE_MSI, writeEvidence } from "../../src/evidence/azure-msi.ts";
import { azureMetadata } from "../../src/runtime/azure-metadata.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface AzureMsiConfig {
  /** Audience of the token. */
  readonly resourceId: string;
  /** Of the instance metadata service. */
  readonly endpoint: string;
}

const Token = v.object({ access_token: v.pipe(v.string(), v.minLength(1)) });
const MAX_BYTES = 64 * 1024;

/** Shows an access token of the machine's managed identity. */
export function azureMsiAttestor({ resourceId, endpoint }: AzureMsiConfig, clock: Pick<Clock, "sleep">): NodeAttestor {
  const http = new HttpCaller({ clock, code: "azure-metadata", maxBytes: MAX_BYTES });
  return {
    type: AZURE_MSI,
    async evidence(signal) {
      const query = { "api-version": "2018-02-01", resource: resourceId };
      const asked = { schema: Token, path: "identity/oauth2/token", query, signal };
      return writeEvidence((await azureMetadata(http, new URL(endpoint), asked)).access_token);
    },
    async respond() {
      throw new Fault("internal", "the server sent a challenge to a managed identity's token", {
        code: "attestation-unexpected-challenge",
      });
    },
  };
}
