import { parseAgentPathTemplate } from "../../src/evidence/agent-path.ts";
import { azureCloud } from "../../src/evidence/azure-cloud.ts";
import { AZURE_RESOURCE } from "../../src/evidence/azure-msi.ts";
import { azureMetadataEndpoint } from "../../src/runtime/azure-metadata.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { block, duration, flag, integer, named, parsed, text, texts } from "../../src/runtime/config-keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { filePath } from "../../src/runtime/program-config.ts";

/*
 * The server's half of the node attestors for machines of cloud providers, as configured.
 */

/** Where a plug-in stands, and the environment that stands in for keys that are not set. */
export interface CloudSpot {
  readonly reader: ConfigReader;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export const agentPathTemplate = parsed("template", parseAgentPathTemplate, "failed to parse agent svid template");

const MINUTE_MS = 60_000;

export const awsIid = {
  access_key_id: text({ doc: "AWS access key ID.", shown: "$AWS_ACCESS_KEY_ID" }),
  secret_access_key: text({ doc: "AWS secret access key.", shown: "$AWS_SECRET_ACCESS_KEY" }),
  assume_role: text({ doc: "Role that the server takes on in the account of each node.", default: "", shown: "" }),
  partition: text({ doc: "Partition of that role: aws, aws-cn or aws-us-gov.", default: "aws" }),
  skip_block_device: flag({
    doc: "Does not look whether the root volume came to the instance long after its start.",
    default: false,
  }),
  disable_instance_profile_selectors: flag({
    doc: "Does without the roles of the instance profile, and without calls of IAM.",
    default: false,
  }),
  account_ids_for_local_validation: texts({
    doc: "Accounts in which the root volume is not looked at.",
    default: [],
    shown: "[]",
  }),
  agent_path_template: agentPathTemplate({
    doc: "What agent IDs have after /spire/agent.",
    shown: '"/{{ .PluginName }}/{{ .AccountID }}/{{ .Region }}/{{ .InstanceID }}"',
  }),
  verify_organization: block("Lets in the accounts of one organization alone.", {
    management_account_id: text({ doc: "Account that manages the organization." }),
    assume_org_role: text({ doc: "Role in that account that may list accounts." }),
    management_account_region: text({ doc: "Region whose STS gives that role.", default: "us-west-2" }),
    org_account_map_ttl: duration(
      MINUTE_MS,
      "1m",
    )({
      doc: "How long the list of accounts holds.",
      default: 3 * MINUTE_MS,
      shown: "3m",
    }),
    account_list_file: filePath({ doc: "JSON file with the list, instead of AWS's." }),
  }),
  validate_eks_cluster_membership: block("Lets in the nodes of these EKS clusters alone.", {
    eks_cluster_names: texts({ doc: "Names of the clusters.", default: [], shown: "[]" }),
  }),
  regions: named(
    "Regions whose documents are signed by other certificates than AWS had published for this version, by name.",
    block("One region.", {
      certificate_path: filePath({ doc: "PEM file with its certificates; reloaded when it changes.", own: true }),
    }),
  ),
};

/** Of AWS's programs and of proxies. */
const AWS_ENVIRONMENT = /^(AWS_|HOME$|(https?|no)_proxy$)/i;

export function awsIidConfig(values: Values<typeof awsIid>, { reader, env }: CloudSpot) {
  const at = "plugins.NodeAttestor.aws_iid";
  const partitions = ["aws", "aws-cn", "aws-us-gov"];
  if (!partitions.includes(values.partition))
    reader.fault(at, `invalid partition "${values.partition}", must be one of: [${partitions.join(" ")}]`);
  const keys = awsKeys(values, { reader, env });
  const organization = reader.isSet(`${at}.verify_organization`)
    ? awsOrganization(values.verify_organization, reader)
    : undefined;
  const clusters = values.validate_eks_cluster_membership.eks_cluster_names;
  if (reader.isSet(`${at}.validate_eks_cluster_membership`) && clusters.length === 0)
    reader.fault(at, "validate_eks_cluster_membership needs eks_cluster_names");
  const regions = [...values.regions].map(([region, { certificate_path: path }]) => {
    if (path === undefined) reader.fault(`${at}.regions.${region}`, "certificate_path is required");
    return [region, path ?? ""] as const;
  });
  return {
    access: { keys, env: environment(env, AWS_ENVIRONMENT) },
    assumeRole: values.assume_role,
    partition: values.partition,
    skipBlockDevice: values.skip_block_device,
    disableInstanceProfileSelectors: values.disable_instance_profile_selectors,
    locallyValidatedAccounts: values.account_ids_for_local_validation,
    agentPath:
      values.agent_path_template ??
      parseAgentPathTemplate("/{{ .PluginName }}/{{ .AccountID }}/{{ .Region }}/{{ .InstanceID }}"),
    ...(organization === undefined ? {} : { organization }),
    eksClusterNames: clusters,
    regions: new Map(regions),
  };
}

/** The token of a session goes with the keys of the environment alone. */
function awsKeys(values: Values<typeof awsIid>, { reader, env }: CloudSpot) {
  const accessKeyId = values.access_key_id || env["AWS_ACCESS_KEY_ID"] || "";
  const secretAccessKey = values.secret_access_key || env["AWS_SECRET_ACCESS_KEY"] || "";
  const at = "plugins.NodeAttestor.aws_iid";
  if (accessKeyId !== "" && secretAccessKey === "")
    reader.fault(at, "configuration missing secret access key, but has access key id");
  if (accessKeyId === "" && secretAccessKey !== "")
    reader.fault(at, "configuration missing access key id, but has secret access key");
  if (accessKeyId === "") return undefined;
  const sessionToken = values.access_key_id === undefined ? env["AWS_SESSION_TOKEN"] : undefined;
  return { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) };
}

