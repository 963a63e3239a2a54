import { expect, test } from "vitest";
import { AttestationHistory, type AttestationRecord } from "../../../agent/workload/history.ts";

function record(pid: number, characters: number): AttestationRecord {
  const selectors = [{ type: "docker", value: "x".repeat(characters) }];
  const sources = [{ attestor: "docker", tookMs: 1, selectors }];
  return { at: new Date(0), pid, uid: 0, gid: 0, tookMs: 1, sources };
}

const pidsOf = ({ records }: AttestationHistory) => records.map(({ pid }) => pid);

test("T-F4 what is remembered of callers is bounded by their number, and by how much was found", () => {
  const history = new AttestationHistory();
  for (let pid = 1; pid <= 300; pid += 1) history.add(record(pid, 10));
  expect(pidsOf(history)).toHaveLength(256);
  expect(pidsOf(history)[0]).toBe(45);
  for (let pid = 301; pid <= 320; pid += 1) history.add(record(pid, 1024 * 1024));
  expect(pidsOf(history)).toEqual(Array.from({ length: 16 }, (_, at) => 305 + at));
  history.add(record(321, 17 * 1024 * 1024));
  expect(pidsOf(history)).toEqual([321]);
  history.add(record(322, 10));
  expect(pidsOf(history)).toEqual([322]);
});
