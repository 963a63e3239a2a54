import { digits } from "./render.ts";

export interface Line {
  readonly subject: string;
  readonly dashed: boolean;
  readonly points: readonly Point[];
}

interface Point {
  readonly x: number;
  readonly y: number;
}

/** The horizontal axis is logarithmic and has a tick at each point; the vertical one begins at 0 unless it is `log`. */
export interface Chart {
  readonly title: string;
  readonly unit: string;
  readonly log: boolean;
  readonly xTitle: string;
  readonly lines: readonly Line[];
}

export interface Plot {
  readonly charts: readonly Chart[];
  /** Each has its colour. */
  readonly subjects: readonly string[];
  readonly caption: readonly string[];
}

const [WIDTH, HEIGHT, COLUMNS] = [440, 270, 2];
const [LEFT, RIGHT, TOP, BOTTOM] = [58, 56, 44, 40];
const HEAD = 34;
const LINE_HEIGHT = 15;
const LABEL_HEIGHT = 13;
const COLOURS = 5;

/** In the viewer's light or dark colours, without a script or a font of its own. */
const STYLE = `
  svg { --ink: #1f2328; --dim: #656d76; --grid: #d8dee4; --paper: #ffffff;
    --c0: #0969da; --c1: #1a7f37; --c2: #bc4c00; --c3: #8250df; --c4: #bf3989;
    background: var(--paper); font: 12px system-ui, sans-serif; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --dim: #8d96a0; --grid: #30363d; --paper: #0d1117;
      --c0: #58a6ff; --c1: #56d364; --c2: #f0883e; --c3: #bc8cff; --c4: #f778ba; }
  }
  text { fill: var(--ink); } .dim { fill: var(--dim); } .title { font-weight: 600; font-size: 13px; }
  .grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 4 3; stroke-width: 1.5; }
${Array.from({ length: COLOURS }, (_, index) => `  .c${index} { stroke: var(--c${index}); } .f${index} { fill: var(--c${index}); }`).join("\n")}
`;

/** An SVG document: a legend, the charts two in a row, and the caption below. */
export function renderPlot({ charts, subjects, caption }: Plot): string {
  const rows = Math.ceil(charts.length / COLUMNS);
  const width = WIDTH * Math.min(COLUMNS, charts.length);
  const height = HEAD + rows * HEIGHT + caption.length * LINE_HEIGHT + 12;
  const colour = (subject: string): number => subjects.indexOf(subject) % COLOURS;
  const placed = charts.map((chart, index) => {
    const [x, y] = [(index % COLUMNS) * WIDTH, HEAD + Math.floor(index / COLUMNS) * HEIGHT];
    return `<g transform="translate(${x} ${y})">\n${chartParts(chart, colour).join("\n")}\n</g>`;
  });
  const below = HEAD + rows * HEIGHT + LINE_HEIGHT;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    `<style>${STYLE}</style>`,
    ...legend(
      subjects,
      charts.some(({ lines }) => lines.some(({ dashed }) => dashed)),
    ),
    ...placed,
    ...caption.map((line, index) => text(LEFT, below + index * LINE_HEIGHT, line, { class: "dim" })),
    "</svg>\n",
  ].join("\n");
}

function legend(subjects: readonly string[], isDashed: boolean): readonly string[] {
  let x = LEFT;
  const parts = subjects.flatMap((subject, index) => {
    const from = x;
    x += 44 + subject.length * 7;
    return [
      `<line class="line c${index % COLOURS}" x1="${from}" x2="${from + 20}" y1="18" y2="18"/>`,
      text(from + 26, 22, subject),
    ];
  });
  return isDashed ? [...parts, text(x, 22, "solid: median, dashed: 99th percentile", { class: "dim" })] : parts;
}