function awsOrganization(values: Values<typeof awsIid>["verify_organization"], reader: ConfigReader) {
  const at = "plugins.NodeAttestor.aws_iid.verify_organization";
  const { management_account_id: managementAccount = "", assume_org_role: role = "" } = values;
  const {
    account_list_file: accountListFile,
    management_account_region: region,
    org_account_map_ttl: periodMs,
  } = values;
  if (accountListFile !== undefined) {
    if (managementAccount !== "" || role !== "")
      reader.fault(at, '"account_list_file" is mutually exclusive with "management_account_id" and "assume_org_role"');
    return { periodMs, accountListFile };
  }
  if (managementAccount === "" || role === "")
    reader.fault(at, 'either "management_account_id" and "assume_org_role", or "account_list_file", have to be set');
  return { periodMs, managementAccount, role, region };
}

const MAX_METADATA_VALUE = 128;

export const gcpIit = {
  projectid_allow_list: texts({ doc: "Projects whose instances may attest.", default: [], shown: "[]" }),
  use_instance_metadata: flag({
    doc: "Asks Compute Engine for the instance's tags, labels and metadata.",
    default: false,
  }),
  service_account_file: filePath({
    doc: "JSON key of the service account that asks.",
    shown: "$GOOGLE_APPLICATION_CREDENTIALS, or the server's own service account",
  }),
  allowed_label_keys: texts({ doc: "Labels that become selectors.", default: [], shown: "[]" }),
  allowed_metadata_keys: texts({ doc: "Metadata that become selectors.", default: [], shown: "[]" }),
  max_metadata_value_size: integer(
    0,
    1 << 20,
  )({
    doc: "Longest metadata value, in bytes; an instance with a longer one is refused.",
    default: MAX_METADATA_VALUE,
  }),
  agent_path_template: agentPathTemplate({
    doc: "What agent IDs have after /spire/agent.",
    shown: '"/{{ .PluginName }}/{{ .ProjectID }}/{{ .InstanceID }}"',
  }),
};

/** Of Google's programs and of proxies. */
const GOOGLE_ENVIRONMENT =
  /^(GOOGLE_APPLICATION_CREDENTIALS$|CLOUDSDK_CONFIG$|GCE_METADATA_HOST$|HOME$|(https?|no)_proxy$)/i;

