import { inspect } from "node:util";
import { beforeEach, expect, test } from "vitest";
import { faultFrom, refusal } from "../support/faults.ts";
import { draftOf, emptyStore, selectorsOf } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const EXPIRES = new Date("2030-01-01T00:00:00Z");

export function tokenContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const tokens = () => current().store.tokens;

  test("T-N3 a token belongs to the key that uses it first", async () => {
    await tokens().create({ token: "secret", expiresAt: EXPIRES });
    for (let uses = 0; uses < 2; uses += 1)
      expect(await tokens().consume("secret", "k")).toEqual({ token: "secret", expiresAt: EXPIRES });
    expect(await tokens().consume("secret", "other")).toBeUndefined();
    expect(await tokens().consume("secret", "k")).toBeDefined();
    expect(await tokens().consume("never", "k")).toBeUndefined();
  });

  test.each(["Token", "token ", " token", "tokEn", "tökén", "token\u0301", "%", "tok_n", "token%"])(
    "T-S3 token and %j are not the same",
    async (other) => {
      await tokens().create({ token: "token", expiresAt: EXPIRES });
      expect(await tokens().consume(other, "k")).toBeUndefined();
      await tokens().create({ token: other, expiresAt: EXPIRES });
      expect(await tokens().consume("token", "k")).toMatchObject({ token: "token" });
      expect(await tokens().consume(other, "k")).toMatchObject({ token: other });
    },
  );

  test("T-J8 a token that is there already is refused without being shown, and its alias is not stored", async () => {
    await tokens().create({ token: "secret", expiresAt: EXPIRES });
    const fault = await faultFrom(tokens().create({ token: "secret", expiresAt: EXPIRES }, draftOf("alias")));
    expect(fault).toMatchObject(refusal("already_exists", "join-token-exists"));
    expect(inspect(fault, { depth: 10 })).not.toContain("secret");
    expect(await current().store.entries.count({})).toBe(0);
  });

  test("a token that has been used may be made again, and is then unused", async () => {
    await tokens().create({ token: "again", expiresAt: EXPIRES });
    await tokens().consume("again", "first");
    await tokens().create({ token: "again", expiresAt: EXPIRES });
    expect(await tokens().consume("again", "second")).toBeDefined();
    expect(await tokens().consume("again", "first")).toBeUndefined();
  });

  test("token and alias are stored together or not at all", async () => {
    await tokens().create({ token: "one", expiresAt: EXPIRES }, draftOf("alias"));
    expect((await current().store.entries.list({})).items).toMatchObject([
      draftOf("alias", { id: expect.any(String) }),
    ]);
    const broken = draftOf("broken", { selectors: [{ type: "unix", value: "a\0b" }] });
    await faultFrom(tokens().create({ token: "two", expiresAt: EXPIRES }, broken));
    expect(await tokens().consume("two", "k")).toBeUndefined();
    expect(await current().store.entries.count({})).toBe(1);
  });

  test("an alias that an administrator has made already is kept", async () => {
    const alias = draftOf("alias", { selectors: selectorsOf("spiffe_id:spiffe://a.test/spire/agent/join_token/x") });
    const { entry } = await current().store.entries.create({ ...alias, hint: "by hand" });
    await tokens().create({ token: "x", expiresAt: EXPIRES }, alias);
    expect((await current().store.entries.list({})).items).toEqual([entry]);
  });

  test("pruning deletes tokens that ended, and counts them", async () => {
    for (const [token, second] of [
      ["a", 10],
      ["b", 20],
      ["c", 30],
    ] as const) {
      await tokens().create({ token, expiresAt: new Date(second * 1000) });
    }
    expect(await tokens().prune(new Date(20_001))).toBe(2);
    expect(await tokens().consume("a", "k")).toBeUndefined();
    expect(await tokens().consume("c", "k")).toMatchObject({ token: "c" });
  });
}
