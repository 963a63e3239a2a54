import { parseCertificate } from "../../src/crypto/certificate.ts";
import type { AgentPathTemplate } from "../../src/evidence/agent-path.ts";
import {
  AWS_IID,
  type InstanceIdentity,
  type RegionCertificate,
  readEvidence,
  verifyIdentity,
} from "../../src/evidence/aws-iid.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { HttpCaller } from "../../src/runtime/http-call.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Reloaded } from "../../src/runtime/reloaded.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { AwsApi, type AwsPlace } from "./aws/client.ts";
import { type AwsAccess, AwsCredentialStore, type AwsCredentials } from "./aws/credentials.ts";
import { checkRootDevice, describeInstance, type Instance, rolesOf } from "./aws/instance.ts";
import { accountsInFile, accountsOf, Members, nodesOf } from "./aws/membership.ts";
import { REGION_CERTIFICATES } from "./aws/region-certificates.ts";
import { caBundles } from "./ca-bundle.ts";

export interface AwsIidConfig {
  readonly access: AwsAccess;
  /** Name of the role that the server takes on in the account of each node. */
  readonly assumeRole: string;
  readonly partition: string;
  readonly skipBlockDevice: boolean;
  readonly disableInstanceProfileSelectors: boolean;
  /** Accounts whose instances' root devices are not looked at. */
  readonly locallyValidatedAccounts: readonly string[];
  readonly agentPath: AgentPathTemplate;
  readonly organization?: AwsOrganization;
  readonly eksClusterNames: readonly string[];
  /** PEM files by region. */
  readonly regions: ReadonlyMap<string, string>;
}

/** Whose accounts the nodes have to be of. */
export type AwsOrganization = { readonly periodMs: number } & (
  | { readonly accountListFile: string }
  | { readonly managementAccount: string; readonly role: string; readonly region: string }
);

export interface AwsIidOptions extends AwsIidConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly log: Log;
}

const TIMEOUT_MS = 20_000;
const EKS_PERIOD_MS = 30_000;

/** The instance shows the document that AWS has signed for it; AWS's APIs say what else there is to know of it. */
export class AwsIidAttestor implements NodeAttestor {
  readonly type = AWS_IID;
  readonly ownPath = true;
  readonly #options: AwsIidOptions;
  readonly #api: AwsApi;
  readonly #credentials: AwsCredentialStore;
  readonly #regions: ReadonlyMap<string, Reloaded<readonly RegionCertificate["certificate"][]>>;
  readonly #accounts: Members;
  readonly #nodes = new Map<string, Members>();

  private constructor(options: AwsIidOptions) {
    const { access, clock, log, regions, organization } = options;
    const http = new HttpCaller({ clock, code: "aws-api", env: access.env, timeoutMs: TIMEOUT_MS });
    const local = new HttpCaller({ clock, code: "ec2-metadata" });
    this.#options = options;
    this.#api = new AwsApi(http, clock, access.env);
    this.#credentials = new AwsCredentialStore({ ...access, api: this.#api, local, clock });
    this.#regions = new Map([...regions].map(([region, path]) => [region, caBundles([path], log)]));
    this.#accounts = new Members(organization?.periodMs ?? 0, clock);
  }

  /** Throws `invalid` when a file that it judges by cannot be read. */
  static async open(options: AwsIidOptions): Promise<AwsIidAttestor> {
    const attestor = new AwsIidAttestor(options);
    const { organization } = options;
    if (organization !== undefined && "accountListFile" in organization) {
      const accounts = await accountsInFile(organization.accountListFile);
      if (accounts.size === 0) options.log.warn("The account list is empty: every account fails validation");
    }
    await attestor.#certificates();
    return attestor;
  }

