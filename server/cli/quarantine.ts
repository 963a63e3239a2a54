import type { Api } from "../../src/cli/api-command.ts";
import type { Answer } from "../../src/cli/output.ts";
import type { Agent__Output } from "../../src/rpc/gen/spire/api/types/Agent.ts";
import type { QuarantinedAgent__Output } from "../../src/rpc/gen/steeple/api/server/quarantine/v1/QuarantinedAgent.ts";
import { QuarantineApi } from "../../src/rpc/protos.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { agentFlags, agentIdFrom, describeAgent } from "./agent-input.ts";
import { serverCommand } from "./connection.ts";
import { idText, type ShownAgent } from "./print.ts";

const PAGE_SIZE = 1000;

/** By SPIFFE ID. Empty for a server that has no quarantine. */
async function quarantinedAgents(api: Api): Promise<ReadonlyMap<string, QuarantinedAgent__Output>> {
  const found = new Map<string, QuarantinedAgent__Output>();
  let page_token = "";
  do {
    const page = { page_size: PAGE_SIZE, page_token };
    const answer = await api.client(QuarantineApi).ListQuarantinedAgents(page).catch(unlessUnknown);
    for (const agent of answer.agents) found.set(idText(agent.id), agent);
    page_token = answer.next_page_token;
  } while (page_token !== "");
  return found;
}

function unlessUnknown(error: unknown): { readonly agents: readonly never[]; readonly next_page_token: "" } {
  if (isFault(error, "unimplemented")) return { agents: [], next_page_token: "" };
  throw error;
}

/** Adds to each agent the quarantine that it is in; with `only`, those alone that are in one, or in none. */
export async function withQuarantine(
  api: Api,
  agents: readonly Agent__Output[],
  only?: boolean,
): Promise<readonly ShownAgent[]> {
  const found = await api.ask(quarantinedAgents(api));
  const shown = agents.map((agent): ShownAgent => {
    const quarantine = found.get(idText(agent.id));
    return quarantine === undefined
      ? agent
      : { ...agent, quarantine: { since: quarantine.since, reason: quarantine.reason } };
  });
  return only === undefined ? shown : shown.filter(({ quarantine }) => (quarantine !== undefined) === only);
}

export const quarantine = serverCommand({
  summary: "Quarantines an attested agent given its SPIFFE ID: it is given nothing until it is released",
  flags: {
    ...agentFlags,
    reason: { type: "string", doc: "Why, for whoever finds it in quarantine", default: "" },
  },
  examples: ['agent quarantine -spiffeID spiffe://example.org/spire/agent/join_token/… -reason "under investigation"'],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    const id = agentIdFrom(flags);
    await api.confirm(() =>
      describeAgent(api, "quarantine", id, "so that its workloads have no identity until it is released"),
    );
    const message = await api.ask(api.client(QuarantineApi).QuarantineAgent({ id, reason: flags.reason }));
    return { message, pretty: ({ stdout }) => void stdout.write("Agent quarantined successfully\n") };
  },
});

export const release = serverCommand({
  summary: "Releases an agent from quarantine given its SPIFFE ID",
  flags: {
    ...agentFlags,
    serialNumber: {
      type: "string",
      doc: "Of the agent's SVIDs, the serial number of the one that goes on; the others are refused from then on",
      default: "",
    },
  },
  examples: ["agent release -spiffeID spiffe://example.org/spire/agent/join_token/…"],
  async run({ flags, api }): Promise<Answer> {
    const id = agentIdFrom(flags);
    const { serialNumber } = flags;
    if (!/^\d*$/.test(serialNumber)) {
      throw new Fault("invalid", `serial number ${JSON.stringify(serialNumber)} is not decimal`, {
        code: "agent-serial-unknown",
        hint: "agent show prints serial numbers as they are expected here",
      });
    }
    const request = { id, x509svid_serial_number: serialNumber };
    const message = await api.ask(api.client(QuarantineApi).ReleaseAgent(request));
    return { message, pretty: ({ stdout }) => void stdout.write("Agent released successfully\n") };
  },
});
