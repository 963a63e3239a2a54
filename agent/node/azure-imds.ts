import * as v from "valibot";
import { AZURE_IMDS, readNonce, writeAnswer, writeEvidence } from "../../src/evidence/azure-imds.ts";
import { azureMetadata } from "../../src/runtime/azure-metadata.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface AzureImdsConfig {
  /** By which the server finds the tenant. */
  readonly tenantDomain: string;
  /** Of the instance metadata service. */
  readonly endpoint: string;
}

const Document = v.object({
  encoding: v.pipe(v.string(), v.minLength(1)),
  signature: v.pipe(v.string(), v.minLength(1)),
});
const Metadata = v.object({ compute: v.object({ vmScaleSetName: v.optional(v.string(), "") }) });
const VERSION = { "api-version": "2025-04-07" };
const MAX_BYTES = 64 * 1024;

/** Has the metadata service sign the server's nonce. */
export function azureImdsAttestor(
  { tenantDomain, endpoint }: AzureImdsConfig,
  clock: Pick<Clock, "sleep">,
): NodeAttestor {
  const http = new HttpCaller({ clock, code: "azure-metadata", maxBytes: MAX_BYTES });
  const base = new URL(endpoint);
  return {
    type: AZURE_IMDS,
    async evidence() {
      return writeEvidence();
    },
    async respond(challenge, signal) {
      const query = { ...VERSION, nonce: readNonce(challenge) };
      const document = await azureMetadata(http, base, { schema: Document, path: "attested/document", query, signal });
      const about = { schema: Metadata, path: "instance", query: { ...VERSION, format: "json" }, signal };
      const { vmScaleSetName } = (await azureMetadata(http, base, about)).compute;
      const vmssName = vmScaleSetName === "" ? null : vmScaleSetName;
      return writeAnswer({ document, metadata: { agentDomain: tenantDomain, vmssName } });
    },
  };
}
