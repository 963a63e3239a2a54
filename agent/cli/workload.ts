import { type ApiCommandSpec, apiCommand, type Endpoint } from "../../src/cli/api-command.ts";
import type { Command, CommandNode } from "../../src/runtime/cli.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { FlagSpecs } from "../../src/runtime/flags.ts";
import { socketFlags, socketPathFrom } from "./connection.ts";

export const timeoutFlag = {
  timeout: { type: "duration", doc: "Time to wait for a response", default: "5s" },
} as const satisfies FlagSpecs;

const agentEndpoint: Endpoint<typeof socketFlags> = {
  flags: socketFlags,
  name: "the agent",
  socketPath: ({ socketPath, instance }, env) =>
    socketPathFrom({ socketPath: String(socketPath), instance: String(instance) }, env),
};

/** A command that asks the Workload API, as a workload does. */
export function workloadCommand<const F extends FlagSpecs>(
  spec: ApiCommandSpec<F>,
): CommandNode & { readonly command: Command } {
  return apiCommand(agentEndpoint, spec);
}

/** Options of one call. */
export function callOptions({ timeout: deadlineMs }: { readonly timeout: number }, signal: AbortSignal) {
  return { signal, deadlineMs, metadata: { "workload.spiffe.io": "true" } } as const;
}

/** Rejects as the stream does; someone without an identity is told how to get one. */
export async function firstOf<T>(answers: AsyncIterable<T>): Promise<T> {
  try {
    for await (const answer of answers) return answer;
  } catch (error) {
    if (!isFault(error, "denied") || error.hint !== undefined) throw error;
    const { message, code } = error;
    const hint = "create an entry whose selectors this process has, under an agent that attested";
    throw new Fault("denied", message, { code, hint, cause: error });
  }
  throw new Fault("unavailable", "the agent ended the stream without an answer", { code: "no-answer" });
}
