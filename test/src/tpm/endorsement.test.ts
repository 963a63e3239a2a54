import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TAG } from "../../../src/crypto/der.ts";
import { encode, explicit, sequence } from "../../../src/crypto/der-writer.ts";
import { parseEndorsement } from "../../../src/tpm/endorsement.ts";
import { faultOf } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";
import { endorse, oaepOf } from "../../support/tpm-agents.ts";

const maker = await createCa({ uris: [] });
const rsa = (modulusLength = 2048): KeyObject => generateKeyPairSync("rsa", { modulusLength }).publicKey;
const spkiOf = (key: KeyObject): Buffer => key.export({ type: "spki", format: "der" });

async function parsed(key: KeyObject, publicKey: Buffer) {
  return parseEndorsement((await endorse(maker, key, { publicKey })).der);
}

describe("an endorsement certificate for OAEP", () => {
  test.each([
    { what: "with parameters", parameters: undefined },
    { what: "with the default ones", parameters: [sequence()] },
    { what: "without", parameters: [] },
  ])("$what is for the RSA key in it", async ({ parameters }) => {
    const key = rsa();
    const certificate = await parsed(key, oaepOf(key, parameters));
    expect(certificate.publicKey).toEqual(spkiOf(key));
    expect(certificate.key().equals(key)).toBe(true);
  });

  test.each([
    { what: "parameters that are none", parameters: [encode(TAG.null)] },
    { what: "parameters out of order", parameters: [sequence(explicit(1, sequence()), explicit(0, sequence()))] },
    { what: "more parameters", parameters: [sequence(), sequence()] },
  ])("T-X5 with $what is refused", async ({ parameters }) => {
    const key = rsa();
    const { der } = await endorse(maker, key, { publicKey: oaepOf(key, parameters) });
    expect(faultOf(() => parseEndorsement(der))).toMatchObject({ kind: "invalid" });
  });

  test("T-X6 is held to the same of its key", async () => {
    const short = rsa(1024);
    const certificate = await parsed(short, oaepOf(short));
    expect(faultOf(() => certificate.key())).toMatchObject({ kind: "invalid", code: "public-key" });
    const { publicKey: ec } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const other = await parsed(ec, oaepOf(ec));
    expect(faultOf(() => other.key())).toMatchObject({ kind: "invalid" });
  });
});
