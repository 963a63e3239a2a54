import { describe, expect, test } from "vitest";
import { decodePem, encodePem } from "../../../src/crypto/pem.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { openssl } from "../../support/openssl.ts";

const MALFORMED = refusal("invalid", "pem-malformed");

test("blocks are found among other text and other labels, in order", () => {
  const text = [
    "Bag Attributes",
    encodePem("CERTIFICATE", Buffer.from("one")),
    encodePem("PRIVATE KEY", Buffer.from("key")),
    encodePem("CERTIFICATE", Buffer.from("two")),
  ].join("\n");
  expect(decodePem(text, "CERTIFICATE").map(String)).toEqual(["one", "two"]);
  expect(decodePem(text, "PRIVATE KEY").map(String)).toEqual(["key"]);
  expect(decodePem(text, "CERTIFICATE REQUEST")).toEqual([]);
  expect(decodePem("", "CERTIFICATE")).toEqual([]);
});

test("line ends of Windows and blanks are no matter", () => {
  const text = encodePem("CERTIFICATE", Buffer.alloc(100, 7)).replaceAll("\n", " \r\n\t");
  expect(decodePem(text, "CERTIFICATE")).toEqual([Buffer.alloc(100, 7)]);
});

test("openssl reads what is written, and writes what is read", async () => {
  await using directory = await openssl();
  const der = await directory.run(
    "genpkey",
    "-algorithm",
    "EC",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-outform",
    "DER",
  );
  await directory.write("key.der", der);
  await directory.run(
    "pkcs8",
    "-topk8",
    "-nocrypt",
    "-inform",
    "DER",
    "-in",
    "key.der",
    "-outform",
    "DER",
    "-out",
    "key.p8",
  );
  const pem = await directory.run("pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-in", "key.der", "-outform", "PEM");
  const [decoded = Buffer.alloc(0)] = decodePem(pem.toString(), "PRIVATE KEY");
  expect(encodePem("PRIVATE KEY", decoded)).toBe(pem.toString());
});

describe("refused", () => {
  test.each([
    { what: "a block without an end", text: "-----BEGIN CERTIFICATE-----\nAAAA\n" },
    {
      what: "a block that ends with another label",
      text: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END PRIVATE KEY-----\n",
    },
    {
      what: "headers inside a block",
      text: "-----BEGIN CERTIFICATE-----\nProc-Type: 4\n\nAAAA\n-----END CERTIFICATE-----\n",
    },
    { what: "characters beyond base64", text: "-----BEGIN CERTIFICATE-----\nAA_A\n-----END CERTIFICATE-----\n" },
    { what: "padding in the middle", text: "-----BEGIN CERTIFICATE-----\nAA==AAAA\n-----END CERTIFICATE-----\n" },
    { what: "a group that is cut short", text: "-----BEGIN CERTIFICATE-----\nAAAAA\n-----END CERTIFICATE-----\n" },
    {
      what: "a block inside a block",
      text: "-----BEGIN CERTIFICATE-----\nAAAA\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    },
  ])("$what", ({ text }) => {
    expect(faultOf(() => decodePem(text, "CERTIFICATE"))).toMatchObject(MALFORMED);
  });
});

describe("T-X5 texts that cost other parsers quadratic time", () => {
  const MIB = 1024 * 1024;
  test.each([
    { what: "only beginnings", text: "-----BEGIN CERTIFICATE-----\n".repeat(140_000) },
    {
      what: "beginnings and one end",
      text: `${"-----BEGIN CERTIFICATE-----\n".repeat(140_000)}-----END CERTIFICATE-----`,
    },
    {
      what: "blanks before a wrong character",
      text: `-----BEGIN CERTIFICATE-----\n${" ".repeat(3 * MIB)}!\n-----END CERTIFICATE-----`,
    },
    {
      what: "base64 before a wrong character",
      text: `-----BEGIN CERTIFICATE-----\n${"A".repeat(3 * MIB)}!\n-----END CERTIFICATE-----`,
    },
    { what: "equal signs", text: `-----BEGIN CERTIFICATE-----\n${"=".repeat(3 * MIB)}\n-----END CERTIFICATE-----` },
    { what: "dashes", text: "-".repeat(4 * MIB - 1) },
    { what: "more than 4 MiB", text: "A".repeat(4 * MIB + 1) },
  ])("$what: answered within a second", ({ text }) => {
    const started = systemClock.monotonic();
    try {
      expect(decodePem(text, "CERTIFICATE")).toEqual([]);
    } catch (error) {
      expect(error).toMatchObject(MALFORMED);
    }
    expect(systemClock.monotonic() - started).toBeLessThan(1000);
  });
});
