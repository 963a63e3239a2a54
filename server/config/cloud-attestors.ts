import { parseAgentPathTemplate } from "../../src/evidence/agent-path.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { block, duration, flag, integer, named, parsed, text, texts } from "../../src/runtime/config-keys.ts";
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

/** What the attestor may see of the program's environment. */
function environment(env: CloudSpot["env"], names: RegExp): CloudSpot["env"] {
  return Object.fromEntries(Object.entries(env).filter(([name]) => names.test(name)));
}
