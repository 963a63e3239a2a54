import { readFile } from "node:fs/promises";
import * as v from "valibot";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { AwsApi, AwsPlace } from "./client.ts";
import { all, textAt } from "./xml.ts";

/** Reads in one period beyond the one that is due: for members that are newer than the list. */
const EXTRA_READS = 5;
const MAX_PAGES = 1000;

/** A list of members that somebody else keeps, read again when it is too old, or does not name who is looked for. */
export class Members {
  readonly #periodMs: number;
  readonly #clock: Pick<Clock, "monotonic">;
  #list: ReadonlySet<string> = new Set();
  #until = Number.NEGATIVE_INFINITY;
  #extra = 0;
  #flight: Promise<void> | undefined;

  constructor(periodMs: number, clock: Pick<Clock, "monotonic">) {
    this.#periodMs = periodMs;
    this.#clock = clock;
  }

  /** Throws what `read` throws: a list that cannot be read has no members. */
  async has(member: string, read: () => Promise<ReadonlySet<string>>): Promise<boolean> {
    const isDue = this.#clock.monotonic() >= this.#until;
    if (isDue) this.#extra = EXTRA_READS;
    else if (this.#list.has(member)) return true;
    else if (this.#extra === 0) return false;
    else this.#extra -= 1;
    this.#flight ??= this.#refresh(read, isDue).finally(() => {
      this.#flight = undefined;
    });
    await this.#flight;
    return this.#list.has(member);
  }

  async #refresh(read: () => Promise<ReadonlySet<string>>, isDue: boolean): Promise<void> {
    try {
      this.#list = await read();
      if (isDue) this.#until = this.#clock.monotonic() + this.#periodMs;
    } catch (error) {
      this.#until = Number.NEGATIVE_INFINITY;
      throw error;
    }
  }
}

const AccountFile = v.array(v.pipe(v.string(), v.regex(/^\d{12}$/)));

/** Account IDs of a JSON file. Throws `invalid`. */
export async function accountsInFile(path: string): Promise<ReadonlySet<string>> {
  try {
    return new Set(v.parse(AccountFile, JSON.parse(await readFile(path, "utf8"))));
  } catch (error) {
    const isForm = error instanceof v.ValiError || error instanceof SyntaxError;
    const reason = isForm ? "expected a JSON array of 12-digit AWS account IDs" : messageOf(error);
    throw new Fault("invalid", `unable to read account list file ${JSON.stringify(path)}: ${reason}`, {
      code: "aws-account-list",
      hint: 'write it like ["111111111111", "222222222222"]',
    });
  }
}

const Accounts = v.object({
  Accounts: v.array(v.object({ Id: v.string(), Status: v.optional(v.string()) })),
  NextToken: v.nullish(v.string()),
});

/** The active accounts of the organization. */
export function accountsOf(api: AwsApi, place: AwsPlace): Promise<ReadonlySet<string>> {
  return pages(async (token) => {
    const body = JSON.stringify(token === undefined ? {} : { NextToken: token });
    const call = { method: "POST", path: "/", target: "AWSOrganizationsV20161128.ListAccounts", body } as const;
    const { Accounts: accounts, NextToken } = await api.json(Accounts, "organizations", place, call);
    const active = accounts.filter(({ Status }) => Status === "ACTIVE").map(({ Id }) => Id);
    return { items: active, next: NextToken };
  });
}

const Nodegroups = v.object({ nodegroups: v.array(v.string()), nextToken: v.nullish(v.string()) });
const Nodegroup = v.object({
  nodegroup: v.object({
    resources: v.nullish(
      v.object({ autoScalingGroups: v.nullish(v.array(v.object({ name: v.nullish(v.string()) }))) }),
    ),
  }),
});
const EKS_NAME = /^[0-9A-Za-z][0-9A-Za-z_-]{0,99}$/;

/** The instances in the node groups of EKS clusters. */
export async function nodesOf(api: AwsApi, place: AwsPlace, clusters: readonly string[]): Promise<ReadonlySet<string>> {
  const nodes = new Set<string>();
  for (const cluster of clusters) {
    const path = `/clusters/${part(cluster)}/node-groups`;
    const groups = await pages(async (token) => {
      const query = token === undefined ? "" : `?nextToken=${encodeURIComponent(token)}`;
      const call = { method: "GET", path: path + query } as const;
      const { nodegroups, nextToken } = await api.json(Nodegroups, "eks", place, call);
      return { items: nodegroups, next: nextToken };
    });
    for (const group of groups) {
      const { nodegroup } = await api.json(Nodegroup, "eks", place, { method: "GET", path: `${path}/${part(group)}` });
      for (const { name } of nodegroup.resources?.autoScalingGroups ?? [])
        for (const instance of name ? await instancesIn(api, place, name) : []) nodes.add(instance);
    }
  }
  return nodes;
}

function instancesIn(api: AwsApi, place: AwsPlace, group: string): Promise<ReadonlySet<string>> {
  return pages(async (token) => {
    const answer = await api.query("autoscaling", place, {
      ...{ Action: "DescribeAutoScalingGroups", "AutoScalingGroupNames.member.1": group },
      ...(token === undefined ? {} : { NextToken: token }),
    });
    const result = all(answer, "DescribeAutoScalingGroupsResult")[0];
    const instances = all(result, "AutoScalingGroups", "member", "Instances", "member");
    const items = instances.flatMap((instance) => textAt(instance, "InstanceId") ?? []);
    return { items, next: textAt(result, "NextToken") };
  });
}

async function pages(
  read: (
    token: string | undefined,
  ) => Promise<{ readonly items: readonly string[]; readonly next: string | null | undefined }>,
): Promise<ReadonlySet<string>> {
  const found = new Set<string>();
  let token: string | undefined;
  for (let page = 0; page < MAX_PAGES; page += 1) {
    const { items, next } = await read(token);
    for (const item of items) found.add(item);
    if (!next) return found;
    token = next;
  }
  throw new Fault("unavailable", "AWS's list does not end", { code: "aws-api" });
}

function part(name: string): string {
  if (EKS_NAME.test(name)) return name;
  throw new Fault("unavailable", "a name is not one of EKS", { code: "aws-api" });
}