  async attest(payload: Uint8Array, _challenge: Challenge, { signal }: AttestationContext): Promise<NodeClaim> {
    const identity = verifyIdentity(readEvidence(payload), await this.#certificates());
    if (this.#options.organization !== undefined)
      await this.#checkOrganization(this.#options.organization, identity, signal);
    const { place, owner } = await this.#placeOf(identity, signal);
    if (this.#options.eksClusterNames.length > 0) await this.#checkCluster(identity, place, owner);
    const instance = await told("failed to describe instance", () => describeInstance(this.#api, place, identity));
    const { skipBlockDevice, locallyValidatedAccounts, trustDomain, agentPath } = this.#options;
    if (!skipBlockDevice && !locallyValidatedAccounts.includes(identity.accountId)) checkRootDevice(instance);
    const { instanceId: InstanceID, accountId: AccountID, region: Region } = identity;
    const fields = { PluginName: AWS_IID, InstanceID, AccountID, Region, TrustDomain: "", Tags: instance.tags };
    return {
      id: agentPath.render(trustDomain, { fields }),
      selectors: (await this.#selectors(identity, instance, place)).map((value) => ({ type: AWS_IID, value })),
      canReattest: false,
      once: true,
    };
  }

  async #certificates(): Promise<readonly RegionCertificate[]> {
    const own = await Promise.all(
      [...this.#regions].map(async ([region, file]) =>
        (await file.value()).map((certificate) => ({ region, certificate })),
      ),
    );
    return [...own.flat(), ...published().filter(({ region }) => !this.#regions.has(region))];
  }

  /** Who the server is where the instance is. */
  async #placeOf(identity: InstanceIdentity, signal: AbortSignal): Promise<{ place: AwsPlace; owner: string }> {
    const { assumeRole, partition } = this.#options;
    const { accountId, region } = identity;
    const arn = `arn:${partition}:iam::${accountId}:role/${assumeRole}`;
    const take = (): Promise<AwsCredentials> =>
      assumeRole === "" ? this.#credentials.own(region) : this.#credentials.role(arn, region);
    const keys = await told("failed to get client", take);
    return { place: { region, keys, signal }, owner: assumeRole === "" ? "own" : arn };
  }

  async #checkOrganization(organization: AwsOrganization, { accountId }: InstanceIdentity, signal: AbortSignal) {
    const read = async (): Promise<ReadonlySet<string>> => {
      if ("accountListFile" in organization) return accountsInFile(organization.accountListFile);
      const { managementAccount, role, region } = organization;
      const arn = `arn:${this.#options.partition}:iam::${managementAccount}:role/${role}`;
      return accountsOf(this.#api, { region, keys: await this.#credentials.role(arn, region), signal });
    };
    const what = `failed aws ec2 attestation, issue while verifying if nodes account id: ${accountId} belong to org`;
    if (await told(what, () => this.#accounts.has(accountId, read))) return;
    throw refused(
      `failed aws ec2 attestation, nodes account id: ${accountId} is not part of configured organization or doesn't have ACTIVE status`,
    );
  }

  async #checkCluster({ instanceId }: InstanceIdentity, place: AwsPlace, owner: string): Promise<void> {
    const key = `${owner}@${place.region}`;
    const nodes = this.#nodes.get(key) ?? new Members(EKS_PERIOD_MS, this.#options.clock);
    this.#nodes.set(key, nodes);
    const read = (): Promise<ReadonlySet<string>> => nodesOf(this.#api, place, this.#options.eksClusterNames);
    const what = `failed aws eks attestation, issue while verifying if nodes id: ${instanceId} belong to cluster`;
    if (await told(what, () => nodes.has(instanceId, read))) return;
    throw refused(`failed aws eks attestation, nodes id: ${instanceId} is not part of configured EKS cluster`);
  }

  async #selectors(identity: InstanceIdentity, instance: Instance, place: AwsPlace): Promise<readonly string[]> {
    const { accountId, imageId, instanceId, region, availabilityZone } = identity;
    const { tags, securityGroups, profileArn } = instance;
    const roles =
      this.#options.disableInstanceProfileSelectors || profileArn === undefined
        ? []
        : await told("failed to get instance profile", () => rolesOf(this.#api, place, { profileArn, accountId }));
    return [
      ...[`account_id:${accountId}`, `image:id:${imageId}`, `instance:id:${instanceId}`],
      ...[`region:${region}`, `az:${availabilityZone}`],
      ...Object.entries(tags).map(([key, value]) => `tag:${key}:${value}`),
      ...securityGroups.flatMap(({ id, name }) => [`sg:id:${id}`, `sg:name:${name}`]),
      ...roles.map((arn) => `iamrole:${arn}`),
    ];
  }
}

let parsed: readonly RegionCertificate[] | undefined;

/** Parsed where the attestor is used, and once. */
function published(): readonly RegionCertificate[] {
  parsed ??= REGION_CERTIFICATES.map(([region, base64]) => ({
    region,
    certificate: parseCertificate(Buffer.from(base64, "base64")),
  }));
  return parsed;
}

async function told<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { kind, message, code, hint } = Fault.from(error);
    if (kind !== "unavailable") throw error;
    throw new Fault(kind, `${what}: ${message}`, { code, cause: error, ...(hint === undefined ? {} : { hint }) });
  }
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "aws-iid-refused" });
}
