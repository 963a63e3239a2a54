import { expect, test } from "vitest";
import { dialUnix } from "../../../src/rpc/dial.ts";
import { healthService } from "../../../src/rpc/health.ts";
import { HealthApi } from "../../../src/rpc/protos.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { startRpc } from "../../support/rpc.ts";

test.each([
  { what: "ready", isReady: async () => true, status: "SERVING" },
  { what: "not ready", isReady: async () => false, status: "NOT_SERVING" },
  { what: "unable to tell", isReady: () => Promise.reject(new Error("no")), status: "NOT_SERVING" },
])("a process that is $what says so", async ({ isReady, status }) => {
  await using server = await startRpc({ services: [healthService({ isReady, clock: systemClock })] });
  using channel = dialUnix(server.path);
  expect(await channel.client(HealthApi).Check({})).toEqual({ status });
  expect(await channel.client(HealthApi).List({})).toEqual({ statuses: { "": { status } } });
});

test("single services are not told apart", async () => {
  await using server = await startRpc({ services: [healthService({ isReady: async () => true, clock: systemClock })] });
  using channel = dialUnix(server.path);
  const health = channel.client(HealthApi);
  expect(await faultFrom(health.Check({ service: "SpiffeWorkloadAPI" }))).toMatchObject({
    kind: "invalid",
    message: "per-service health is not supported",
  });
  const watch = health.Watch({ service: "SpiffeWorkloadAPI" })[Symbol.asyncIterator]();
  expect(await watch.next()).toMatchObject({ value: { status: "SERVICE_UNKNOWN" } });
  await watch.return?.();
});

test("a watcher hears of each change, and only of changes", async () => {
  const clock = new FakeClock();
  let ready = false;
  let asked = 0;
  const isReady = async (): Promise<boolean> => {
    asked++;
    return ready;
  };
  await using server = await startRpc({ services: [healthService({ isReady, clock })] });
  using channel = dialUnix(server.path);
  const watch = channel.client(HealthApi).Watch({})[Symbol.asyncIterator]();
  expect(await watch.next()).toMatchObject({ value: { status: "NOT_SERVING" } });
  const heard = watch.next();
  await eventually("a pause", () => clock.sleeping === 1);
  await clock.advance(5_000);
  await eventually("another question", () => asked === 2);
  ready = true;
  await eventually("a pause", () => clock.sleeping === 1);
  await clock.advance(5_000);
  expect(await heard).toMatchObject({ value: { status: "SERVING" } });
  expect(asked).toBe(3);
  await watch.return?.();
});
