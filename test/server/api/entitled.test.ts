import { beforeEach, expect, test } from "vitest";
import { whileEntitled } from "../../../server/api/entitled.ts";
import { Directory } from "../../../server/directory/authorized.ts";
import { atOnce } from "../../../server/directory/steps.ts";
import { faultFrom } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { id, ManualClock, makeEntry, START, TD } from "../ca/support.ts";
import { type Changes, changeSet, makeNode } from "../directory/support.ts";

const agent = id("/spire/agent/join_token/one");
const entry = makeEntry({ id: "web", spiffeId: id("/web"), parentId: agent });

let directory: Directory;
beforeEach(() => {
  directory = new Directory({ trustDomain: TD, clock: new ManualClock() });
  atOnce(directory.apply(changeSet({ entries: [entry], nodes: [makeNode({ id: agent })] })));
});

function signing(meanwhile: Changes): Promise<string> {
  return whileEntitled({ directory }, { agent, entry, log: new RecordingLog() }, async () => {
    atOnce(directory.apply(changeSet(meanwhile)));
    return "svid";
  });
}

test("what was signed for an agent that is entitled to it still is given out", async () => {
  expect(await signing({ entries: [{ ...entry, revisionNumber: entry.revisionNumber + 1 }] })).toBe("svid");
});

test.each([
  { title: "quarantined", meanwhile: { nodes: [makeNode({ id: agent, quarantine: { since: START, reason: "" } })] } },
  { title: "banned", meanwhile: { nodes: [makeNode({ id: agent, serialNumber: "" })] } },
  { title: "left without the entry", meanwhile: { deletedEntries: [entry.id] } },
])("T-C5 what was signed for an agent that was $title meanwhile is not given out", async ({ meanwhile }) => {
  expect(await faultFrom(signing(meanwhile))).toMatchObject({ kind: "not_found" });
});
