import { beforeAll, describe, expect, test } from "vitest";
import { checkRevocation, parseRevocationList } from "../../../src/client/crl.ts";
import { openssl } from "../../support/openssl.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { makeCrl } from "./crl-fixture.ts";

let root: TestCa;
let middle: TestCa;
let leaf: Issued;
beforeAll(async () => {
  root = await createCa();
  middle = await root.intermediate();
  leaf = await middle.issue();
});

const serialOf = (issued: Issued): bigint => BigInt(issued.certificate.serialNumber);
const revoked = { kind: "denied", code: "certificate-revoked" };

describe("WAPI-65 a revocation list", () => {
  test("is read as openssl reads it", async () => {
    const der = await makeCrl(root, [1n, 0xffn]);
    await using folder = await openssl();
    await folder.write("list.der", der);
    const text = (await folder.run("crl", "-inform", "DER", "-in", "list.der", "-noout", "-text")).toString();
    expect(text).toContain("Serial Number: 01");
    expect(text).toContain("Serial Number: FF");
    expect([...parseRevocationList(der).revoked]).toEqual(["1", "255"]);
    expect(parseRevocationList(der).nextUpdate).toEqual(new Date("2036-01-01T00:00:00Z"));
  });

  test("may be empty", async () => {
    expect(parseRevocationList(await makeCrl(root, [])).revoked.size).toBe(0);
  });

  test.each([
    { what: "garbage", change: () => Buffer.from("garbage") },
    { what: "nothing", change: () => Buffer.alloc(0) },
    { what: "PEM", change: (der: Buffer) => Buffer.from(`-----BEGIN X509 CRL-----\n${der.toString("base64")}\n`) },
    { what: "a truncated list", change: (der: Buffer) => der.subarray(0, -1) },
    { what: "a list with a byte after it", change: (der: Buffer) => Buffer.concat([der, Buffer.of(0)]) },
    { what: "a certificate", change: () => Buffer.from(root.der) },
  ])("is refused when it is $what", async ({ change }) => {
    const der = Buffer.from(await makeCrl(root, [1n]));
    expect(() => parseRevocationList(change(der))).toThrow(expect.objectContaining({ kind: "invalid" }));
    expect(() => parseRevocationList(der)).not.toThrow();
  });
});

describe("WAPI-65 a certificate is refused", () => {
  const check = async (crl: Uint8Array): Promise<void> =>
    checkRevocation(leaf.certificates, [root.certificate], [parseRevocationList(crl)]);

  test("when its issuer, in the chain, revoked it", async () => {
    await expect(check(await makeCrl(middle, [serialOf(leaf)]))).rejects.toMatchObject(revoked);
  });

  test("when its issuer, an authority, revoked an intermediate", async () => {
    await expect(check(await makeCrl(root, [serialOf(middle)]))).rejects.toMatchObject(revoked);
  });

  test("not when the list has other serial numbers", async () => {
    await expect(check(await makeCrl(middle, [serialOf(leaf) + 1n]))).resolves.toBeUndefined();
  });

  test("not when another issuer lists its serial number", async () => {
    await expect(check(await makeCrl(root, [serialOf(leaf)]))).resolves.toBeUndefined();
  });

  test("not when the list has the issuer's name and another key's signature", async () => {
    const other = await createCa();
    await expect(check(await makeCrl(middle, [serialOf(leaf)], other.signer))).resolves.toBeUndefined();
  });
});
