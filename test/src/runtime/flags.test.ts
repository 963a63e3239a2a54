import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isFault } from "../../../src/runtime/fault.ts";
import { type FlagSpecs, outputFlag, parseFlags } from "../../../src/runtime/flags.ts";
import { faultOf } from "../../support/faults.ts";
import go from "../../vectors/go-text.json" with { type: "json" };

const GO_SPECS = {
  s: { type: "string", doc: "", default: "" },
  b: { type: "bool", doc: "" },
  n: { type: "int", doc: "", default: 0 },
  d: { type: "duration", doc: "", default: "0s" },
  m: { type: "strings", doc: "" },
} as const satisfies FlagSpecs;

const SPIRE_SPECS = {
  spiffeID: { type: "string", doc: "" },
  x509SVIDTTL: { type: "int", doc: "" },
  disableSDSAPI: { type: "bool", doc: "" },
  selector: { type: "strings", doc: "" },
  timeout: { type: "duration", doc: "", default: "5s" },
  ttl: { type: "int", doc: "", default: 600 },
  output: outputFlag,
} as const satisfies FlagSpecs;

describe("flags as Go's flag package parses them", () => {
  test.each(go.flags.filter((one) => one.error === undefined))("$args", ({ args, s, b, n, d, m, rest }) => {
    expect(parseFlags(GO_SPECS, args)).toMatchObject({ values: { s, b, n, d, m }, rest, help: false });
  });

  test.each(go.flags.filter((one) => one.error !== undefined))("$args is refused: $error", ({ args, error }) => {
    // SPIRE's own duration flag says more than Go's.
    const expected = args[0] === "-d" ? 'invalid value "x" for flag -d: time: invalid duration "x"' : error;
    expect(faultOf(() => parseFlags(GO_SPECS, args)).message).toBe(expected);
  });

  test.each([["-h"], ["-help"], ["--help"], ["-b", "--help"]])("%s asks for help", (...args) => {
    expect(parseFlags(GO_SPECS, args).help).toBe(true);
  });

  test("never throws anything but a usage fault", () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.string(), fc.constantFrom("-s", "-b", "-n=1", "--", "-d", "-m", "-__proto__"))),
        (args) => {
          try {
            parseFlags(GO_SPECS, args);
          } catch (error) {
            expect(isFault(error, "invalid")).toBe(true);
          }
        },
      ),
    );
  });
});

describe("names", () => {
  test.each(["-spiffeID", "--spiffeID", "--spiffe-id", "-spiffe-id"])("%s is one flag", (name) => {
    expect(parseFlags(SPIRE_SPECS, [name, "spiffe://a.test/w"]).values.spiffeID).toBe("spiffe://a.test/w");
  });

  test.each(["--x509-svid-ttl=60", "-x509SVIDTTL=60"])("%s too", (word) => {
    expect(parseFlags(SPIRE_SPECS, [word]).values.x509SVIDTTL).toBe(60);
  });

  test("--disable-sds-api finds disableSDSAPI", () => {
    expect(parseFlags(SPIRE_SPECS, ["--disable-sds-api"]).values.disableSDSAPI).toBe(true);
  });

  test.each([
    { name: "-spifeID", hint: 'did you mean "-spiffeID"?' },
    { name: "-selectors", hint: 'did you mean "-selector"?' },
    { name: "-wholly-different", hint: undefined },
    { name: "-toString", hint: undefined },
  ])("$name is unknown; hint: $hint", ({ name, hint }) => {
    const fault = faultOf(() => parseFlags(SPIRE_SPECS, [name]));
    expect(fault.message).toBe(`flag provided but not defined: ${name}`);
    expect(fault.hint).toBe(hint);
  });
});

describe("values", () => {
  test("what is not given has its default, or nothing", () => {
    expect(parseFlags(SPIRE_SPECS, []).values).toEqual({
      spiffeID: undefined,
      x509SVIDTTL: undefined,
      disableSDSAPI: false,
      selector: [],
      timeout: 5000,
      ttl: 600,
      output: "pretty",
    });
  });

  test.each([
    { word: "json", output: "json" },
    { word: "JSON", output: "json" },
    { word: "pretty", output: "pretty" },
    { word: "prettyprint", output: "pretty" },
  ])("-output $word is $output", ({ word, output }) => {
    expect(parseFlags(SPIRE_SPECS, ["-output", word]).values.output).toBe(output);
  });

  test("an unknown output is refused in SPIRE's words", () => {
    const fault = faultOf(() => parseFlags(SPIRE_SPECS, ["-output", "xml"]));
    expect(fault.message).toBe(
      'invalid value "xml" for flag -output: bad formatter flag: unknown format option: "xml"',
    );
  });

  test("a second, different output is refused; the same one is not", () => {
    expect(parseFlags(SPIRE_SPECS, ["-output", "json", "-output", "JSON"]).values.output).toBe("json");
    expect(faultOf(() => parseFlags(SPIRE_SPECS, ["-output", "json", "-output", "pretty"])).message).toBe(
      'invalid value "pretty" for flag -output: the output format has already been set to "json"',
    );
  });
});

describe("spelling", () => {
  test.each([
    { args: [], spelling: "spire" },
    { args: ["-spiffeID", "a", "-ttl=5"], spelling: "spire" },
    { args: ["--spiffeID", "a"], spelling: "spire" },
    { args: ["--ttl", "5"], spelling: "either" },
    { args: ["--ttl", "5", "-spiffe-id", "a"], spelling: "own" },
    { args: ["--spiffe-id", "a", "-ttl", "5"], spelling: "own" },
  ] as const)("$args is $spelling", ({ args, spelling }) => {
    expect(parseFlags(SPIRE_SPECS, args).spelling).toBe(spelling);
  });
});
