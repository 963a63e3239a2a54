import { inspect } from "node:util";
import { describe, expect, test } from "vitest";
import { parseConnectionString } from "../../../server/store/connection-string.ts";
import { postgresTls } from "../../../server/store/postgres-tls.ts";
import { faultFrom, faultOf, refusal } from "../../support/faults.ts";

describe("a connection string", () => {
  test.each<{ text: string; parameters: Record<string, string> }>([
    {
      text: "postgres://spire:p%40ss%2Fword@db.example:6543/names?sslmode=verify-full&connect_timeout=3",
      parameters: {
        user: "spire",
        password: "p@ss/word",
        host: "db.example",
        port: "6543",
        dbname: "names",
        sslmode: "verify-full",
        connect_timeout: "3",
      },
    },
    { text: "postgresql://localhost", parameters: { host: "localhost" } },
    { text: "postgres://u@[::1]:5432/d", parameters: { user: "u", host: "::1", port: "5432", dbname: "d" } },
    { text: "postgres:///d?host=/run/postgresql", parameters: { dbname: "d", host: "/run/postgresql" } },
    { text: "postgres://%2Frun%2Fpostgresql/d", parameters: { dbname: "d", host: "/run/postgresql" } },
    {
      text: "dbname=spire user=spire password=secret host=localhost sslmode=disable",
      parameters: { dbname: "spire", user: "spire", password: "secret", host: "localhost", sslmode: "disable" },
    },
    { text: "  dbname = 'two words'\n user=u ", parameters: { dbname: "two words", user: "u" } },
    {
      text: String.raw`password='it\'s \\ here' dbname=d`,
      parameters: { password: String.raw`it's \ here`, dbname: "d" },
    },
    { text: String.raw`password=a\ b user=''`, parameters: { password: "a b", user: "" } },
    {
      text: "database=d target_session_attrs=read-write",
      parameters: { dbname: "d", target_session_attrs: "read-write" },
    },
  ])("$text is understood as libpq does", ({ text, parameters }) => {
    expect(Object.fromEntries(parseConnectionString(text))).toEqual(parameters);
  });

  test.each(
    [
      { text: "canary", what: "neither form" },
      { text: "password='canary", what: "an open quote" },
      { text: "password='canary'x", what: "text after a quote" },
      { text: "password = ", what: "a keyword without value at the end", fine: true },
      { text: "sslmod=canary", what: "an unknown keyword" },
      { text: "postgres://u:canary@h/d?sslmod=x", what: "an unknown parameter" },
      { text: "postgres://u:canary@h:port/d", what: "a port that is none" },
      { text: "postgres://u:can%zzary@h/d", what: "a broken escape" },
      { text: "password=canary port=70000", what: "a port out of range" },
      { text: "password=canary host=a,b", what: "two hosts" },
      { text: "postgres://u:canary@a,b/d", what: "two hosts in a URL" },
    ].filter(({ fine }) => fine !== true),
  )("T-J8 $what is refused, and no value is shown", ({ text }) => {
    const fault = faultOf(() => parseConnectionString(text));
    expect(fault).toMatchObject(refusal("invalid", "connection-string"));
    expect(fault.hint).toContain("postgres://");
    expect(inspect(fault, { depth: 10 })).not.toMatch(/canary|can%zzary/);
  });

  test("an empty one is refused by nothing, and leaves everything to the environment", () => {
    expect(parseConnectionString("")).toEqual(new Map());
  });
});

describe("sslmode", () => {
  const tls = (text: string, files = {}) => postgresTls(parseConnectionString(text), files);
  const CA = new URL("../../../package.json", import.meta.url).pathname;

  test.each([
    { text: "host=h", chain: false, name: false, preferred: true },
    { text: "host=h sslmode=prefer", chain: false, name: false, preferred: true },
    { text: "host=h sslmode=require", chain: false, name: false, preferred: false },
    { text: `host=h sslmode=require sslrootcert=${CA}`, chain: true, name: false, preferred: false },
    { text: "host=h sslmode=verify-ca", chain: true, name: false, preferred: false },
    { text: "host=h sslmode=verify-full sslrootcert=system", chain: true, name: true, preferred: false },
    { text: `host=h sslrootcert=${CA}`, chain: true, name: true, preferred: false },
  ])("$text checks the chain: $chain, the name: $name", async ({ text, chain, name, preferred }) => {
    const { options, preferred: mayFallBack } = await tls(text);
    expect(options).toMatchObject({ rejectUnauthorized: chain });
    expect(options !== false && options.checkServerIdentity === undefined).toBe(name);
    expect(mayFallBack).toBe(preferred);
  });

  test.each(["host=h sslmode=disable", "host=/run/postgresql sslmode=verify-full"])("%s has no TLS", async (text) => {
    expect(await tls(text)).toEqual({ options: false, preferred: false });
  });

  test("root_ca_path alone means that chain and name are checked", async () => {
    expect((await tls("host=h", { rootCaPath: CA })).options).toMatchObject({ rejectUnauthorized: true });
  });

  test("an unknown mode and a file that is not there are refused", async () => {
    expect(await faultFrom(tls("host=h sslmode=maybe"))).toMatchObject(refusal("invalid", "connection-string"));
    expect(await faultFrom(tls("host=h sslrootcert=/nonexistent"))).toMatchObject(refusal("invalid", "datastore-tls"));
  });
});
