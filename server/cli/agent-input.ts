import type { Api } from "../../src/cli/api-command.ts";
import { AgentApi, EntryApi } from "../../src/rpc/protos.ts";
import { type FlagSpecs, type FlagValues, outputFlag } from "../../src/runtime/flags.ts";
import { usage } from "./input.ts";
import { idFrom } from "./match.ts";
import { idText, plural } from "./print.ts";

/** Of commands about one agent. */
export const agentFlags = {
  spiffeID: { type: "string", doc: "The SPIFFE ID of the agent (agent identity)", default: "", complete: "agent" },
  output: outputFlag,
} as const satisfies FlagSpecs;

/** Throws `invalid`. */
export function agentIdFrom(flags: FlagValues<typeof agentFlags>): { trust_domain: string; path: string } {
  if (flags.spiffeID === "") throw usage("a SPIFFE ID is required", "add -spiffeID; agent list shows them");
  return idFrom(flags.spiffeID);
}

/** What a confirmation says of the agent. */
export async function describeAgent(
  api: Api,
  verb: string,
  id: { readonly trust_domain: string; readonly path: string },
  consequence: string,
): Promise<string> {
  const agent = await api.ask(api.client(AgentApi).GetAgent({ id }));
  const { count } = await api.ask(api.client(EntryApi).CountEntries({ filter: { by_parent_id: id } }));
  const entries = `${plural(count, "entry has", "entries have")} it as parent`;
  return `${verb} ${idText(agent.id)} (attested by ${agent.attestation_type}; ${entries}) ${consequence}`;
}
