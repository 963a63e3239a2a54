import { Fault } from "../runtime/fault.ts";

/** One of the clouds that Azure is: who gives its tokens, and where its resources are managed. */
export interface AzureCloud {
  readonly authority: string;
  readonly management: string;
}

const PUBLIC: AzureCloud = {
  authority: "https://login.microsoftonline.com",
  management: "https://management.azure.com",
};
const CLOUDS: readonly AzureCloud[] = [
  PUBLIC,
  { authority: "https://login.microsoftonline.us", management: "https://management.usgovcloudapi.net" },
  { authority: "https://login.chinacloudapi.cn", management: "https://management.chinacloudapi.cn" },
  { authority: "https://login.partner.microsoftonline.cn", management: "https://management.chinacloudapi.cn" },
];

/** That of `AZURE_AUTHORITY_HOST`. Throws `invalid` for one that is not Azure's. */
export function azureCloud(env: Readonly<Record<string, string | undefined>>): AzureCloud {
  const named = (env["AZURE_AUTHORITY_HOST"] || PUBLIC.authority).replace(/\/+$/, "");
  const authority = named.includes("://") ? named : `https://${named}`;
  const found = CLOUDS.find((cloud) => cloud.authority === authority);
  if (found !== undefined) return found;
  throw new Fault("invalid", `AZURE_AUTHORITY_HOST ${JSON.stringify(named)} is not a cloud of Azure`, {
    code: "config-invalid",
  });
}

/** The issuers of a tenant's tokens, versions 1 and 2. */
export function issuersOf({ authority }: AzureCloud, tenantId: string): readonly string[] {
  const older = authority.endsWith(".cn") ? "https://sts.chinacloudapi.cn" : "https://sts.windows.net";
  return [`${older}/${tenantId}/`, `${authority}/${tenantId}/v2.0`];
}
