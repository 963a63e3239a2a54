import { Fault } from "../../src/runtime/fault.ts";
import { type FlagSpec, type FlagSpecs, parseFlags } from "../../src/runtime/flags.ts";
import { didYouMean } from "../../src/runtime/nearest.ts";
import { alignColumns } from "../../src/runtime/terminal.ts";
import type { Parameters, Scenario, Store } from "./scenario.ts";

const STORES = ["embedded", "postgres"] as const;

const FLAGS = {
  list: { type: "bool", doc: "Print the names of the scenarios and their parameters." },
  json: { type: "string", doc: "Also write the results to this file as JSON." },
  output: { type: "string", doc: "table, or json for the same JSON on standard output.", default: "table" },
  store: { type: "string", doc: "embedded or postgres: our own servers run on this one only. Default: both." },
  server: {
    type: "string",
    doc: "host:port of another server, which scenarios that speak only SPIRE's wire measure too.",
  },
  serverSocket: { type: "string", doc: "Its admin socket: join tokens, entries and its bundle come from there." },
  agentSocket: { type: "string", doc: "Workload API socket of another agent, below the server of -serverSocket." },
  agentId: { type: "string", doc: "Its SPIFFE ID. Default: the only agent that the server knows." },
  peer: { type: "string", doc: "What to call them in the results. Default: the name of the program." },
} as const satisfies FlagSpecs;

export type Scenarios = Readonly<Record<string, Scenario>>;

/** What a command line asks for. */
export interface Plan {
  readonly show: "help" | "list" | undefined;
  readonly runs: readonly { readonly name: string; readonly scenario: Scenario; readonly parameters: Parameters }[];
  readonly json: string | undefined;
  readonly output: "table" | "json";
  readonly stores: readonly Store[];
  readonly server: { readonly address: string; readonly port: number; readonly socketPath: string } | undefined;
  readonly agentSocket: string | undefined;
  readonly agentId: string | undefined;
  readonly peer: string | undefined;
}

type Values = Readonly<Record<string, unknown>>;

/** Names of scenarios and flags in any order. Throws `invalid` with the code `usage`. */
export function parsePlan(args: readonly string[], scenarios: Scenarios): Plan {
  const first = args.findIndex((word) => word.startsWith("-"));
  const words = first < 0 ? args : args.slice(0, first);
  const flags = Object.assign({}, ...Object.values(scenarios).map(flagsOf), FLAGS) as FlagSpecs;
  const { values, rest, help } = parseFlags(flags, args.slice(words.length));
  const names = chosen([...words, ...rest], scenarios);
  refuseStrangers({ names, values, scenarios });
  const { json, agentSocket, agentId, peer } = values as Readonly<Record<string, string | undefined>>;
  return {
    show: help ? "help" : values["list"] === true ? "list" : undefined,
    runs: names.map((name) => runOf(name, scenarios[name] as Scenario, values)),
    output: oneOf("output", values["output"] ?? "table", ["table", "json"]),
    stores: values["store"] === undefined ? STORES : [oneOf("store", values["store"], STORES)],
    server: serverOf(values),
    ...{ json, agentSocket, agentId, peer },
  };
}

function chosen(names: readonly string[], scenarios: Scenarios): readonly string[] {
  const all = Object.keys(scenarios);
  const unknown = names.find((name) => !all.includes(name));
  if (unknown === undefined) return names.length > 0 ? names : all.filter((name) => !scenarios[name]?.onlyByName);
  throw usage(
    `there is no scenario "${unknown}"`,
    didYouMean(unknown, all) ?? "npm run bench -- --list names them all",
  );
}

/** A parameter that no chosen scenario takes would change nothing, and whoever gave it would believe that it did. */
function refuseStrangers(line: {
  readonly names: readonly string[];
  readonly values: Values;
  readonly scenarios: Scenarios;
}): void {
  const parameters = line.names.flatMap((name) => Object.keys(line.scenarios[name]?.parameters ?? {}));
  const known = new Set([...Object.keys(FLAGS), ...parameters]);
  const stranger = Object.keys(line.values).find((name) => line.values[name] !== undefined && !known.has(name));
  if (stranger !== undefined) throw usage(`-${stranger} means nothing to ${line.names.join(", ")}`);
}

function oneOf<T extends string>(name: string, value: unknown, words: readonly T[]): T {
  const found = words.find((word) => word === value);
  if (found === undefined) throw usage(`-${name} is ${words.join(" or ")}, not ${JSON.stringify(value)}`);
  return found;
}

/** No defaults and no numbers here: both may differ from scenario to scenario. */
function flagsOf({ parameters }: Scenario): FlagSpecs {
  return Object.fromEntries(Object.entries(parameters).map(([name, { doc }]) => [name, { type: "string", doc }]));
}

function runOf(name: string, scenario: Scenario, values: Values): Plan["runs"][number] {
  const entries = Object.entries(scenario.parameters).map(([key, spec]) => {
    const given = values[key];
    return [key, given === undefined ? spec.default : numbers(key, String(given), spec.default)] as const;
  });
  return { name, scenario, parameters: Object.fromEntries(entries) };
}

/** Of the same kind as the default: one number, or several. */
function numbers(name: string, text: string, kind: number | readonly number[]): number | readonly number[] {
  const isOne = typeof kind === "number";
  const all = (isOne ? [text] : text.split(",")).map(Number);
  if (all.every((one) => Number.isSafeInteger(one) && one > 0)) return isOne ? (all[0] as number) : all;
  throw usage(`-${name} takes ${isOne ? "a whole number" : "whole numbers"} above 0, not ${JSON.stringify(text)}`);
}

function serverOf({ server, serverSocket, agentSocket }: Values): Plan["server"] {
  if (server === undefined && serverSocket === undefined && agentSocket === undefined) return undefined;
  if (server === undefined || serverSocket === undefined)
    throw usage("-server and -serverSocket go together, and -agentSocket wants both");
  const [, address, port] = /^\[?([^\]]+)\]?:(\d+)$/.exec(String(server)) ?? [];
  if (address === undefined) throw usage(`-server is host:port, not ${JSON.stringify(server)}`);
  return { address, port: Number(port), socketPath: String(serverSocket) };
}

function usage(message: string, hint?: string): Fault {
  return new Fault("invalid", message, hint === undefined ? { code: "usage" } : { code: "usage", hint });
}

export function helpText(scenarios: Scenarios): string {
  const flags = Object.entries<FlagSpec>(FLAGS).map(([name, { type, doc }]) => [
    `  -${name}${type === "bool" ? "" : " value"}`,
    doc,
  ]);
  return [
    "Measures this checkout: figures beside what the machine can do at best, and beside another server or agent.\n",
    "Usage: npm run bench -- [SCENARIO...] [flags]\n",
    `Flags:\n${alignColumns(flags)}`,
    `Scenarios, each with its parameters; those with * run only when they are named:\n${listText(scenarios)}`,
    `Examples:\n${EXAMPLES.map((line) => `  npm run bench -- ${line}\n`).join("")}`,
  ].join("\n");
}

const EXAMPLES = [
  "signing propagation --json results.json",
  "signing --server 127.0.0.1:8081 --server-socket /tmp/spire-server/private/api.sock --peer SPIRE",
];

export function listText(scenarios: Scenarios): string {
  const rows = Object.entries(scenarios).flatMap(([name, { summary, parameters, onlyByName }]) => [
    [`  ${name}${onlyByName ? " *" : ""}`, summary],
    ...Object.entries(parameters).map(([flag, spec]) => ["", `-${flag} (${String(spec.default)}): ${spec.doc}`]),
  ]);
  return alignColumns(rows);
}
