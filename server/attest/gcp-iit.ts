import { jwsHolds } from "../../src/crypto/jws.ts";
import type { AgentPathTemplate } from "../../src/evidence/agent-path.ts";
import { checkClaims, GCP_IIT, type InstanceToken, readToken } from "../../src/evidence/gcp-iit.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { type ComputeInstance, computeInstance } from "./gcp/compute.ts";
import { GoogleCredentials } from "./gcp/credentials.ts";
import { GoogleKeys } from "./gcp/keys.ts";

export interface GcpIitConfig {
  readonly projects: readonly string[];
  readonly useInstanceMetadata: boolean;
  readonly allowedLabelKeys: readonly string[];
  readonly allowedMetadataKeys: readonly string[];
  /** Characters. */
  readonly maxMetadataValueSize: number;
  readonly serviceAccountFile: string | undefined;
  readonly agentPath: AgentPathTemplate;
  /** What Google's programs take from the environment, and proxies. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface GcpIitOptions extends GcpIitConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
}

/** The instance shows a token that Google has signed for this purpose; Compute Engine says what else there is to know. */
export class GcpIitAttestor implements NodeAttestor {
  readonly type = GCP_IIT;
  readonly ownPath = true;
  readonly #options: GcpIitOptions;
  readonly #http: HttpCaller;
  readonly #keys: GoogleKeys;
  readonly #credentials: GoogleCredentials;

  constructor(options: GcpIitOptions) {
    const { clock, env } = options;
    this.#options = options;
    this.#http = new HttpCaller({ clock, code: "gcp-api", env });
    this.#keys = new GoogleKeys(this.#http, clock);
    const local = new HttpCaller({ clock, code: "gcp-metadata" });
    this.#credentials = new GoogleCredentials({ ...options, http: this.#http, local });
  }

  async attest(payload: Uint8Array, _challenge: Challenge, { signal }: AttestationContext): Promise<NodeClaim> {
    const { projects, useInstanceMetadata, trustDomain, agentPath, clock } = this.#options;
    const unverified = readToken(payload);
    const key = await this.#keys.find(unverified.keyId);
    if (key === undefined || !(await jwsHolds(unverified.jws, key)))
      throw refused("failed to validate the identity token signature: it is not signed by a key of Google's");
    const token = checkClaims(unverified, clock.now());
    const { compute_engine: engine } = token.google;
    if (!projects.includes(engine.project_id))
      throw refused(`identity token project ID "${engine.project_id}" is not in the allow list`);
    const id = agentPath.render(trustDomain, { fields: fieldsOf(token) });
    const instance = useInstanceMetadata ? await this.#instance(token, signal) : undefined;
    const values = [
      `project-id:${engine.project_id}`,
      `zone:${engine.zone}`,
      `instance-name:${engine.instance_name}`,
      `sa:${token.email}`,
      ...(instance === undefined ? [] : this.#instanceSelectors(instance)),
    ];
    return { id, selectors: values.map((value) => ({ type: GCP_IIT, value })), canReattest: false, once: true };
  }

  async #instance(token: InstanceToken, signal: AbortSignal): Promise<ComputeInstance> {
    try {
      return await computeInstance(this.#http, await this.#credentials.token(), token, signal);
    } catch (error) {
      const { kind, message, code, hint } = Fault.from(error);
      if (kind !== "unavailable") throw error;
      const told = `failed to fetch instance metadata: ${message}`;
      throw new Fault(kind, told, { code, cause: error, ...(hint === undefined ? {} : { hint }) });
    }
  }

  #instanceSelectors({ tags, labels, metadata }: ComputeInstance): readonly string[] {
    const { allowedLabelKeys, allowedMetadataKeys, maxMetadataValueSize } = this.#options;
    const items = (metadata?.items ?? []).filter(({ key }) => allowedMetadataKeys.includes(key));
    for (const { key, value } of items) {
      const size = Buffer.byteLength(value ?? "");
      if (size > maxMetadataValueSize)
        throw refused(`metadata ${JSON.stringify(key)} exceeded value limit (${size} > ${maxMetadataValueSize})`);
    }
    return [
      ...(tags?.items ?? []).map((tag) => `tag:${tag}`),
      ...Object.entries(labels ?? {})
        .filter(([key]) => allowedLabelKeys.includes(key))
        .map(([key, value]) => `label:${key}:${value}`),
      ...items.map(({ key, value }) => `metadata:${key}:${value ?? ""}`),
    ];
  }
}

function fieldsOf({ email, google: { compute_engine: at } }: InstanceToken) {
  return {
    PluginName: GCP_IIT,
    ServiceAccount: email.replaceAll("@", "_"),
    ProjectID: at.project_id,
    ProjectNumber: at.project_number,
    Zone: at.zone,
    InstanceID: at.instance_id,
    InstanceName: at.instance_name,
    InstanceCreationTimestamp: at.instance_creation_timestamp,
  };
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "gcp-iit-refused" });
}
