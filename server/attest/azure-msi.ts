import * as v from "valibot";
import { jwsHolds } from "../../src/crypto/jws.ts";
import type { AgentPathTemplate } from "../../src/evidence/agent-path.ts";
import { type AzureCloud, issuersOf } from "../../src/evidence/azure-cloud.ts";
import { AZURE_MSI, checkClaims, type Principal, readToken } from "../../src/evidence/azure-msi.ts";
import { azureMetadata, azureMetadataEndpoint } from "../../src/runtime/azure-metadata.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { type AzureAuth, AzureCredentials } from "./azure/credentials.ts";
import { AzureKeys } from "./azure/oidc-keys.ts";
import {
  AzureResources,
  InterfaceProperties,
  interfaceOf,
  known,
  type NetworkInterface,
  partsOf,
  type ResourceParts,
} from "./azure/resources.ts";

export interface AzureMsiTenant {
  /** Audience of the tokens. */
  readonly resourceId: string;
  /** Undefined: that of the machine which the server is on. */
  readonly subscriptionId: string | undefined;
  readonly auth: AzureAuth;
}

export interface AzureMsiConfig {
  /** By ID. */
  readonly tenants: ReadonlyMap<string, AzureMsiTenant>;
  readonly agentPath: AgentPathTemplate;
  readonly cloud: AzureCloud;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface AzureMsiOptions extends AzureMsiConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
}

const Found = v.object({ id: v.string() });
const VirtualMachine = v.object({
  id: v.string(),
  identity: v.nullish(v.object({ principalId: v.nullish(v.string()) })),
  properties: v.object({
    networkProfile: v.nullish(
      v.object({ networkInterfaces: v.nullish(v.array(v.object({ id: v.nullish(v.string()) }))) }),
    ),
  }),
});
const Interface = v.object({ id: v.string(), properties: InterfaceProperties });
const Metadata = v.object({ compute: v.object({ subscriptionId: v.pipe(v.string(), v.minLength(1)) }) });

const RESOURCES_API = "2021-04-01";
const COMPUTE_API = "2024-07-01";
const NETWORK_API = "2024-05-01";

/** The machine shows a token of its managed identity; the resource manager says which machine has this identity. */
export class AzureMsiAttestor implements NodeAttestor {
  readonly type = AZURE_MSI;
  readonly ownPath = true;
  readonly #options: AzureMsiOptions;
  readonly #keys: AzureKeys;
  readonly #local: HttpCaller;
  readonly #resources: ReadonlyMap<string, AzureResources>;
  #ownSubscription: string | undefined;

  constructor(options: AzureMsiOptions) {
    const { clock, cloud, env, tenants } = options;
    const http = new HttpCaller({ clock, code: "azure-api", env });
    this.#options = options;
    this.#local = new HttpCaller({ clock, code: "azure-metadata" });
    this.#keys = new AzureKeys(http, clock, cloud);
    const parts = { http, local: this.#local, clock, cloud, env };
    this.#resources = new Map(
      [...tenants].map(([id, { auth }]) => [
        id,
        new AzureResources(http, cloud, new AzureCredentials(parts, auth, async () => id)),
      ]),
    );
  }

