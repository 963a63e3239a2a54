import { once } from "node:events";
import { Socket } from "node:net";
import { expect, test } from "vitest";
import { type Attestor, WorkloadAttestor } from "../../../agent/workload/attest.ts";
import { ConnectionCaps } from "../../../src/rpc/connection-caps.ts";
import { type PeerProcess, pinPid } from "../../../src/rpc/peer-credentials.ts";
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

test("T-W10 connections are counted by user and by control group, and given back when they close", async () => {
  using own = pinPid(process.pid);
  const caps = new ConnectionCaps({ perUser: 3, perCgroup: 2 });
  const peer = (cgroup: string): PeerProcess => ({ ...own, cgroup });
  const sockets: Socket[] = [];
  const hold = (cgroup: string): void => {
    const socket = new Socket();
    caps.hold(socket, peer(cgroup));
    sockets.push(socket);
  };
  hold("a");
  hold("a");
  const refused = new Socket();
  expect(() => caps.hold(refused, peer("a"))).toThrow("the control group of process");
  refused.destroy();
  await once(refused, "close");
  hold("b");
  expect(() => caps.hold(new Socket(), peer("c"))).toThrow(`uid ${own.uid} has too many connections`);
  sockets[0]?.destroy();
  if (sockets[0] !== undefined) await once(sockets[0], "close");
  hold("a");
  for (const socket of sockets) socket.destroy();
});
