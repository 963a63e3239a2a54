import type { Api } from "../../src/cli/api-command.ts";
import { PushApi } from "../../src/rpc/protos.ts";
import type { FlagSpecs, FlagValues } from "../../src/runtime/flags.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { plural } from "./print.ts";

export const waitFlags = {
  wait: { type: "bool", doc: "Returns when the agents that may hold the entries have the change" },
  waitTimeout: { type: "duration", doc: "How long -wait waits at most", default: "30s" },
} as const satisfies FlagSpecs;

/** With `-wait`. Throws when an agent takes too long: the change is made all the same. */
export async function awaitAgents(
  api: Api,
  flags: FlagValues<typeof waitFlags>,
  { io, ids }: { readonly io: Io; readonly ids: readonly string[] },
): Promise<void> {
  if (!flags.wait || ids.length === 0) return;
  const { agents } = await api.ask(
    api.client(PushApi).AwaitEntries({ ids: [...ids] }, { deadlineMs: flags.waitTimeout }),
    "the change is made, but not every agent has it yet",
  );
  io.stderr.write(`${plural(agents, "agent has", "agents have")} the change\n`);
}
