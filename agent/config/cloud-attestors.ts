import { AZURE_RESOURCE } from "../../src/evidence/azure-msi.ts";
import { azureMetadataEndpoint } from "../../src/runtime/azure-metadata.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { text } from "../../src/runtime/config-keys.ts";
import { ec2MetadataEndpoint } from "../../src/runtime/ec2-metadata.ts";

/*
 * The agent's half of the node attestors for machines of cloud providers, as configured.
 */

/** Where a plug-in stands, and the environment that stands in for keys that are not set. */
export interface CloudSpot {
  readonly reader: ConfigReader;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export const awsIid = {
  ec2_metadata_endpoint: text({
    doc: "URL of the instance metadata service.",
    shown: "$AWS_EC2_METADATA_SERVICE_ENDPOINT, or http://169.254.169.254",
  }),
};

export function awsIidConfig({ ec2_metadata_endpoint: configured = "" }: Values<typeof awsIid>, spot: CloudSpot) {
  try {
    return { endpoint: ec2MetadataEndpoint(configured, spot.env).href };
  } catch {
    spot.reader.fault("plugins.NodeAttestor.aws_iid", "the endpoint of the instance metadata service is not a URL");
    return { endpoint: "" };
  }
}

export const gcpIit = {
  identity_token_host: text({ doc: "Host of the metadata service.", default: "metadata.google.internal" }),
  service_account: text({ doc: "Service account whose token is shown.", default: "default" }),
};

export function gcpIitConfig(values: Values<typeof gcpIit>, { reader }: CloudSpot) {
  const { identity_token_host: identityTokenHost, service_account: serviceAccount } = values;
  if (!URL.canParse(`http://${identityTokenHost}/`) || new URL(`http://${identityTokenHost}/`).host === "")
    reader.fault("plugins.NodeAttestor.gcp_iit", "identity_token_host is not a host");
  return { identityTokenHost, serviceAccount };
}

export const azureMsi = {
  resource_id: text({ doc: "Audience of the token, as the server has it for the tenant.", default: AZURE_RESOURCE }),
};

export function azureMsiConfig({ resource_id: resourceId }: Values<typeof azureMsi>, spot: CloudSpot) {
  return { resourceId, endpoint: azureEndpoint("azure_msi", spot) };
}

export const azureImds = {
  tenant_domain: text({ doc: "Domain of the machine's tenant, as the server's configuration has it. Required." }),
};

export function azureImdsConfig({ tenant_domain: tenantDomain }: Values<typeof azureImds>, spot: CloudSpot) {
  if (tenantDomain === undefined) spot.reader.fault("plugins.NodeAttestor.azure_imds", "tenant_domain is required");
  return { tenantDomain: tenantDomain ?? "", endpoint: azureEndpoint("azure_imds", spot) };
}

function azureEndpoint(type: string, { reader, env }: CloudSpot): string {
  try {
    return azureMetadataEndpoint(env).href;
  } catch {
    reader.fault(`plugins.NodeAttestor.${type}`, "AZURE_POD_IDENTITY_AUTHORITY_HOST is not a URL");
    return "";
  }
}
