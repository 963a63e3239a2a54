import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { describe, expect, test } from "vitest";
import { DerReader, TAG } from "../../../src/crypto/der.ts";
import { encode, encodeOid, sequence, setOf } from "../../../src/crypto/der-writer.ts";
import { checkName, encodeName, nameText, parseName } from "../../../src/crypto/name.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const MALFORMED = refusal("invalid", "asn1-malformed");

test("the parts stand in Go's order, whatever order they are given in", () => {
  const der = encodeName({
    serialNumber: "7",
    commonName: "web",
    organizationalUnit: ["DOWNSTREAM-1"],
    organization: ["SPIFFE"],
    country: ["US"],
  });
  expect(new x509.Name(new Uint8Array(der)).toString()).toBe("C=US, O=SPIFFE, OU=DOWNSTREAM-1, CN=web, 2.5.4.5=7");
});

test("the default subject of SPIRE has the bytes that Go makes", () => {
  const der = Buffer.from(encodeName({ country: ["US"], organization: ["SPIRE"] }));
  expect(der.toString("hex")).toBe("301d310b3009060355040613025553310e300c060355040a13055350495245");
});

test("values of one attribute share a set, in the order of their encodings", () => {
  const der = encodeName({ organization: ["b", "a"] });
  expect([...new DerReader(der).enter().rest(TAG.set)]).toHaveLength(1);
  expect(parseName(der)).toEqual({ organization: ["a", "b"] });
});

test("what is empty is left out", () => {
  expect(Buffer.from(encodeName({ organization: [], commonName: "" })).toString("hex")).toBe("3000");
  expect(parseName(encodeName({}))).toEqual({});
});

test("all parts are read back, text beyond ASCII included", () => {
  const name = {
    country: ["DE"],
    organization: ["Bäckerei"],
    organizationalUnit: ["a", "b"],
    locality: ["Köln"],
    province: ["NRW"],
    streetAddress: ["x 1"],
    postalCode: ["50667"],
    commonName: "web.example.org",
    serialNumber: "123",
  };
  expect(parseName(encodeName(name))).toEqual(name);
});

test.each([
  { name: { country: "US", organization: "SPIRE" }, text: "O=SPIRE,C=US" },
  { name: {}, text: "" },
  {
    name: { organization: ["a", "b"], commonName: "web", serialNumber: "1", postalCode: "5", streetAddress: "x" },
    text: "SERIALNUMBER=1,CN=web,POSTALCODE=5,STREET=x,O=a+O=b",
  },
  { name: { commonName: ' a,b+c"d\\e<f>g;h#i ' }, text: 'CN=\\ a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h#i\\ ' },
  { name: { commonName: "#1" }, text: "CN=\\#1" },
])("$text is how Go prints the name", ({ name, text }) => {
  expect(nameText(encodeName(name))).toBe(text);
});

test("attributes and string types that nobody asked for are passed over", () => {
  const pair = (oid: string, tag: number): Uint8Array => setOf(sequence(encodeOid(oid), encode(tag, Buffer.from("x"))));
  const der = sequence(
    pair("1.2.3.4", TAG.utf8String),
    pair("2.5.4.10", TAG.bmpString),
    pair("2.5.4.3", TAG.teletexString),
  );
  expect(parseName(der)).toEqual({ commonName: "x" });
});

describe("refused", () => {
  test.each([
    { what: "a set without attributes", der: sequence(encode(TAG.set)) },
    { what: "an attribute without a value", der: sequence(setOf(sequence(encodeOid("2.5.4.3")))) },
    {
      what: "an attribute with two values",
      der: sequence(setOf(sequence(encodeOid("2.5.4.3"), encode(TAG.utf8String), encode(TAG.utf8String)))),
    },
    { what: "a sequence where a set belongs", der: sequence(sequence()) },
  ])("$what", ({ der }) => {
    expect(faultOf(() => checkName(new DerReader(der).read()))).toMatchObject(MALFORMED);
  });
});
