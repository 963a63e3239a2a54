import { expect, test } from "vitest";
import { EntryApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { startRpc } from "../support/rpc.ts";
import { complete } from "../support/scripted-server.ts";
import { runProgram } from "../support/transcript.ts";

const entry = (id: string, ...selectors: readonly [type: string, value: string][]) => ({
  id,
  spiffe_id: { trust_domain: "example.org", path: "/w" },
  parent_id: { trust_domain: "example.org", path: "/node" },
  selectors: selectors.map(([type, value]) => ({ type, value })),
});

test("entry show orders entries and the selectors of each, at a server that keeps them as they came", async () => {
  const entries = [
    entry("three", ["unix", "uid:1"], ["unix", "gid:2"], ["k8s", "ns:a"]),
    entry("later", ["unix", "uid:3"]),
    entry("first", ["unix", "uid:2"]),
  ];
  const listed = complete(EntryApi, { ListEntries: unary(async () => ({ entries, next_page_token: "" })) });
  await using server = await startRpc({ services: [listed] });
  const shown = await runProgram("server entry show -output json", { flags: ["-socketPath", server.path] });
  expect(shown).toMatchObject({ status: 0, stderr: "" });
  const found = JSON.parse(shown.stdout).entries as ReturnType<typeof entry>[];
  expect(found.map(({ id, selectors }) => [id, ...selectors.map(({ type, value }) => `${type}:${value}`)])).toEqual([
    ["first", "unix:uid:2"],
    ["later", "unix:uid:3"],
    ["three", "k8s:ns:a", "unix:gid:2", "unix:uid:1"],
  ]);
});
