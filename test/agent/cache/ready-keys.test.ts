import { setImmediate as nextTurn } from "node:timers/promises";
import { expect, test } from "vitest";
import { ReadyKeys } from "../../../agent/cache/ready-keys.ts";
import { hexOf, type LocalSigner } from "../../../src/crypto/key.ts";

/** Making an RSA key takes far longer than a turn of the event loop: undefined when it has to be made. */
function atOnce(keys: ReadyKeys): Promise<LocalSigner | undefined> {
  return Promise.race([keys.take(), nextTurn(undefined)]);
}

test("keys made ahead are there at once, each for one taker only, and are made again", async () => {
  const keys = new ReadyKeys("rsa-2048");
  expect(await atOnce(keys)).toBeUndefined();
  await keys.fill();
  const taken = new Set<string>();
  for (let round = 0; round < 2; round++) {
    for (let count = 0; count < 8; count++) taken.add(hexOf((await atOnce(keys))?.publicKey ?? Buffer.alloc(0)));
    await keys.fill();
  }
  expect(taken.size).toBe(16);
  expect(taken.has("")).toBe(false);
});

test("whoever finds none ready waits for one of its own", async () => {
  const keys = new ReadyKeys("ec-p256");
  const taken = await Promise.all(Array.from({ length: 50 }, () => keys.take()));
  expect(new Set(taken.map(({ publicKey }) => hexOf(publicKey))).size).toBe(50);
  expect(new Set(taken.map(({ keyType }) => keyType))).toEqual(new Set(["ec-p256"]));
});
