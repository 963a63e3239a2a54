import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { AgentState } from "../../../agent/node/state.ts";
import { encodePem } from "../../../src/crypto/pem.ts";
import { isFault } from "../../../src/runtime/fault.ts";
import { createCa } from "../../support/pki.ts";
import { temporaryDirectory } from "../../support/workload.ts";

async function svidAndRoot() {
  const ca = await createCa({ trustDomain: "home.test" });
  return { ca, svid: await ca.issue({ id: "spiffe://home.test/spire/agent/join_token/abc" }) };
}

const pemText = (der: Uint8Array) => Buffer.from(encodePem("CERTIFICATE", der)).toString("base64");

describe("agent-data.json", () => {
  test("is SPIRE's form exactly: base64 of PEM, the members in its order, null for none", async () => {
    await using folder = await temporaryDirectory();
    const { ca, svid } = await svidAndRoot();
    const state = await AgentState.load(folder.path);
    await state.update({ svid: svid.chain, reattestable: false });
    await state.update({ bundle: [ca.der] });
    const path = join(folder.path, "agent-data.json");
    expect(await readFile(path, "utf8")).toBe(
      `{"svid":["${pemText(svid.der)}"],"bundle":["${pemText(ca.der)}"],"reattestable":false,` +
        `"bootstrap_use":2,"bootstrap_start_time":"0001-01-01T00:00:00Z","connection_attempts":0}`,
    );
    await state.deleteSvid();
    expect(JSON.parse(await readFile(path, "utf8"))).toMatchObject({ svid: null, reattestable: false });
  });

  test("T-F2 is written with mode 0600 whatever the umask", async () => {
    await using folder = await temporaryDirectory();
    const { svid } = await svidAndRoot();
    const before = process.umask(0);
    try {
      await (await AgentState.load(folder.path)).update({ svid: svid.chain });
    } finally {
      process.umask(before);
    }
    expect((await stat(join(folder.path, "agent-data.json"))).mode & 0o777).toBe(0o600);
  });

  test("a file of SPIRE's agent is taken over", async () => {
    await using folder = await temporaryDirectory();
    const { ca, svid } = await svidAndRoot();
    const file = {
      svid: svid.chain.map(pemText),
      bundle: [pemText(ca.der)],
      reattestable: true,
      bootstrap_use: 2,
      bootstrap_start_time: "0001-01-01T00:00:00Z",
      connection_attempts: 0,
    };
    await writeFile(join(folder.path, "agent-data.json"), JSON.stringify(file));
    const { data } = await AgentState.load(folder.path);
    expect(data.reattestable).toBe(true);
    expect(data.svid.map((der) => Buffer.from(der))).toEqual(svid.chain.map((der) => Buffer.from(der)));
    expect(data.bundle.map((der) => Buffer.from(der))).toEqual([Buffer.from(ca.der)]);
  });

  test("no file means nothing is known", async () => {
    await using folder = await temporaryDirectory();
    expect((await AgentState.load(folder.path)).data).toEqual({ svid: [], bundle: [], reattestable: false });
  });

  test("many changes at once leave the last one on disk", async () => {
    await using folder = await temporaryDirectory();
    const { ca } = await svidAndRoot();
    const svids = await Promise.all(Array.from({ length: 8 }, () => ca.issue()));
    const state = await AgentState.load(folder.path);
    await Promise.all(svids.map(({ chain }) => state.update({ svid: chain })));
    const { data } = await AgentState.load(folder.path);
    expect(Buffer.compare(data.svid[0]!, svids.at(-1)!.der)).toBe(0);
  });

  test.each([
    { what: "half of a file", text: '{"svid":["LS0tLS1C' },
    { what: "an empty file", text: "" },
    { what: "something else", text: "[]" },
    { what: "an SVID that is no certificate", text: '{"svid":["aGVsbG8="]}' },
    { what: "a number for a list", text: '{"svid":5}' },
    { what: "more than 4 MiB", text: " ".repeat(4 * 1024 * 1024 + 1) },
  ])("$what is refused by the file's name, and left as it is", async ({ text }) => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "agent-data.json");
    await writeFile(path, text);
    const failure = await AgentState.load(folder.path).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(isFault(failure, "precondition") && failure.code).toBe("agent-data-damaged");
    expect(String(failure)).toContain(path);
    expect(await readFile(path, "utf8")).toBe(text);
  });
});
