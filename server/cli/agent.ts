import type { Api } from "../../src/cli/api-command.ts";
import type { Answer } from "../../src/cli/output.ts";
import type { ListAgentsRequest } from "../../src/rpc/gen/spire/api/server/agent/v1/ListAgentsRequest.ts";
import type { Agent__Output } from "../../src/rpc/gen/spire/api/types/Agent.ts";
import { AgentApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { type Clock, systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { type FlagSpecs, type FlagValues, outputFlag } from "../../src/runtime/flags.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";
import { agentFlags, agentIdFrom, describeAgent } from "./agent-input.ts";
import { serverCommand } from "./connection.ts";
import { inContext, matchFrom, matchSelectorsFlag, selectorFrom } from "./match.ts";
import { agentTable, idText, plural, printAgent } from "./print.ts";
import { quarantine, release, withQuarantine } from "./quarantine.ts";

const PAGE_SIZE = 1000;
const EXPIRES_BEFORE = /^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} [+-]\d{4} [+-]\d{2}$/;

const TRUE_OR_FALSE = ["true", "false"] as const;

const filterFlags = {
  selector: { type: "strings", doc: "A colon-delimited type:value selector. Can be used more than once" },
  matchSelectorsOn: matchSelectorsFlag,
  attestationType: { type: "string", doc: "Filter by attestation type, like join_token or x509pop.", default: "" },
  banned: {
    type: "string",
    doc: "'true': banned agents, 'false': agents that are not banned, anything else: all",
    default: "",
    complete: TRUE_OR_FALSE,
  },
  canReattest: {
    type: "string",
    doc: "'true': agents that can re-attest, 'false': those that cannot, anything else: all",
    default: "",
    complete: TRUE_OR_FALSE,
  },
  quarantined: {
    type: "string",
    doc: "'true': quarantined agents, 'false': agents that are not quarantined, anything else: all",
    default: "",
    complete: TRUE_OR_FALSE,
  },
  expiresBefore: {
    type: "string",
    doc: 'Filter by expiration time (format: "2006-01-02 15:04:05 -0700 -07")',
    default: "",
  },
} as const satisfies FlagSpecs;

/** Undefined for any other word, as SPIRE has it. */
function choice(word: string): { value: boolean } | undefined {
  return /^(true|false)$/.test(word) ? { value: word === "true" } : undefined;
}

type Filter = NonNullable<ListAgentsRequest["filter"]>;

function filterFrom(flags: FlagValues<typeof filterFlags>): Filter {
  if (flags.expiresBefore !== "" && !EXPIRES_BEFORE.test(flags.expiresBefore)) {
    throw new Fault("invalid", `date is not valid: ${JSON.stringify(flags.expiresBefore)}`, {
      code: "expires-before",
      hint: 'write it like "2027-01-31 12:00:00 +0000 +00"',
    });
  }
  const banned = choice(flags.banned);
  const canReattest = choice(flags.canReattest);
  return {
    ...(flags.selector.length === 0
      ? {}
      : {
          by_selector_match: {
            match: matchFrom(flags.matchSelectorsOn, "unsupported match behavior"),
            selectors: flags.selector.map((text) =>
              inContext(`error parsing selector ${JSON.stringify(text)}`, () => selectorFrom(text)),
            ),
          },
        }),
    ...(flags.attestationType === "" ? {} : { by_attestation_type: flags.attestationType }),
    ...(flags.expiresBefore === "" ? {} : { by_expires_before: flags.expiresBefore }),
    ...(banned === undefined ? {} : { by_banned: banned }),
    ...(canReattest === undefined ? {} : { by_can_reattest: canReattest }),
  };
}

async function listAgents(api: Api, request: ListAgentsRequest, context?: string): Promise<Agent__Output[]> {
  const agents: Agent__Output[] = [];
  let token = "";
  do {
    const page = { ...request, page_size: PAGE_SIZE, page_token: token };
    const answer = await api.ask(api.client(AgentApi).ListAgents(page), context);
    agents.push(...answer.agents);
    token = answer.next_page_token;
  } while (token !== "");
  return agents;
}

const list = serverCommand({
  summary: "Lists attested agents and their SPIFFE IDs",
  flags: { ...filterFlags, output: outputFlag },
  examples: ["agent list", "agent list -attestationType join_token -banned false", "agent list --output table --watch"],
  watchable: true,
  async run({ flags, api }): Promise<Answer> {
    const listed = await listAgents(api, { filter: filterFrom(flags) });
    const agents = await withQuarantine(api, listed, choice(flags.quarantined)?.value);
    return {
      message: { agents, next_page_token: "" },
      pretty({ stdout }) {
        if (agents.length === 0) return void stdout.write("No attested agents found\n");
        stdout.write(`Found ${plural(agents.length, "attested agent", "attested agents")}:\n\n`);
        for (const agent of agents) printAgent(stdout, agent);
      },
      table: agentTable(agents, systemClock),
    };
  },
});

/** Of quarantine, SPIRE's filters know nothing: those agents are looked at one by one. */
async function countAgents(api: Api, filter: Filter, quarantined?: boolean): Promise<{ readonly count: number }> {
  if (quarantined === undefined) return await api.ask(api.client(AgentApi).CountAgents({ filter }));
  const agents = await listAgents(api, { filter, output_mask: { banned: true } });
  return { count: (await withQuarantine(api, agents, quarantined)).length };
}

const count = serverCommand({
  summary: "Count attested agents",
  flags: { ...filterFlags, output: outputFlag },
  examples: ["agent count", "agent count -banned true"],
  async run({ flags, api }): Promise<Answer> {
    const message = await countAgents(api, filterFrom(flags), choice(flags.quarantined)?.value);
    return {
      message,
      pretty: ({ stdout }) => void stdout.write(`${plural(message.count, "attested agent", "attested agents")}\n`),
    };
  },
});

const show = serverCommand({
  summary: "Shows the details of an attested agent given its SPIFFE ID",
  flags: agentFlags,
  examples: ["agent show -spiffeID spiffe://example.org/spire/agent/join_token/…"],
  async run({ flags, api }): Promise<Answer> {
    const found = await api.ask(api.client(AgentApi).GetAgent({ id: agentIdFrom(flags) }));
    const [agent = found] = await withQuarantine(api, [found]);
    return {
      message: agent,
      pretty({ stdout }) {
        stdout.write("Found an attested agent given its SPIFFE ID\n\n");
        printAgent(stdout, agent);
        for (const { type, value } of agent.selectors) stdout.write(`Selectors         : ${type}:${value}\n`);
      },
      table: agentTable([agent], systemClock),
    };
  },
});

const ban = serverCommand({
  summary: "Ban an attested agent given its SPIFFE ID",
  flags: agentFlags,
  examples: ["agent ban -spiffeID spiffe://example.org/spire/agent/join_token/…"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    const id = agentIdFrom(flags);
    await api.confirm(() => describeAgent(api, "ban", id, "for good: it can attest again only after it was evicted"));
    const message = await api.ask(api.client(AgentApi).BanAgent({ id }));
    return { message, pretty: ({ stdout }) => void stdout.write("Agent banned successfully\n") };
  },
});

const evict = serverCommand({
  summary: "Evicts an attested agent given its SPIFFE ID",
  flags: agentFlags,
  examples: ["agent evict -spiffeID spiffe://example.org/spire/agent/join_token/…"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    const id = agentIdFrom(flags);
    await api.confirm(() => describeAgent(api, "evict", id, "so that it has to attest again"));
    const message = await api.ask(api.client(AgentApi).DeleteAgent({ id }));
    return { message, pretty: ({ stdout }) => void stdout.write("Agent evicted successfully\n") };
  },
});

interface Purged {
  readonly agent_id: string;
  readonly deleted: boolean;
  readonly error?: string;
}

const purge = serverCommand({
  summary: "Purge expired agents that were attested using a non-TOFU security model based on a given time",
  flags: {
    expiredFor: { type: "duration", doc: "How long ago an agent's SVID must have expired", default: "720h0m0s" },
    dryRun: { type: "bool", doc: "Print the agents that would be purged, and do nothing" },
    output: outputFlag,
  },
  examples: ["agent purge -dryRun", "agent purge -expiredFor 48h"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    const request = { filter: { by_can_reattest: { value: true } }, output_mask: { x509svid_expires_at: true } };
    const agents = await listAgents(api, request, "failed to list agents");
    const free = await withQuarantine(api, agents, false);
    const expired = free.filter((agent) => isExpired(agent, flags.expiredFor, systemClock));
    if (expired.length > 0 && !flags.dryRun) {
      await api.confirm(() => `purge ${plural(expired.length, "expired agent", "expired agents")}:\n${lines(expired)}`);
    }
    const purged: Purged[] = [];
    for (const agent of expired)
      purged.push(flags.dryRun ? { agent_id: idText(agent.id), deleted: false } : await remove(api, agent));
    return {
      message: { expired_agents: purged },
      ordered: true,
      pretty: ({ stdout }) => printPurged(stdout, purged, flags.dryRun),
      table: {
        columns: [{ title: "SPIFFE ID" }, { title: "DELETED" }, { title: "ERROR" }],
        rows: purged.map(({ agent_id, deleted, error }) => [agent_id, deleted, error]),
      },
    };
  },
});

function lines(agents: readonly Agent__Output[]): string {
  return agents.map(({ id }) => `  ${idText(id)}`).join("\n");
}

function isExpired(agent: Agent__Output, forMs: number, clock: Clock): boolean {
  return clock.now().getTime() - Number(agent.x509svid_expires_at) * 1000 > forMs;
}

async function remove(api: Api, agent: Agent__Output): Promise<Purged> {
  try {
    await api.ask(api.client(AgentApi).DeleteAgent({ id: agent.id }));
    return { agent_id: idText(agent.id), deleted: true };
  } catch (error) {
    return { agent_id: idText(agent.id), deleted: false, error: Fault.from(error).message };
  }
}

function printPurged(out: TextOutput, agents: readonly Purged[], dryRun: boolean): void {
  if (agents.length === 0) return void out.write("No agents to purge.\n");
  out.write(`Found ${plural(agents.length, "expired agent", "expired agents")}\n\n`);
  const idLine = ({ agent_id }: Purged): string => `SPIFFE ID         : ${agent_id}\n`;
  if (dryRun) return void out.write(`\nAgents that can be purged:\n${agents.map(idLine).join("")}`);
  const done = agents.filter(({ deleted }) => deleted);
  const left = agents.filter(({ deleted }) => !deleted);
  if (done.length > 0) out.write(`Agents purged:\n${done.map(idLine).join("")}`);
  if (left.length > 0) {
    out.write(
      `Agents not purged:\n${left.map((agent) => `${idLine(agent)}Error             : ${agent.error}\n`).join("")}`,
    );
  }
}

export const agentCommands = group("Lists, shows, quarantines, bans and evicts attested agents", {
  ban,
  count,
  evict,
  list,
  purge,
  quarantine,
  release,
  show,
});
