import { renderTable } from "../../src/cli/table.ts";
import type { Result, Unit } from "./figures.ts";
import type { Machine } from "./machine.ts";

/** One scenario of a run. */
export interface Outcome {
  readonly scenario: string;
  readonly summary: string;
  readonly parameters: Readonly<Record<string, number | readonly number[]>>;
  readonly results: readonly Result[];
  readonly notes: readonly string[];
  /** Why it ended early. */
  readonly error?: string;
  readonly seconds: number;
  /** Load average before and after: that of others, and its own. */
  readonly load: readonly [before: number, after: number];
}

/** What `-json` writes. */
export interface Run {
  readonly format: "steeple-bench/1";
  /** RFC 3339. */
  readonly startedAt: string;
  readonly machine: Machine;
  /** The subject that others are compared with. */
  readonly peer?: string;
  readonly scenarios: readonly Outcome[];
}

export function renderMachine({ cpu, cores, memoryMb, kernel, node, openssl, version, commit }: Machine): string {
  const revision = commit === "" ? "" : ` (${commit})`;
  return `Steeple ${version}${revision}, Node ${node}, OpenSSL ${openssl}, Linux ${kernel}\n${cores} cores (${cpu}), ${(memoryMb / 1024).toFixed(0)} GiB\n`;
}

export function renderOutcome(outcome: Outcome, peer: string | undefined): string {
  const { scenario, summary, results, notes, error, seconds, load } = outcome;
  const lines = [
    `## ${scenario}: ${summary}\n`,
    ...(results.length === 0 ? [] : [tableOf(results, peer)]),
    ...limitsOf(results),
    ...notes.map((note) => `- ${note}\n`),
    ...(error === undefined ? [] : [`- Ended early: ${error}\n`]),
    `- ${seconds.toFixed(0)} s; load ${load[0].toFixed(1)} before, ${load[1].toFixed(1)} after\n`,
  ];
  return lines.join("");
}

function tableOf(results: readonly Result[], peer: string | undefined): string {
  const used = (cell: (result: Result) => string | undefined): boolean =>
    results.some((one) => (cell(one) ?? "") !== "");
  const columns = COLUMNS(peer).filter(({ cell, always }) => always === true || used(cell));
  const rows = results.map((result) => columns.map(({ cell }) => cell(result)));
  return renderTable(
    { columns: columns.map(({ title }) => ({ title })), rows },
    { wide: true, width: undefined, now: new Date(0) },
  );
}

interface ResultColumn {
  readonly title: string;
  readonly always?: true;
  cell(result: Result): string | undefined;
}

const COLUMNS = (peer: string | undefined): readonly ResultColumn[] => [
  { title: "FIGURE", always: true, cell: ({ name }) => name },
  {
    title: "AT",
    cell: ({ at }) =>
      Object.entries(at)
        .map(([key, value]) => `${value.toLocaleString("en")} ${key}`)
        .join(", "),
  },
  { title: "OF", cell: ({ subject }) => subject },
  { title: "VALUE", always: true, cell: ({ value, unit }) => quantity(value, unit) },
  { title: "P99", cell: ({ spread, unit }) => spread && quantity(spread.p99, unit) },
  { title: "MAX", cell: ({ spread, unit }) => spread && quantity(spread.max, unit) },
  { title: "N", cell: ({ spread }) => spread && String(spread.count) },
  { title: "LIMIT", cell: ({ limit, unit }) => limit && quantity(limit.value, unit) },
  { title: "RATIO", cell: ({ ratio }) => (ratio === undefined ? undefined : digits(ratio)) },
  {
    title: `TO ${(peer ?? "").toUpperCase()}`,
    cell: ({ againstPeer }) => (againstPeer === undefined ? undefined : `x ${digits(againstPeer)}`),
  },
];

function limitsOf(results: readonly Result[]): readonly string[] {
  const limits = new Map(
    results.flatMap(({ limit, unit }) => (limit === undefined ? [] : [[limit.name, quantity(limit.value, unit)]])),
  );
  return [...limits].map(([name, value]) => `- Limit ${value}: ${name}\n`);
}

export function quantity(value: number, unit: Unit): string {
  return unit === "" ? digits(value) : `${digits(value)}${unit.startsWith("/") ? "" : " "}${unit}`;
}

/** Three digits that count, never in powers of ten. */
export function digits(value: number): string {
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(3));
  const places = 2 - Math.floor(Math.log10(Math.abs(rounded)));
  if (places <= 0) return Math.round(value).toLocaleString("en");
  return rounded.toFixed(Math.min(places, 6));
}