export function gcpIitConfig(values: Values<typeof gcpIit>, { reader, env }: CloudSpot) {
  const { projectid_allow_list: projects, max_metadata_value_size: size } = values;
  if (projects.length === 0) reader.fault("plugins.NodeAttestor.gcp_iit", "projectid_allow_list is required");
  return {
    projects,
    useInstanceMetadata: values.use_instance_metadata,
    serviceAccountFile: values.service_account_file,
    allowedLabelKeys: values.allowed_label_keys,
    allowedMetadataKeys: values.allowed_metadata_keys,
    // 0 is as good as nothing, as in SPIRE.
    maxMetadataValueSize: size === 0 ? MAX_METADATA_VALUE : size,
    agentPath:
      values.agent_path_template ?? parseAgentPathTemplate("/{{ .PluginName }}/{{ .ProjectID }}/{{ .InstanceID }}"),
    env: environment(env, GOOGLE_ENVIRONMENT),
  };
}

const azurePath = (shown: string) =>
  agentPathTemplate({ doc: "What agent IDs have after /spire/agent.", shown: JSON.stringify(shown) });
const IMDS_PATH = "/{{ .PluginName }}/{{ .TenantID }}/{{ .SubscriptionID }}/{{ .VMID }}";
const MSI_PATH = "/{{ .PluginName }}/{{ .TenantID }}/{{ .PrincipalID }}";

export const azureImds = {
  tenants: named(
    "The tenants whose machines may attest, by domain, as agents name them.",
    block("One tenant. Without an auth block, the server is who Azure's programs would be.", {
      auth_type: text({ doc: "Says which block there is; the block itself says it as well." }),
      secret_auth: block("An application's secret.", {
        app_id: text({ doc: "The application." }),
        app_secret: text({ doc: "Its secret." }),
      }),
      token_auth: block("A token of another issuer that the application trusts.", {
        app_id: text({ doc: "The application." }),
        token_path: filePath({ doc: "File with the token; read each time." }),
      }),
      restrict_to_subscriptions: texts({ doc: "Subscriptions of the machines; [] is all.", default: [], shown: "[]" }),
      allowed_vm_tags: texts({ doc: "Tags that become selectors.", default: [], shown: "[]" }),
    }),
  ),
  agent_path_template: azurePath(IMDS_PATH),
  allowed_metadata_domains: texts({
    doc: "Domains of the certificates that sign documents.",
    shown: '["metadata.azure.com"]',
  }),
  trust_bundle_path: filePath({ doc: "PEM file with roots besides Azure's; reloaded when it changes." }),
};

export const azureMsi = {
  tenants: named(
    "The tenants whose machines may attest, by ID.",
    block("One tenant. Without an application, the server is who Azure's programs would be.", {
      resource_id: text({ doc: "Audience of the tokens.", default: AZURE_RESOURCE }),
      subscription_id: text({ doc: "Subscription of the machines.", shown: "that of the server's machine" }),
      app_id: text({ doc: "Application by which the server asks for machines." }),
      app_secret: text({ doc: "Its secret." }),
    }),
  ),
  agent_path_template: azurePath(MSI_PATH),
};

/** Of Azure's programs and of proxies. */
const AZURE_ENVIRONMENT = /^(AZURE_|(https?|no)_proxy$)/i;

export function azureImdsConfig(values: Values<typeof azureImds>, spot: CloudSpot) {
  const at = "plugins.NodeAttestor.azure_imds";
  const { reader } = spot;
  if (values.tenants.size === 0) reader.fault(at, "configuration must have at least one tenant");
  const tenants = [...values.tenants].map(([domain, tenant]) => {
    const path = `${at}.tenants.${domain}`;
    const wrong = (what: string): void => reader.fault(path, `misconfigured tenant "${domain}": ${what}`);
    if (!/^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/.test(domain)) wrong("expected a domain or an ID");
    const subscriptions = tenant.restrict_to_subscriptions.map((each) => each.trim().toLowerCase());
    if (subscriptions.includes("")) wrong("restrict_to_subscriptions entries must be non-empty");
    return [
      domain,
      { auth: imdsAuth(tenant, { reader, path, wrong }), subscriptions, allowedTags: tenant.allowed_vm_tags },
    ] as const;
  });
  const domains = values.allowed_metadata_domains ?? [];
  return {
    tenants: new Map(tenants),
    metadataDomains: domains.length === 0 ? ["metadata.azure.com"] : domains,
    trustBundlePath: values.trust_bundle_path,
    agentPath: values.agent_path_template ?? parseAgentPathTemplate(IMDS_PATH),
    ...azureEnvironment(at, spot),
  };
}

