import { expect, test } from "vitest";
import { resultOf } from "./figures.ts";
import { digits, type Outcome, renderMachine, renderOutcome } from "./render.ts";

const limit = { name: "openssl", value: 200 };
const OUTCOME: Outcome = {
  ...{ scenario: "signing", summary: "in batches", parameters: {}, notes: ["one is missing"] },
  results: [
    resultOf({ name: "rate", unit: "/s", values: 100, at: { agents: 2000 }, limit }, "Steeple"),
    resultOf({ name: "call", unit: "ms", values: [1, 2, 30] }, "Steeple"),
  ],
  ...{ seconds: 3.2, load: [0.5, 1.25] },
};

test("an outcome is a table whose columns have something to say, then limits, notes and the load", () => {
  expect(renderOutcome(OUTCOME, undefined).split("\n")).toEqual([
    "## signing: in batches",
    "FIGURE  AT            OF       VALUE    P99      MAX      N  LIMIT  RATIO",
    "rate    2,000 agents  Steeple  100/s    -        -        -  200/s  0.500",
    "call    -             Steeple  2.00 ms  30.0 ms  30.0 ms  3  -      -",
    "- Limit 200/s: openssl",
    "- one is missing",
    "- 3 s; load 0.5 before, 1.3 after",
    "",
  ]);
});

test("a peer and an early end are told", () => {
  const [rate] = OUTCOME.results;
  const results = rate === undefined ? [] : [{ ...rate, againstPeer: 1.5 }];
  const text = renderOutcome({ ...OUTCOME, results, error: "the server ended" }, "SPIRE");
  expect(text).toContain("TO SPIRE");
  expect(text).toContain("x 1.50");
  expect(text).toContain("- Ended early: the server ended\n");
});

test("the machine and the version stand above all", () => {
  const machine = {
    ...{ cpu: "EPYC", cores: 2, memoryMb: 24_000, kernel: "6.1", node: "v26", openssl: "3.5" },
    ...{ version: "0.1.0", commit: "abc+" },
  };
  expect(renderMachine(machine)).toBe(
    "Steeple 0.1.0 (abc+), Node v26, OpenSSL 3.5, Linux 6.1\n2 cores (EPYC), 23 GiB\n",
  );
});

test.each([
  [0, "0"],
  [0.012345, "0.0123"],
  [0.09999, "0.100"],
  [9.999, "10.0"],
  [12.345, "12.3"],
  [1234.5, "1,235"],
])("%d is written %s: three digits that count", (value, text) => {
  expect(digits(value)).toBe(text);
});
