import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PROJECT } from "../support/server-process.ts";
import { type House, identities, Peer } from "./peer.ts";

const python = process.env["INTEROP_PYTHON"] ?? "";
const run = (...args: readonly string[]): readonly string[] => [
  python,
  join(PROJECT, "test/interop/python/peer.py"),
  ...args,
];

describe.skipIf(python === "")("Python's spiffe", () => {
  let house: House;
  beforeAll(async () => {
    house = await identities(4);
  });
  afterAll(async () => {
    await house?.[Symbol.asyncDispose]();
  });

  test("takes X.509- and JWT-SVIDs and bundles, and validates by agent and by source", async () => {
    await using peer = new Peer(run("fetch", "reports"), house.agent.socket);
    expect((await peer.result()).trim().split("\n")).toEqual([
      "x509 spiffe://example.org/web",
      "bundle example.org 1",
      "jwt spiffe://example.org/web ['reports']",
      "jwt spiffe://example.org/web-ext ['reports']",
      "valid spiffe://example.org/web",
      "source spiffe://example.org/web-ext",
    ]);
    await using bad = new Peer(run("validate", "reports", "a.b.c"), house.agent.socket);
    await expect(bad.result()).rejects.toThrow(/unable to parse JWT token/);
  });

  test("20 rotations, each before the last identity has ended", async () => {
    await using peer = new Peer(run("rotations", "21"), house.agent.socket);
    expect(await peer.result()).toBe("21 identities\n");
  });
});
