import { rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Fault } from "../../../src/runtime/fault.ts";
import { Reloaded } from "../../../src/runtime/reloaded.ts";
import { faultFrom } from "../../support/faults.ts";
import { temporaryDirectory } from "../../support/workload.ts";

function numbers(path: string) {
  const rejected: string[] = [];
  let reads = 0;
  const reloaded = new Reloaded({
    paths: [path],
    read: ([text = ""]) => {
      reads += 1;
      if (!/^\d+$/.test(text)) throw new Fault("invalid", "not a number");
      return Number(text);
    },
    rejected: ({ message }) => rejected.push(message),
  });
  return { reloaded, rejected, reads: () => reads };
}

test("reads once, and again after a change, in place or by renaming", async () => {
  await using folder = await temporaryDirectory();
  const path = join(folder.path, "file");
  await writeFile(path, "1");
  const { reloaded, reads } = numbers(path);
  expect([await reloaded.value(), await reloaded.value(), reads()]).toEqual([1, 1, 1]);
  await writeFile(path, "22");
  expect(await reloaded.value()).toBe(22);
  await writeFile(`${path}.new`, "33");
  await rename(`${path}.new`, path);
  expect(await reloaded.value()).toBe(33);
});

test("a change that is no good, or a file that is gone, leaves the earlier value, and is reported once", async () => {
  await using folder = await temporaryDirectory();
  const path = join(folder.path, "file");
  await writeFile(path, "1");
  const { reloaded, rejected } = numbers(path);
  await reloaded.value();
  await writeFile(path, "broken");
  expect([await reloaded.value(), await reloaded.value()]).toEqual([1, 1]);
  expect(rejected).toEqual(["not a number"]);
  await rm(path);
  expect(await reloaded.value()).toBe(1);
  await writeFile(path, "2");
  expect(await reloaded.value()).toBe(2);
  expect(rejected).toHaveLength(2);
});

test("throws while the files have never been good", async () => {
  await using folder = await temporaryDirectory();
  const path = join(folder.path, "file");
  const { reloaded } = numbers(path);
  expect(await faultFrom(reloaded.value())).toMatchObject({ kind: "invalid", code: "file-error" });
  await writeFile(path, "x");
  expect(await faultFrom(reloaded.value())).toMatchObject({ message: "not a number" });
  await writeFile(path, "5");
  expect(await reloaded.value()).toBe(5);
});
