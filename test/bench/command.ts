import { writeFile } from "node:fs/promises";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { useInstalled } from "../support/programs.ts";
import { openServerClient } from "../support/server.ts";
import { helpText, listText, type Plan, parsePlan } from "./arguments.ts";
import { compared, type Result, resultOf } from "./figures.ts";
import { measuredLimits } from "./limits.ts";
import { loadAverage, thisMachine } from "./machine.ts";
import { type Outcome, quantity, type Run, renderMachine, renderOutcome } from "./render.ts";
import type { Bench, Report } from "./scenario.ts";
import { scenarios } from "./scenarios.ts";
import { agentIds, type Peer, programBehind, subjectsOf } from "./servers.ts";

/** The whole tool. The exit status is 1 when a scenario ended early. Throws `invalid` for what it cannot read. */
export async function bench(
  args: readonly string[],
  { io, signal }: { readonly io: Io; readonly signal: AbortSignal },
): Promise<number> {
  const plan = parsePlan(args, scenarios);
  if (plan.show !== undefined) {
    io.stdout.write(plan.show === "help" ? helpText(scenarios) : listText(scenarios));
    return 0;
  }
  useInstalled();
  const text = (lines: string): unknown => (plan.output === "json" ? io.stderr : io.stdout).write(lines);
  const machine = thisMachine();
  const startedAt = new Date().toISOString();
  text(`${renderMachine(machine)}Load ${loadAverage()} at ${startedAt}\n\n`);
  const peer = await peerOf(plan);
  const surroundings = { stores: plan.stores, peer, limits: measuredLimits(), signal };
  const isWatched = io.stderr.isTTY === true;
  const done: Outcome[] = [];
  for (const one of plan.runs) {
    if (signal.aborted) break;
    const outcome = await runScenario(one, surroundings, (line) => isWatched && io.stderr.write(line));
    done.push(outcome);
    text(`${renderOutcome(outcome, peer?.name)}\n`);
  }
  const beside = peer === undefined ? {} : { peer: peer.name };
  const run: Run = { format: "steeple-bench/1", startedAt, machine, ...beside, scenarios: done };
  const json = `${JSON.stringify(run, undefined, 2)}\n`;
  if (plan.output === "json") io.stdout.write(json);
  if (plan.json !== undefined) await writeFile(plan.json, json);
  return done.some(({ error }) => error !== undefined) ? 1 : 0;
}

interface Surroundings extends Pick<Bench<unknown>, "limits" | "signal"> {
  readonly stores: Plan["stores"];
  readonly peer: Peer | undefined;
}

async function peerOf({ server, agentSocket, agentId, peer }: Plan): Promise<Peer | undefined> {
  if (server === undefined) return undefined;
  const name = peer ?? (await programBehind(server.socketPath));
  if (agentSocket === undefined) return { ...server, name, agent: undefined };
  return { ...server, name, agent: { socketPath: agentSocket, id: agentId ?? (await onlyAgent(server)) } };
}

async function onlyAgent(server: NonNullable<Plan["server"]>): Promise<string> {
  using client = await openServerClient(server);
  const [id, ...others] = await agentIds(client);
  if (id !== undefined && others.length === 0) return id;
  const hint = "say with -agentId which of them is behind -agentSocket";
  throw new Fault("invalid", `the server knows ${id === undefined ? 0 : others.length + 1} agents`, { hint });
}

async function runScenario(
  { name, scenario, parameters }: Plan["runs"][number],
  { stores, peer, ...rest }: Surroundings,
  progress: (line: string) => unknown,
): Promise<Outcome> {
  const results: Result[] = [];
  const notes: string[] = [];
  const of = (subject: string): Report => ({
    figure: (figure) => {
      const result = resultOf(figure, subject);
      results.push(result);
      progress(`${name}: ${subject} ${result.name}: ${quantity(result.value, result.unit)}\n`);
    },
    note: (text) => void notes.push(subject === "" ? text : `${subject}: ${text}`),
  });
  const [before, started] = [loadAverage(), performance.now()];
  let error: string | undefined;
  try {
    await scenario.run({ ...rest, ...of(""), of, stores, parameters, ...subjectsOf({ stores, peer, of }) });
  } catch (thrown) {
    error = messageOf(thrown);
  }
  return {
    ...{ scenario: name, summary: scenario.summary, parameters, notes },
    results: compared(results, peer?.name),
    ...(error === undefined ? {} : { error }),
    seconds: (performance.now() - started) / 1000,
    load: [before, loadAverage()],
  };
}
