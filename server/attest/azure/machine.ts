import * as v from "valibot";
import type { AttestedMachine } from "../../../src/evidence/azure-imds.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import {
  type AzureResources,
  InterfaceProperties,
  interfaceOf,
  known,
  type NetworkInterface,
  partsOf,
} from "./resources.ts";

/** A virtual machine as Azure knows it. */
export interface Machine {
  readonly name: string;
  readonly location: string;
  readonly resourceGroup: string;
  readonly tags: Readonly<Record<string, string>>;
  readonly interfaces: readonly NetworkInterface[];
  /** As Azure spells it. */
  readonly scaleSet?: string;
}

const API = "api-version=2024-07-01";

const tags = v.nullish(v.record(v.string(), v.nullish(v.string())));
const MachineRow = v.object({
  id: v.string(),
  name: v.string(),
  location: v.string(),
  resourceGroup: v.string(),
  vmId: v.string(),
  tags,
});
const InterfaceRow = v.object({ properties: InterfaceProperties });

/**
 * The machine of the document in its subscription. The answer has to be of the same machine and subscription: another is
 * refused (T-N6). Throws `denied`, `unavailable`.
 */
export async function findMachine(
  resources: AzureResources,
  { vmId, subscriptionId }: AttestedMachine,
  signal: AbortSignal,
): Promise<Machine> {
  const projected = "project id, name, location, tags, resourceGroup, vmId = tostring(properties.vmId)";
  const query = `Resources | where type =~ 'microsoft.compute/virtualmachines' and tostring(properties.vmId) =~ '${vmId}' | ${projected}`;
  const rows = await resources.query(MachineRow, { query, subscriptionId }, signal);
  const row = only(rows, `virtual machine ${vmId}`);
  const place = partsOf(row.id, "Microsoft.Compute", "virtualMachines");
  if (!isSame(row.vmId, vmId) || place === undefined || !isSame(place.subscriptionId, subscriptionId))
    throw refused("Azure answered with another virtual machine");
  const attached = `Resources | where type =~ 'microsoft.network/networkinterfaces' and tostring(properties.virtualMachine.id) =~ '${row.id}' | project properties`;
  const interfaces = await resources.query(InterfaceRow, { query: attached, subscriptionId }, signal);
  return { ...row, tags: present(row.tags), interfaces: interfaces.map(({ properties }) => interfaceOf(properties)) };
}

const ScaleSetRow = v.object({ id: v.string(), name: v.string(), resourceGroup: v.string() });
const Member = v.object({
  name: v.string(),
  location: v.string(),
  tags,
  properties: v.nullish(
    v.object({
      vmId: v.nullish(v.string()),
      networkProfileConfiguration: v.nullish(
        v.object({
          networkInterfaceConfigurations: v.nullish(v.array(v.object({ properties: v.nullish(InterfaceProperties) }))),
        }),
      ),
    }),
  ),
});

/** The machine of the document among those of a scale set that the agent has named. Throws as `findMachine`. */
export async function findMember(
  resources: AzureResources,
  scaleSet: string,
  { vmId, subscriptionId }: AttestedMachine,
  signal: AbortSignal,
): Promise<Machine> {
  const query = `Resources | where type =~ 'microsoft.compute/virtualmachinescalesets' and name =~ '${scaleSet}' | project id, name, resourceGroup`;
  const rows = await resources.query(ScaleSetRow, { query, subscriptionId }, signal);
  const set = only(rows, `scale set ${scaleSet}`);
  const place = known(partsOf(set.id, "Microsoft.Compute", "virtualMachineScaleSets"), set.id);
  if (!isSame(place.subscriptionId, subscriptionId)) throw refused("Azure answered with another scale set");
  const members = await resources.list(Member, `${pathOf(place.names[0] ?? "", place)}/virtualMachines?${API}`, signal);
  const found = members.find(({ properties }) => isSame(properties?.vmId ?? "", vmId));
  if (found === undefined) throw refused(`VMSS instance "${vmId}" not found`);
  const configured = found.properties?.networkProfileConfiguration?.networkInterfaceConfigurations ?? [];
  return {
    ...{ name: found.name, location: found.location, resourceGroup: set.resourceGroup, scaleSet: set.name },
    tags: present(found.tags),
    interfaces: configured.map(({ properties }) => interfaceOf(properties)),
  };
}

function pathOf(
  name: string,
  { subscriptionId, resourceGroup }: { subscriptionId: string; resourceGroup: string },
): string {
  const group = encodeURIComponent(resourceGroup);
  return `/subscriptions/${subscriptionId}/resourceGroups/${group}/providers/Microsoft.Compute/virtualMachineScaleSets/${encodeURIComponent(name)}`;
}

function only<T>(rows: readonly T[], what: string): T {
  const [row, ...more] = rows;
  if (row === undefined) throw refused(`${what} not found`);
  if (more.length > 0) throw refused(`expected one result for ${what} at most`);
  return row;
}

function present(values: v.InferOutput<typeof tags>): Readonly<Record<string, string>> {
  return Object.fromEntries(
    Object.entries(values ?? {}).flatMap(([key, value]) => (value == null ? [] : [[key, value]])),
  );
}

function isSame(a: string, b: string): boolean {
  return a.toLowerCase() === b.toLowerCase();
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "azure-imds-refused" });
}
