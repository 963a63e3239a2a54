import { expect, test } from "vitest";
import { type Chart, decades, renderPlot, steps } from "./chart.ts";

const CHART: Chart = {
  ...{ title: "Memory <RSS>", unit: "MB", log: false, xTitle: "agents" },
  lines: [
    { subject: "a", dashed: false, points: [point(100, 50), point(1000, 100), point(10_000, 200)] },
    { subject: "a", dashed: true, points: [point(100, 60), point(10_000, 200)] },
    { subject: "b", dashed: false, points: [point(100, 0), point(10_000, 199)] },
  ],
};

function point(x: number, y: number) {
  return { x, y };
}

function plot(chart: Chart): string {
  return renderPlot({ charts: [chart], subjects: ["a", "b"], caption: ["one machine"] });
}

function curves(svg: string): readonly (readonly (readonly number[])[])[] {
  return [...svg.matchAll(/points="([^"]*)"/g)].map(([, text = ""]) =>
    text.split(" ").map((pair) => pair.split(",").map(Number)),
  );
}

test("points stand where their values say: sizes by their logarithm, values from 0 upwards", () => {
  const [a, , b] = curves(plot(CHART));
  const [[x1 = 0, y1 = 0] = [], [x2 = 0, y2 = 0] = [], [x3 = 0, y3 = 0] = []] = a ?? [];
  expect(x2 - x1).toBeCloseTo(x3 - x2, 1);
  expect((y1 - y3) / (y1 - y2)).toBeCloseTo(3, 1);
  const zero = b?.[0]?.[1] ?? 0;
  expect((zero - y3) / (zero - y1)).toBeCloseTo(4, 1);
});

test("a logarithmic axis gives the same distance to the same ratio", () => {
  const lines = [{ subject: "a", dashed: false, points: [point(1, 2), point(2, 20), point(4, 200)] }];
  const [[[, y1 = 0] = [], [, y2 = 0] = [], [, y3 = 0] = []] = []] = curves(plot({ ...CHART, log: true, lines }));
  expect(y1 - y2).toBeCloseTo(y2 - y3, 1);
  expect(y1).toBeGreaterThan(y2);
});

test("a size of one point is drawn too", () => {
  const lines = [{ subject: "a", dashed: false, points: [point(5, 3)] }];
  expect(
    curves(plot({ ...CHART, lines }))
      .flat(2)
      .every(Number.isFinite),
  ).toBe(true);
});

test("subjects keep their colour, the tail is dashed, and labels at the end do not cover each other", () => {
  const svg = plot(CHART);
  expect([...svg.matchAll(/<polyline class="([^"]*)"/g)].map(([, name]) => name)).toEqual([
    "line c0",
    "line c0 dashed",
    "line c1",
  ]);
  const ends = [...svg.matchAll(/y="([\d.]+)" class="f\d"/g)].map(([, y]) => Number(y)).sort((a, b) => a - b);
  expect(ends).toHaveLength(3);
  expect(ends.every((y, index) => index === 0 || y - (ends[index - 1] ?? 0) >= 12)).toBe(true);
});

test("labels at the bottom stay above the axis", () => {
  const lines = ["a", "b"].map((subject) => ({ subject, dashed: false, points: [point(1, 100), point(2, 0)] }));
  const svg = plot({ ...CHART, lines });
  const axis = Math.max(
    ...curves(svg)
      .flat()
      .map(([, y = 0]) => y),
  );
  const ends = [...svg.matchAll(/y="([\d.]+)" class="f\d"/g)].map(([, y]) => Number(y) - 4);
  expect(ends.map((y) => y <= axis)).toEqual([true, true]);
  expect(Math.abs((ends[0] ?? 0) - (ends[1] ?? 0))).toBeGreaterThanOrEqual(12);
});

test("it is readable in light and in dark, and words are no markup", () => {
  const svg = plot(CHART);
  expect(svg).toContain("@media (prefers-color-scheme: dark)");
  expect(svg).toContain("Memory &lt;RSS&gt;, MB");
  expect(svg).toContain(">one machine</text>");
});

test.each([
  [200, [0, 50, 100, 150, 200]],
  [0.83, [0, 0.25, 0.5, 0.75, 1]],
  [11, [0, 5, 10, 15]],
])("the axis of values up to %d is %j", (most, ticks) => {
  expect(steps(most)).toEqual(ticks);
});

test("powers of ten hold all values", () => {
  expect(decades([8, 9000])).toEqual([1, 10, 100, 1000, 10_000]);
  expect(decades([10])).toEqual([10, 100]);
  expect(decades([0.02, 0.5])).toEqual([0.01, 0.1, 1]);
});
