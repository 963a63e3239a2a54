import { expect, test } from "vitest";
import { Gate } from "../../../agent/node/gate.ts";

/** Work that starts when it is let in and ends when told. */
function piece(log: string[], name: string) {
  const { promise, resolve } = Promise.withResolvers<void>();
  const run = async () => {
    log.push(`${name} in`);
    await promise;
    log.push(`${name} out`);
  };
  return { run, end: resolve };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

test("one that needs to be alone waits for those inside and holds back those who come later", async () => {
  const gate = new Gate();
  const log: string[] = [];
  const [a, b, alone, late] = [piece(log, "a"), piece(log, "b"), piece(log, "alone"), piece(log, "late")];
  const all = [gate.shared(a.run), gate.shared(b.run), gate.exclusive(alone.run), gate.shared(late.run)];
  await turn();
  expect(log).toEqual(["a in", "b in"]);
  a.end();
  await turn();
  b.end();
  await turn();
  expect(log).toEqual(["a in", "b in", "a out", "b out", "alone in"]);
  alone.end();
  await turn();
  late.end();
  await Promise.all(all);
  expect(log.slice(5)).toEqual(["alone out", "late in", "late out"]);
});

test("two that need to be alone go one after the other, also when the first fails", async () => {
  const gate = new Gate();
  const log: string[] = [];
  const second = piece(log, "second");
  const failing = gate.exclusive(async () => {
    await turn();
    log.push("first fails");
    throw new Error("no");
  });
  const following = gate.exclusive(second.run);
  await expect(failing).rejects.toThrow("no");
  second.end();
  await following;
  expect(log).toEqual(["first fails", "second in", "second out"]);
  expect(await gate.shared(async () => "open again")).toBe("open again");
});