  async attest(payload: Uint8Array, _challenge: Challenge, { signal }: AttestationContext): Promise<NodeClaim> {
    const { tenants, cloud, clock, agentPath, trustDomain } = this.#options;
    const unverified = readToken(payload);
    const key = await this.#keys.find(unverified.keyId);
    if (key === undefined) throw refused(`key id ${JSON.stringify(unverified.keyId.slice(0, 64))} not found`);
    if (!(await jwsHolds(unverified.jws, key))) throw refused("unable to verify token: the signature does not verify");
    const principal = checkClaims(unverified, (tenantId) => issuersOf(cloud, tenantId), clock.now());
    const { tenantId, principalId, audiences } = principal;
    const tenant = tenants.get(tenantId);
    const resources = this.#resources.get(tenantId);
    if (tenant === undefined || resources === undefined) throw refused(`tenant "${tenantId}" is not authorized`);
    if (!audiences.includes(tenant.resourceId))
      throw refused("unable to validate token claims: invalid audience (aud)");
    const fields = { PluginName: AZURE_MSI, TenantID: tenantId, PrincipalID: principalId };
    const id = agentPath.render(trustDomain, { fields });
    const subscriptionId = tenant.subscriptionId ?? (await this.#own(signal));
    const machine = await machineOf(resources, principal, subscriptionId, signal);
    const values = selectorsOf(machine, subscriptionId);
    return { id, selectors: values.map((value) => ({ type: AZURE_MSI, value })), canReattest: false, once: true };
  }

  async #own(signal: AbortSignal): Promise<string> {
    const endpoint = azureMetadataEndpoint(this.#options.env);
    const query = { "api-version": "2025-04-07", format: "json" };
    this.#ownSubscription ??= (
      await azureMetadata(this.#local, endpoint, { schema: Metadata, path: "instance", query, signal })
    ).compute.subscriptionId;
    return this.#ownSubscription;
  }
}

interface Machine {
  readonly place: ResourceParts;
  readonly interfaces: readonly NetworkInterface[];
}

/**
 * The one machine of the subscription that has the principal as its own identity. It is read again by its ID, and has to
 * say so itself (T-N6). Throws `denied`, `unavailable`.
 */
async function machineOf(
  resources: AzureResources,
  { principalId }: Principal,
  subscriptionId: string,
  signal: AbortSignal,
): Promise<Machine> {
  const filter = `resourceType eq 'Microsoft.Compute/virtualMachines' and identity/principalId eq '${principalId}'`;
  const query = new URLSearchParams({ $filter: filter, "api-version": RESOURCES_API });
  const [found, ...more] = await resources.list(Found, `/subscriptions/${subscriptionId}/resources?${query}`, signal);
  if (found === undefined) throw refused(`unable to get resource for principal "${principalId}": not found`);
  if (more.length > 0) throw refused(`expected one result for principal "${principalId}" at most`);
  const place = known(partsOf(found.id, "Microsoft.Compute", "virtualMachines"), found.id);
  const { id, identity, properties } = await resources.get(
    VirtualMachine,
    `${found.id}?api-version=${COMPUTE_API}`,
    signal,
  );
  const isIts = identity?.principalId?.toLowerCase() === principalId.toLowerCase();
  if (
    !isIts ||
    id.toLowerCase() !== found.id.toLowerCase() ||
    place.subscriptionId.toLowerCase() !== subscriptionId.toLowerCase()
  )
    throw refused("Azure answered with another virtual machine");
  const ids = (properties.networkProfile?.networkInterfaces ?? []).flatMap((each) => each.id ?? []);
  const interfaces = ids.map(async (each) => {
    known(partsOf(each, "Microsoft.Network", "networkInterfaces"), each);
    const read = await resources.get(Interface, `${each}?api-version=${NETWORK_API}`, signal);
    return interfaceOf(read.properties);
  });
  return { place, interfaces: await Promise.all(interfaces) };
}

function selectorsOf({ place, interfaces }: Machine, subscriptionId: string): readonly string[] {
  return [
    `subscription-id:${subscriptionId}`,
    `vm-name:${place.resourceGroup}:${place.names[0]}`,
    ...interfaces.flatMap(({ securityGroup: group, subnets }) => [
      ...(group === undefined ? [] : [`network-security-group:${group.resourceGroup}:${group.names[0]}`]),
      ...subnets.flatMap(({ resourceGroup, names: [network, subnet] }) => [
        `virtual-network:${resourceGroup}:${network}`,
        `virtual-network-subnet:${resourceGroup}:${network}:${subnet}`,
      ]),
    ]),
  ];
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "azure-msi-refused" });
}
