import { beforeEach, expect, test } from "vitest";
import type { BundleLinkRecord } from "../../server/store/store.ts";
import { emptyStore } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const END = new Date("2030-01-01T00:00:00.123Z");

export function linkOf(signerId: string, fields: Partial<BundleLinkRecord> = {}): BundleLinkRecord {
  return {
    ...{ signerId, statement: `said by ${signerId}`, authorityIds: [signerId], expiresAt: END },
    x509Authorities: [Buffer.from([0, 255, 92, 34])],
    ...fields,
  };
}

export function bundleLinkContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const links = () => current().store.links;
  const signers = async () => (await links().list()).map(({ signerId }) => signerId);

  test("what an authority said comes back as it went in, and replaces what it said before", async () => {
    await links().save(linkOf("aa"));
    await links().save(linkOf("bb", { authorityIds: ["bb", "cc"] }));
    const later = linkOf("aa", { statement: "later", authorityIds: [], x509Authorities: [], expiresAt: new Date(0) });
    await links().save(later);
    expect(await links().list()).toEqual([later, linkOf("bb", { authorityIds: ["bb", "cc"] })]);
  });

  test("T-N12 with an authority goes what it said and what names it", async () => {
    for (const link of [linkOf("aa", { authorityIds: ["aa", "bb"] }), linkOf("bb"), linkOf("cc")])
      await links().save(link);
    await links().delete("bb");
    expect(await signers()).toEqual(["cc"]);
    await links().delete("unknown");
    expect(await signers()).toEqual(["cc"]);
  });

  test("pruning deletes what ended", async () => {
    await links().save(linkOf("aa"));
    await links().save(linkOf("bb", { expiresAt: new Date(END.getTime() + 1) }));
    expect(await links().prune(new Date(END.getTime() + 1))).toBe(1);
    expect(await signers()).toEqual(["bb"]);
  });
}
