import type { InstanceIdentity } from "../../../src/evidence/aws-iid.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { type AwsApi, type AwsPlace, partitionOf } from "./client.ts";
import { all, textAt, type XmlElement } from "./xml.ts";

/** An instance as EC2 describes it. */
export interface Instance {
  readonly tags: Readonly<Record<string, string>>;
  readonly securityGroups: readonly { readonly id: string; readonly name: string }[];
  readonly profileArn: string | undefined;
  readonly rootDeviceType: string;
  readonly rootDeviceName: string;
  readonly devices: readonly { readonly name: string; readonly attached: Date | undefined }[];
  readonly interfaces: readonly { readonly index: string; readonly attached: Date | undefined }[];
}

const MOST_APART_SECONDS = 60;

/** The instance, pending or running, of the account and ID of the document. Throws `denied`, `unavailable`. */
export async function describeInstance(
  api: AwsApi,
  place: AwsPlace,
  { instanceId, accountId }: InstanceIdentity,
): Promise<Instance> {
  const answer = await api.query("ec2", place, {
    ...{ Action: "DescribeInstances", "InstanceId.1": instanceId, "Filter.1.Name": "instance-state-name" },
    ...{ "Filter.1.Value.1": "pending", "Filter.1.Value.2": "running" },
  });
  const reservations = all(answer, "reservationSet", "item");
  if (reservations.length === 0) throw refused("failed to query AWS via describe-instances: returned no reservations");
  const instances = reservations.flatMap((reservation) => all(reservation, "instancesSet", "item"));
  const [instance, ...others] = instances;
  if (instance === undefined) throw refused("failed to query AWS via describe-instances: returned no instances");
  const isOther = others.length > 0 || textAt(instance, "instanceId") !== instanceId;
  if (isOther || reservations.some((reservation) => textAt(reservation, "ownerId") !== accountId))
    throw refused("failed to query AWS via describe-instances: returned another instance");
  return read(instance);
}

function read(instance: XmlElement): Instance {
  return {
    tags: Object.fromEntries(
      all(instance, "tagSet", "item").map((tag) => [textAt(tag, "key") ?? "", textAt(tag, "value") ?? ""]),
    ),
    securityGroups: all(instance, "groupSet", "item").map((group) => ({
      id: textAt(group, "groupId") ?? "",
      name: textAt(group, "groupName") ?? "",
    })),
    profileArn: textAt(instance, "iamInstanceProfile", "arn"),
    rootDeviceType: textAt(instance, "rootDeviceType") ?? "",
    rootDeviceName: textAt(instance, "rootDeviceName") ?? "",
    devices: all(instance, "blockDeviceMapping", "item").map((device) => ({
      name: textAt(device, "deviceName") ?? "",
      attached: timeOf(textAt(device, "ebs", "attachTime")),
    })),
    interfaces: all(instance, "networkInterfaceSet", "item").map((each) => ({
      index: textAt(each, "attachment", "deviceIndex") ?? "",
      attached: timeOf(textAt(each, "attachment", "attachTime")),
    })),
  };
}

function timeOf(text: string | undefined): Date | undefined {
  const time = new Date(text ?? "");
  return Number.isNaN(time.getTime()) ? undefined : time;
}

/**
 * A root volume that came to the instance long after its first network interface may be another's, with an agent or a
 * document of somebody else on it. Throws `denied`.
 */
export function checkRootDevice({ interfaces, devices, rootDeviceType, rootDeviceName }: Instance): void {
  const first = interfaces.find(({ index }) => index === "0")?.attached;
  if (first === undefined) throw tampered("the EC2 instance network interface with device index 0 is inaccessible");
  if (rootDeviceType === "instance-store") return;
  const root = devices.find(({ name }) => name === rootDeviceName)?.attached;
  if (rootDeviceName === "" || root === undefined)
    throw tampered(`failed to locate the root device block mapping with name ${JSON.stringify(rootDeviceName)}`);
  const seconds = Math.floor(Math.abs(Math.floor(first.getTime() / 1000) - Math.floor(root.getTime() / 1000)));
  if (seconds > MOST_APART_SECONDS)
    throw tampered(
      `failed checking the disparity device attach times, root BlockDeviceMapping and NetworkInterface[0] attach times differ by ${seconds} seconds`,
    );
}

/**
 * ARNs of the roles of an instance profile. IAM looks profiles up by name, so that another account's of the same name
 * may be found; only the one of the whole ARN counts, and only roles of its account (T-N7).
 */
export async function rolesOf(
  api: AwsApi,
  place: AwsPlace,
  { profileArn, accountId }: { readonly profileArn: string; readonly accountId: string },
): Promise<readonly string[]> {
  const own = `arn:${partitionOf(place.region)}:iam::${accountId}:`;
  const name = /^instance-profile\/(?:[\x21-\x7e]*\/)?([\w+=,.@-]{1,128})$/.exec(profileArn.slice(own.length))?.[1];
  if (!profileArn.startsWith(own) || name === undefined)
    throw refused("arn is not for an instance profile of the account");
  const answer = await api.query("iam", place, { Action: "GetInstanceProfile", InstanceProfileName: name });
  const profile = all(answer, "GetInstanceProfileResult", "InstanceProfile")[0];
  if (textAt(profile, "Arn") !== profileArn)
    throw refused("failed to get instance profile: IAM knows another of its name");
  const arns = all(profile, "Roles", "member").map((role) => textAt(role, "Arn") ?? "");
  if (arns.some((arn) => !arn.startsWith(`${own}role/`)))
    throw new Fault("unavailable", "failed to get instance profile: a role is not of its account", { code: "aws-api" });
  return arns;
}

function tampered(reason: string): Fault {
  return refused(`failed aws ec2 attestation: ${reason}`);
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "aws-iid-refused" });
}
