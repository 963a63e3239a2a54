import { describe, expect, test } from "vitest";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { exportingKeyManagerContract } from "../../contract/key-manager.ts";

describe("keys in memory", () => {
  exportingKeyManagerContract(async () => openMemoryKeys());

  test("are gone once the manager is closed", async () => {
    const keys = openMemoryKeys();
    await keys.generate("a", "ec-p256");
    await keys[Symbol.asyncDispose]();
    expect(await keys.list()).toEqual([]);
  });

  test("are those of one manager only", async () => {
    await using first = openMemoryKeys();
    await using second = openMemoryKeys();
    await first.generate("a", "ec-p256");
    expect(await second.find("a")).toBeUndefined();
  });
});
