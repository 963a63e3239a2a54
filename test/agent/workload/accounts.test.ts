import { rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { AccountNames, parseAccounts } from "../../../agent/workload/accounts.ts";
import { temporaryDirectory } from "../../support/workload.ts";

describe("account names", () => {
  test.each([
    { line: "web:x:1000:1000::/:/bin/sh", id: 1000, name: "web", what: "a common line" },
    { line: "big:x:4294967295:1::/:", id: 4294967295, name: "big", what: "the largest id" },
    { line: "big:x:4294967296:1::/:", id: 0, name: undefined, what: "an id beyond 32 bits" },
    { line: "neg:x:-1:1::/:", id: -1, name: undefined, what: "a negative id" },
    { line: "+nis:x:7:7::/:", id: 7, name: undefined, what: "a NIS include" },
    { line: "-nis:x:7:7::/:", id: 7, name: undefined, what: "a NIS exclude" },
    { line: "#web:x:7:7::/:", id: 7, name: undefined, what: "a comment" },
    { line: ":x:7:7::/:", id: 7, name: undefined, what: "an empty name" },
    { line: "we b:x:7:7::/:", id: 7, name: undefined, what: "a name with a space" },
    { line: "web:x:0x7:7::/:", id: 7, name: undefined, what: "a hexadecimal id" },
    { line: "web:x", id: 0, name: undefined, what: "a short line" },
  ])("$what names $name", ({ line, id, name }) => {
    expect(parseAccounts(`root:x:0:0::/root:/bin/sh\n${line}\n`).get(id)).toBe(id === 0 ? "root" : name);
  });

  test("the first of two lines with one id wins", () => {
    expect(parseAccounts("root:x:0:0::/:\ntoor:x:0:0::/:\n").get(0)).toBe("root");
  });

  test("a changed or replaced file is read again, a missing one names nobody", async () => {
    await using folder = await temporaryDirectory();
    const passwd = join(folder.path, "passwd");
    const names = new AccountNames({ passwd, group: join(folder.path, "group") });
    expect(names.now().users.get(1000)).toBeUndefined();
    await writeFile(passwd, "web:x:1000:1000::/:\n");
    expect(names.now().users.get(1000)).toBe("web");
    expect(names.now().groups.get(1000)).toBeUndefined();
    await writeFile(`${passwd}.new`, "api:x:1000:1000::/:\n");
    await rename(`${passwd}.new`, passwd);
    expect(names.now().users.get(1000)).toBe("api");
  });
});
