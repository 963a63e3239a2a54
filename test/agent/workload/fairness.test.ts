import { expect, test } from "vitest";
import { type Attestor, WorkloadAttestor } from "../../../agent/workload/attest.ts";
import { type PeerProcess, pinPid } from "../../../src/rpc/peer-credentials.ts";
import { Shares } from "../../../src/rpc/shares.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseSelector } from "../../../src/spiffe/selector.ts";
import { eventually } from "../../support/eventually.ts";
import { RecordingLog } from "../../support/recording-log.ts";

/** Answers when the test says so. */
class HeldAttestor implements Attestor {
  readonly name = "held";
  readonly asked: (string | undefined)[] = [];
  readonly #open = Promise.withResolvers<void>();

  async attest(peer: PeerProcess) {
    this.asked.push(peer.cgroup);
    await this.#open.promise;
    return [parseSelector("held:yes")];
  }

  release(): void {
    this.#open.resolve();
  }
}

test("T-W10 the storm of one control group leaves its user's others room, and every caller is served in the end", async () => {
  using own = pinPid(process.pid);
  const attestor = new HeldAttestor();
  const workloads = new WorkloadAttestor({ attestors: [attestor], clock: systemClock, log: new RecordingLog() });
  const { signal } = new AbortController();
  const noisy = Array.from({ length: 100 }, () => workloads.attest({ ...own, cgroup: "noisy" }, signal));
  await eventually("the noisy group has its share", () => attestor.asked.length === 16);
  const quiet = workloads.attest({ ...own, cgroup: "quiet" }, signal);
  await eventually("the quiet one is being attested", () => attestor.asked.includes("quiet"));
  expect(attestor.asked.filter((cgroup) => cgroup === "noisy")).toHaveLength(16);
  attestor.release();
  for (const selectors of await Promise.all([quiet, ...noisy])) expect(selectors).toEqual([parseSelector("held:yes")]);
});

test("T-W10 shares are counted by user and by control group, taken whole or not at all, and given back once", () => {
  using own = pinPid(process.pid);
  const shares = new Shares({ perUser: 30, perCgroup: 20 }, { what: "too many connections", code: "too-many" });
  const take = (cgroup: string, amount: number) => shares.take({ ...own, cgroup }, amount);
  const [first] = [take("a", 10), take("a", 10)];
  expect(() => take("a", 1)).toThrow("the control group of process");
  take("b", 10);
  expect(() => take("c", 1)).toThrow(`uid ${own.uid} has too many connections`);
  first?.();
  first?.();
  take("a", 10);
  expect(() => take("c", 1)).toThrow(`uid ${own.uid} has too many connections`);
});