function chartParts(
  { title, unit, log, xTitle, lines }: Chart,
  colour: (subject: string) => number,
): readonly string[] {
  const points = lines.flatMap((line) => line.points);
  const xs = [...new Set(points.map(({ x }) => x))].sort((a, b) => a - b);
  const ticks = log ? decades(points.map(({ y }) => y)) : steps(Math.max(...points.map(({ y }) => y)));
  const toX = scale(xs.map(Math.log), LEFT, WIDTH - RIGHT);
  const toY = scale(log ? ticks.map(Math.log) : ticks, HEIGHT - BOTTOM, TOP);
  const place = ({ x, y }: Point) => ({ x: toX(Math.log(x)), y: toY(log ? Math.log(y) : y) });
  const ends = lines.flatMap((line) => {
    const last = line.points.at(-1);
    return last === undefined ? [] : [{ y: place(last).y, label: digits(last.y), index: colour(line.subject) }];
  });
  return [
    text(LEFT, 20, unit === "" ? title : `${title}, ${unit}`, { class: "title" }),
    ...ticks.flatMap((tick) => {
      const y = toY(log ? Math.log(tick) : tick).toFixed(1);
      return [
        `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y}" y2="${y}"/>`,
        text(LEFT - 8, Number(y) + 4, tick.toLocaleString("en"), { class: "dim", anchor: "end" }),
      ];
    }),
    ...xs.map((x) =>
      text(toX(Math.log(x)), HEIGHT - BOTTOM + 18, x.toLocaleString("en"), { class: "dim", anchor: "middle" }),
    ),
    text(WIDTH - RIGHT, HEIGHT - BOTTOM + 34, xTitle, { class: "dim", anchor: "end" }),
    ...lines.flatMap(({ subject, dashed, points: some }) => curve(some.map(place), { index: colour(subject), dashed })),
    ...apart(ends).map(({ y, label, index }) => text(WIDTH - RIGHT + 8, y + 4, label, { class: `f${index}` })),
  ];
}

function curve(points: readonly Point[], { index, dashed }: { readonly index: number; readonly dashed: boolean }) {
  const path = points.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  const dots = points.map(({ x, y }) => `<circle class="f${index}" cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="3"/>`);
  return [`<polyline class="line c${index}${dashed ? " dashed" : ""}" points="${path}"/>`, ...(dashed ? [] : dots)];
}

/** Labels keep their order and move apart until none covers another, upwards where they would leave the chart. */
function apart<T extends { readonly y: number }>(labels: readonly T[]): readonly T[] {
  const sorted = labels.toSorted((a, b) => a.y - b.y);
  const ys = sorted.map(({ y }) => y);
  for (let at = 1; at < ys.length; at += 1) ys[at] = Math.max(ys[at] ?? 0, (ys[at - 1] ?? 0) + LABEL_HEIGHT);
  let most = HEIGHT - BOTTOM;
  for (let at = ys.length - 1; at >= 0; at -= 1) {
    ys[at] = Math.min(ys[at] ?? 0, most);
    most = (ys[at] ?? 0) - LABEL_HEIGHT;
  }
  return sorted.map((label, at) => ({ ...label, y: ys[at] ?? label.y }));
}

/** Maps the range of the values to the pixels between; a single value to the middle. */
function scale(values: readonly number[], from: number, to: number): (value: number) => number {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  return (value) => (most === least ? (from + to) / 2 : from + ((value - least) / (most - least)) * (to - from));
}

/** From 0 to at least `most`, in four or five round steps. */
export function steps(most: number): readonly number[] {
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw) ?? raw;
  return Array.from({ length: Math.ceil(most / step) + 1 }, (_, index) => Number((index * step).toPrecision(12)));
}

/** Powers of ten around the values, both ends included. */
export function decades(values: readonly number[]): readonly number[] {
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  return Array.from({ length: high - low + 1 }, (_, index) => Number((10 ** (low + index)).toPrecision(12)));
}

interface TextStyle {
  readonly class?: string;
  readonly anchor?: "end" | "middle";
}

function text(x: number, y: number, words: string, { class: name, anchor }: TextStyle = {}): string {
  const attributes = `${name === undefined ? "" : ` class="${name}"`}${anchor === undefined ? "" : ` text-anchor="${anchor}"`}`;
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}"${attributes}>${escaped(words)}</text>`;
}

function escaped(words: string): string {
  return words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
