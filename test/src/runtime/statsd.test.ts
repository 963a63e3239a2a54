import { createSocket } from "node:dgram";
import { once } from "node:events";
import { expect, test } from "vitest";
import { systemClock } from "../../../src/runtime/clock.ts";
import { MetricNaming, recordCall } from "../../../src/runtime/metrics.ts";
import { type StatsdDialect, StatsdSink } from "../../../src/runtime/statsd.ts";

/** What a collector receives of the same five numbers, line by line. */
async function received(dialect: StatsdDialect): Promise<string[]> {
  const collector = createSocket("udp4").bind(0, "127.0.0.1");
  await once(collector, "listening");
  const packets: string[] = [];
  collector.on("message", (packet) => packets.push(packet.toString()));
  const naming = new MetricNaming({ prefix: "spire_server", host: "node:1", blockedPrefixes: ["spire_server.hidden"] });
  {
    const address = `127.0.0.1:${collector.address().port}`;
    await using sink = new StatsdSink({ dialect, address, naming, clock: systemClock });
    recordCall(sink, "rpc.agent.v1.agent.attest_agent", { status: "OK", ms: 1.5 });
    sink.set("uptime_in_ms", 12);
    sink.increment("hidden.x");
    sink.observe("cache_manager.expiring_svids", 3);
  }
  while (packets.join("").split("\n").length < 5) await once(collector, "message");
  collector.close();
  return packets.join("").trimEnd().split("\n");
}

test("statsd gets labels as parts of the name", async () => {
  expect(await received("statsd")).toEqual([
    "spire_server.rpc.agent.v1.agent.attest_agent.OK.node_1:1.000000|c",
    "spire_server.rpc.agent.v1.agent.attest_agent.elapsed_time.OK.node_1:1.500000|ms",
    "spire_server.uptime_in_ms.node_1:12.000000|g",
    "spire_server.cache_manager.expiring_svids.node_1:3.000000|ms",
  ]);
});

test("DogStatsD gets labels as tags", async () => {
  expect(await received("dogstatsd")).toEqual([
    "spire_server.rpc.agent.v1.agent.attest_agent:1|c|#status:OK,host:node_1",
    "spire_server.rpc.agent.v1.agent.attest_agent.elapsed_time:1.5|ms|#status:OK,host:node_1",
    "spire_server.uptime_in_ms:12|g|#host:node_1",
    "spire_server.cache_manager.expiring_svids:3|ms|#host:node_1",
  ]);
});

test("packets fit every network, and what a flush cannot hold is dropped", async () => {
  const collector = createSocket("udp4").bind(0, "127.0.0.1");
  await once(collector, "listening");
  const sizes: number[] = [];
  collector.on("message", ({ length }) => sizes.push(length));
  const address = `127.0.0.1:${collector.address().port}`;
  const naming = new MetricNaming({ prefix: "p" });
  const sink = new StatsdSink({ dialect: "statsd", address, naming, clock: systemClock });
  for (let index = 0; index < 100_000; index += 1) sink.increment(`counter.${index % 100}`);
  await sink[Symbol.asyncDispose]();
  while (sizes.length < 5) await once(collector, "message");
  collector.close();
  expect(Math.max(...sizes)).toBeLessThanOrEqual(1400);
  expect(sizes.length).toBeLessThanOrEqual(256);
});
