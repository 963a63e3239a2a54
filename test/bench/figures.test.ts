import { describe, expect, test } from "vitest";
import { compared, type Figure, resultOf, spreadOf } from "./figures.ts";
import { readOpensslSpeed } from "./limits.ts";

const RATE: Figure = { name: "X.509-SVIDs", unit: "/s", values: 500, at: { "in flight": 4 } };

describe("percentiles", () => {
  test("are measurements, by nearest rank", () => {
    const hundred = Array.from({ length: 100 }, (_, index) => 100 - index);
    expect(spreadOf(hundred)).toEqual({ p50: 50, p90: 90, p99: 99, max: 100, count: 100 });
    expect(spreadOf([3, 1, 2])).toEqual({ p50: 2, p90: 3, p99: 3, max: 3, count: 3 });
    expect(spreadOf([7])).toEqual({ p50: 7, p90: 7, p99: 7, max: 7, count: 1 });
  });

  test("do not reorder what they are given", () => {
    const values = [3, 1, 2];
    spreadOf(values);
    expect(values).toEqual([3, 1, 2]);
  });
});

describe("a result", () => {
  test("has the median of several measurements as its value, and its ratio to the limit", () => {
    const limit = { name: "openssl", value: 4 };
    expect(resultOf({ name: "call", unit: "ms", values: [9, 2, 8], limit }, "ours")).toEqual({
      ...{ subject: "ours", name: "call", unit: "ms", at: {}, value: 8, limit, ratio: 2 },
      spread: { p50: 8, p90: 9, p99: 9, max: 9, count: 3 },
    });
  });

  test.each([[[]], [Number.NaN], [[1, Number.NaN]], [Number.POSITIVE_INFINITY]])("is never made of %j", (values) => {
    expect(() => resultOf({ name: "call", unit: "ms", values }, "")).toThrow('nothing was measured for "call"');
  });
});

describe("comparison with a peer", () => {
  const ours = resultOf(RATE, "Steeple");
  const theirs = resultOf({ ...RATE, values: 250 }, "SPIRE");

  test("gives ours divided by the peer's, for the same figure at the same size only", () => {
    const other = resultOf({ ...RATE, at: { "in flight": 1 } }, "Steeple");
    const results = compared([ours, other, theirs], "SPIRE");
    expect(results.map(({ againstPeer }) => againstPeer)).toEqual([2, undefined, undefined]);
  });

  test("leaves results alone without a peer, and where the peer has 0", () => {
    expect(compared([ours, theirs], undefined)).toEqual([ours, theirs]);
    expect(compared([ours, { ...theirs, value: 0 }], "SPIRE")[0]).toEqual(ours);
  });
});

describe("openssl speed", () => {
  const stdout = `version: 3.0.22
                              sign    verify    sign/s verify/s
 256 bits ecdsa (nistp256)   0.0000s   0.0001s  47241.0  15316.2
`;

  test("is read from its columns sign/s and verify/s", () => {
    expect(readOpensslSpeed(stdout, "ec-p256")).toEqual({ sign: 47241, verify: 15316.2 });
  });

  test("without the row of the key type fails, with what it printed", () => {
    expect(() => readOpensslSpeed(stdout, "rsa-2048")).toThrow(/nothing of rsa-2048:\nversion/);
  });
});
