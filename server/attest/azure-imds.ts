import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import type { AgentPathTemplate } from "../../src/evidence/agent-path.ts";
import type { AzureCloud } from "../../src/evidence/azure-cloud.ts";
import {
  type AttestedMachine,
  AZURE_IMDS,
  checkEvidence,
  checkSigner,
  type ImdsAnswer,
  makeNonce,
  readAnswer,
  readDocument,
  readMachine,
} from "../../src/evidence/azure-imds.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Reloaded } from "../../src/runtime/reloaded.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { type AzureAuth, AzureCredentials } from "./azure/credentials.ts";
import { DocumentChains } from "./azure/document-chain.ts";
import { findMachine, findMember, type Machine } from "./azure/machine.ts";
import { AzureResources } from "./azure/resources.ts";
import { AZURE_ROOTS } from "./azure/roots.ts";
import { AzureTenants } from "./azure/tenants.ts";
import { caBundles } from "./ca-bundle.ts";

export interface AzureImdsTenant {
  readonly auth: AzureAuth;
  /** Lower case; empty for all. */
  readonly subscriptions: readonly string[];
  readonly allowedTags: readonly string[];
}

export interface AzureImdsConfig {
  /** By domain, as agents name them. */
  readonly tenants: ReadonlyMap<string, AzureImdsTenant>;
  /** Of the certificates that sign documents. */
  readonly metadataDomains: readonly string[];
  /** PEM file with roots besides Azure's. */
  readonly trustBundlePath: string | undefined;
  readonly agentPath: AgentPathTemplate;
  readonly cloud: AzureCloud;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface AzureImdsOptions extends AzureImdsConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly log: Log;
}

interface Tenant extends AzureImdsTenant {
  readonly resources: AzureResources;
}

/** The machine has Azure sign the server's nonce; the resource manager of its tenant says what else there is to know. */
export class AzureImdsAttestor implements NodeAttestor {
  readonly type = AZURE_IMDS;
  readonly ownPath = true;
  readonly #options: AzureImdsOptions;
  readonly #chains: DocumentChains;
  readonly #ids: AzureTenants;
  readonly #tenants: ReadonlyMap<string, Tenant>;
  readonly #roots: Reloaded<readonly Certificate[]> | undefined;

  private constructor(options: AzureImdsOptions) {
    const { clock, cloud, env, tenants, trustBundlePath, log } = options;
    const http = new HttpCaller({ clock, code: "azure-api", env });
    const local = new HttpCaller({ clock, code: "azure-metadata" });
    this.#options = options;
    this.#chains = new DocumentChains(http);
    this.#ids = new AzureTenants(http, cloud);
    this.#tenants = new Map(
      [...tenants].map(([domain, tenant]) => {
        const credentials = new AzureCredentials({ http, local, clock, cloud, env }, tenant.auth, () =>
          this.#ids.idOf(domain),
        );
        return [domain, { ...tenant, resources: new AzureResources(http, cloud, credentials) }];
      }),
    );
    this.#roots = trustBundlePath === undefined ? undefined : caBundles([trustBundlePath], log);
  }

  /** Throws `invalid` when the file of roots cannot be used. */
  static async open(options: AzureImdsOptions): Promise<AzureImdsAttestor> {
    const attestor = new AzureImdsAttestor(options);
    if ((await attestor.#roots?.value())?.some(({ isCa }) => !isCa))
      throw new Fault("invalid", `trust bundle "${options.trustBundlePath}" contains a non-CA certificate`, {
        code: "azure-trust-bundle",
        hint: "put certificates of authorities alone into the file",
      });
    return attestor;
  }

  async attest(payload: Uint8Array, challenge: Challenge, { signal }: AttestationContext): Promise<NodeClaim> {
    checkEvidence(payload);
    const nonce = makeNonce();
    const answer = readAnswer(await challenge(Buffer.from(nonce)));
    const machine = await this.#machineOf(answer, nonce, signal);
    const { agentDomain, vmssName } = answer.metadata;
    const tenant = this.#tenants.get(agentDomain);
    if (tenant === undefined) throw refused(`tenant ${JSON.stringify(agentDomain)} is not authorized`);
    const { subscriptionId, vmId } = machine;
    if (tenant.subscriptions.length > 0 && !tenant.subscriptions.includes(subscriptionId.toLowerCase()))
      throw refused(`subscription "${subscriptionId}" is not authorized`);
    const { agentPath, trustDomain } = this.#options;
    const TenantID = await this.#ids.idOf(agentDomain);
    const fields = { PluginName: AZURE_IMDS, TenantID, SubscriptionID: subscriptionId, VMID: vmId };
    const id = agentPath.render(trustDomain, { fields });
    const found =
      vmssName == null
        ? await findMachine(tenant.resources, machine, signal)
        : await findMember(tenant.resources, vmssName, machine, signal);
    const values = selectorsOf(found, subscriptionId, tenant.allowedTags);
    return { id, selectors: values.map((value) => ({ type: AZURE_IMDS, value })), canReattest: false, once: true };
  }

  async #machineOf({ document }: ImdsAnswer, nonce: string, signal: AbortSignal): Promise<AttestedMachine> {
    try {
      const { content, signer, others } = readDocument(document.signature);
      checkSigner(signer, this.#options.metadataDomains);
      const roots = [...published(), ...((await this.#roots?.value()) ?? [])];
      await this.#chains.verify({ signer, others, roots, at: this.#options.clock.now() }, signal);
      return readMachine(content, nonce);
    } catch (error) {
      const { kind, message, code, hint } = Fault.from(error);
      const told = `failed to validate attested document: ${message}`;
      throw new Fault(kind, told, { code, cause: error, ...(hint === undefined ? {} : { hint }) });
    }
  }
}

let parsed: readonly Certificate[] | undefined;

function published(): readonly Certificate[] {
  parsed ??= AZURE_ROOTS.flatMap((pem) => decodePem(pem, "CERTIFICATE")).map(parseCertificate);
  return parsed;
}

function selectorsOf(machine: Machine, subscriptionId: string, allowedTags: readonly string[]): readonly string[] {
  const { name, location, resourceGroup, tags, interfaces, scaleSet } = machine;
  return [
    `subscription-id:${subscriptionId}`,
    `vm-name:${name}`,
    `vm-location:${location}`,
    `resource-group:${resourceGroup}`,
    ...(scaleSet === undefined ? [] : [`vmss-name:${scaleSet}`]),
    ...allowedTags.flatMap((tag) => (Object.hasOwn(tags, tag) ? [`vm-tag:${tag}:${tags[tag]}`] : [])),
    ...interfaces.flatMap(({ securityGroup: group, subnets }) => [
      ...(group === undefined ? [] : [`network-security-group:${group.resourceGroup}:${group.names[0]}`]),
      ...subnets.flatMap(({ names: [network, subnet] }) => [
        `virtual-network:${network}`,
        `virtual-network-subnet:${network}:${subnet}`,
      ]),
    ]),
  ];
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "azure-imds-refused" });
}
