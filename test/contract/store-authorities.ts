import { beforeEach, expect, test } from "vitest";
import { authorityOf, emptyStore } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

export function authorityContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const authorities = () => current().store.authorities;

  test("records come back as they went in, by kind, in the order in which they were issued", async () => {
    const second = authorityOf("bb", { issuedAt: new Date("2026-02-01T00:00:00Z"), upstreamAuthorityId: "cc" });
    const first = authorityOf("aa", { certificateChain: [], status: "old", tainted: true });
    const token = authorityOf("aa", { kind: "jwt", keyId: "JWT-Signer-A", certificateChain: [] });
    await authorities().save([second, token, first]);
    expect(await authorities().list("x509")).toEqual([first, second].map(asBuffers));
    expect(await authorities().list("jwt")).toEqual([token].map(asBuffers));
    expect(await authorities().list("wit")).toEqual([]);
  });

  test("saving again replaces, and several records change together", async () => {
    await authorities().save([authorityOf("aa"), authorityOf("bb", { status: "prepared" })]);
    await authorities().save([authorityOf("aa", { status: "old" }), authorityOf("bb", { status: "active" })]);
    const states = (await authorities().list("x509")).map(({ authorityId, status }) => `${authorityId} ${status}`);
    expect(states).toEqual(["aa old", "bb active"]);
    const broken = authorityOf("bb", { keyId: "nul\0byte" });
    await expect(authorities().save([authorityOf("aa", { status: "active" }), broken])).rejects.toThrow();
    expect((await authorities().list("x509"))[0]).toMatchObject({ authorityId: "aa", status: "old" });
  });

  test("pruning deletes records that ended", async () => {
    await authorities().save([
      authorityOf("aa", { expiresAt: new Date(1000) }),
      authorityOf("bb", { expiresAt: new Date(3000) }),
    ]);
    expect(await authorities().prune(new Date(2000))).toBe(1);
    expect((await authorities().list("x509")).map(({ authorityId }) => authorityId)).toEqual(["bb"]);
  });
}

/** Bytes are compared as bytes, whichever array type carries them. */
function asBuffers(record: ReturnType<typeof authorityOf>): unknown {
  return {
    ...record,
    certificateChain: record.certificateChain.map((der) => Buffer.from(der)),
    publicKey: Buffer.from(record.publicKey),
  };
}