type ImdsTenant = Values<typeof azureImds>["tenants"] extends ReadonlyMap<string, infer T> ? T : never;

function imdsAuth(
  { secret_auth: secret, token_auth: token }: ImdsTenant,
  { reader, path, wrong }: { reader: ConfigReader; path: string; wrong: (what: string) => void },
) {
  const [isSecret, isToken] = [reader.isSet(`${path}.secret_auth`), reader.isSet(`${path}.token_auth`)];
  if (isSecret && isToken) wrong("only one of secret_auth or token_auth may be specified in the config");
  const required = (value: string | undefined, what: string): string => {
    if (value === undefined) wrong(`missing ${what}`);
    return value ?? "";
  };
  if (isToken) {
    const [tokenPath, appId] = [required(token.token_path, "token file path"), required(token.app_id, "app id")];
    return { kind: "token", appId, tokenPath } as const;
  }
  if (!isSecret) return { kind: "default" } as const;
  const [appId, appSecret] = [required(secret.app_id, "app id"), required(secret.app_secret, "app secret")];
  return { kind: "secret", appId, appSecret } as const;
}

const UUID = /^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/;

export function azureMsiConfig(values: Values<typeof azureMsi>, spot: CloudSpot) {
  const at = "plugins.NodeAttestor.azure_msi";
  const { reader } = spot;
  if (values.tenants.size === 0) reader.fault(at, "configuration must have at least one tenant");
  const tenants = [...values.tenants].map(([id, tenant]) => {
    const { subscription_id: subscriptionId, app_id: appId, app_secret: appSecret, resource_id: resourceId } = tenant;
    const wrong = (what: string): void => reader.fault(`${at}.tenants.${id}`, `misconfigured tenant "${id}": ${what}`);
    if (!UUID.test(id)) wrong("expected the ID of the tenant");
    if (subscriptionId !== undefined && !UUID.test(subscriptionId)) wrong("subscription_id is not one");
    const isOwn = subscriptionId !== undefined || appId !== undefined || appSecret !== undefined;
    if (isOwn && subscriptionId === undefined) wrong("missing subscription id");
    if (isOwn && appId === undefined) wrong("missing app id");
    if (isOwn && appSecret === undefined) wrong("missing app secret");
    const auth = isOwn
      ? ({ kind: "secret", appId: appId ?? "", appSecret: appSecret ?? "" } as const)
      : ({ kind: "default" } as const);
    return [id, { resourceId, subscriptionId, auth }] as const;
  });
  return {
    tenants: new Map(tenants),
    agentPath: values.agent_path_template ?? parseAgentPathTemplate(MSI_PATH),
    ...azureEnvironment(at, spot),
  };
}

function azureEnvironment(at: string, { reader, env }: CloudSpot) {
  const own = environment(env, AZURE_ENVIRONMENT);
  try {
    azureMetadataEndpoint(own);
  } catch {
    reader.fault(at, "AZURE_POD_IDENTITY_AUTHORITY_HOST is not a URL");
  }
  try {
    return { cloud: azureCloud(own), env: own };
  } catch (error) {
    reader.fault(at, Fault.from(error).message);
    return { cloud: azureCloud({}), env: own };
  }
}

/** What the attestor may see of the program's environment. */
function environment(env: CloudSpot["env"], names: RegExp): CloudSpot["env"] {
  return Object.fromEntries(Object.entries(env).filter(([name]) => names.test(name)));
}
