import { describe, expect, test } from "vitest";
import { faultOf } from "../support/faults.ts";
import { helpText, listText, parsePlan } from "./arguments.ts";
import { scenario } from "./scenario.ts";

const run = async (): Promise<void> => undefined;
const scenarios = {
  alpha: scenario({
    summary: "first",
    parameters: { calls: { doc: "Calls.", default: 10 }, sizes: { doc: "Sizes.", default: [1, 2] } },
    run,
  }),
  beta: scenario({ summary: "second", parameters: { calls: { doc: "Calls.", default: [99] } }, run }),
  gamma: scenario({ summary: "long", onlyByName: true, run }),
};
const plan = (...args: string[]) => parsePlan(args, scenarios);
const shape = (...args: string[]) => plan(...args).runs.map(({ name, parameters }) => [name, parameters]);

describe("which scenarios run", () => {
  test("all but those that want to be named, each with its own defaults", () => {
    expect(shape()).toEqual([
      ["alpha", { calls: 10, sizes: [1, 2] }],
      ["beta", { calls: [99] }],
    ]);
  });

  test("those that are named, before or after flags, in their order", () => {
    expect(shape("gamma", "beta").map(([name]) => name)).toEqual(["gamma", "beta"]);
    expect(shape("-calls", "3", "beta")).toEqual([["beta", { calls: [3] }]]);
  });

  test("parameters are whole numbers, or several of them; the same flag may be one here and several there", () => {
    expect(shape("alpha", "--calls=7", "--sizes", "100,2000")).toEqual([["alpha", { calls: 7, sizes: [100, 2000] }]]);
    expect(shape("alpha", "beta", "-calls", "5").map(([, parameters]) => parameters)).toMatchObject([
      { calls: 5 },
      { calls: [5] },
    ]);
  });
});

describe("what else a line says", () => {
  test("nothing means a table, both stores and no peer", () => {
    expect(plan()).toMatchObject({ show: undefined, output: "table", stores: ["embedded", "postgres"] });
    expect(plan()).toMatchObject({ server: undefined, json: undefined, agentSocket: undefined, peer: undefined });
  });

  test("a peer by address, also of IPv6, and its agent", () => {
    const peer = ["--server-socket", "/s", "--agent-socket", "/a", "--peer", "SPIRE"];
    const line = plan("alpha", "--server", "[::1]:8081", ...peer);
    expect(line.server).toEqual({ address: "::1", port: 8081, socketPath: "/s" });
    expect(line).toMatchObject({ agentSocket: "/a", peer: "SPIRE", agentId: undefined });
  });

  test("help and list name every scenario and parameter", () => {
    expect([plan("--help").show, plan("-list").show]).toEqual(["help", "list"]);
    for (const text of [helpText(scenarios), listText(scenarios)]) {
      expect(text).toContain("gamma *");
      expect(text).toContain("-sizes (1,2): Sizes.");
    }
  });
});

describe("what cannot be meant is refused before anything runs", () => {
  test.each([
    [["alhpa"], 'there is no scenario "alhpa"', /alpha/],
    [["beta", "-sizes", "1"], "-sizes means nothing to beta", undefined],
    [["alpha", "-sizes", "1,x"], '-sizes takes whole numbers above 0, not "1,x"', undefined],
    [["alpha", "-calls", "0"], '-calls takes a whole number above 0, not "0"', undefined],
    [["alpha", "-calls", "1,2"], '-calls takes a whole number above 0, not "1,2"', undefined],
    [["-store", "sqlite"], '-store is embedded or postgres, not "sqlite"', undefined],
    [["-output", "xml"], '-output is table or json, not "xml"', undefined],
    [["-server", "a:1"], "-server and -serverSocket go together, and -agentSocket wants both", undefined],
    [["-agentSocket", "/a"], "-server and -serverSocket go together, and -agentSocket wants both", undefined],
    [["-server", "a", "-serverSocket", "/s"], '-server is host:port, not "a"', undefined],
  ])("%j", (args, message, hint) => {
    const fault = faultOf(() => plan(...args));
    expect(fault).toMatchObject({ kind: "invalid", code: "usage", message });
    if (hint !== undefined) expect(fault.hint).toMatch(hint);
  });
});
