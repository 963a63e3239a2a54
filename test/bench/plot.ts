import { readFileSync, writeFileSync } from "node:fs";
import { type Chart, renderPlot } from "./chart.ts";
import type { Result, Unit } from "./figures.ts";
import { type Run, renderMachine } from "./render.ts";

/** `node test/bench/plot.ts RUN.json PLOT.svg`: the fleet of a run of `simulate`, as curves over its size. */
const PANELS: readonly { readonly figure: string; readonly title: string; readonly log?: true }[] = [
  { figure: "entry create until the agent knows", title: "Entry create until the agent knows", log: true },
  { figure: "server RSS", title: "Server memory (RSS)" },
  { figure: "server CPU for one change, its SVID included", title: "Server CPU for one change, its SVID included" },
  { figure: "server CPU while nothing changes, of one core", title: "Server CPU while nothing changes, of one core" },
];

const [input, output] = process.argv.slice(2);
if (input === undefined || output === undefined) {
  process.stderr.write("Usage: node test/bench/plot.ts RUN.json PLOT.svg\n");
  process.exit(1);
}
const run = JSON.parse(readFileSync(input, "utf8")) as Run;
const fleet = run.scenarios.find(({ scenario }) => scenario === "simulate");
if (fleet === undefined) throw new Error(`${input} holds no run of simulate`);
const load = `load ${fleet.load.map((each) => each.toFixed(1)).join(" to ")}`;
const caption = [...renderMachine(run.machine).trim().split("\n"), `${run.startedAt.slice(0, 16)}Z, ${load}`];
const subjects = [...new Set(fleet.results.map(({ subject }) => subject))];
writeFileSync(output, renderPlot({ charts: PANELS.map((panel) => chartOf(panel, fleet.results)), subjects, caption }));

function chartOf({ figure, title, log }: (typeof PANELS)[number], results: readonly Result[]): Chart {
  const found = results.filter(({ name }) => name === figure);
  const [unit, scale] = readable(found[0]?.unit ?? "", Math.max(...found.map(({ value }) => value)));
  const lines = subjects.flatMap((subject) => {
    const own = found.filter((result) => result.subject === subject);
    const at = ({ at: { agents = 0 } }: Result): number => agents;
    const median = { subject, dashed: false, points: own.map((one) => ({ x: at(one), y: one.value * scale })) };
    const tails = own.flatMap((one) => (one.spread === undefined ? [] : [{ x: at(one), y: one.spread.p99 * scale }]));
    return tails.length === 0 ? [median] : [median, { subject, dashed: true, points: tails }];
  });
  return { title, unit, log: log === true, xTitle: "agents", lines };
}

function readable(unit: Unit, most: number): readonly [Unit, number] {
  return unit === "us" && most > 1000 ? ["ms", 1 / 1000] : [unit, 1];
}
