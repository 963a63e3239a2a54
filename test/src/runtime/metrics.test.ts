import { describe, expect, test } from "vitest";
import { allMetrics, MetricNaming, type NamingOptions, noMetrics, recordCall } from "../../../src/runtime/metrics.ts";
import { PrometheusRegistry } from "../../../src/runtime/prometheus.ts";
import { FakeClock } from "../../support/clock.ts";

function registry(options: Partial<NamingOptions> = {}, clock = new FakeClock()): PrometheusRegistry {
  return new PrometheusRegistry(new MetricNaming({ prefix: "spire_server", ...options }), clock);
}

/** The lines that are no comments. */
function values(metrics: PrometheusRegistry): string[] {
  return metrics
    .text()
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"));
}

describe("the text that Prometheus reads", () => {
  test("counters add up, gauges keep the last value, families are sorted and typed", () => {
    const metrics = registry();
    metrics.increment("server_ca.sign.x509_svid");
    metrics.increment("server_ca.sign.x509_svid", undefined, 2);
    metrics.set("entry.deleted", 7);
    metrics.set("entry.deleted", 3);
    expect(metrics.text()).toBe(
      [
        "# HELP spire_server_entry_deleted spire_server_entry_deleted",
        "# TYPE spire_server_entry_deleted gauge",
        "spire_server_entry_deleted 3",
        "# HELP spire_server_server_ca_sign_x509_svid spire_server_server_ca_sign_x509_svid",
        "# TYPE spire_server_server_ca_sign_x509_svid counter",
        "spire_server_server_ca_sign_x509_svid 3",
        "",
      ].join("\n"),
    );
  });

  test("a call is a counter and a summary of milliseconds, each by status", () => {
    const metrics = registry();
    for (const ms of [1, 2, 3, 4]) recordCall(metrics, "rpc.svid.v1.svid.mint_x509svid", { status: "OK", ms });
    recordCall(metrics, "rpc.svid.v1.svid.mint_x509svid", { status: "NotFound", ms: 9 });
    const name = "spire_server_rpc_svid_v1_svid_mint_x509svid";
    expect(values(metrics)).toEqual([
      `${name}{status="OK"} 4`,
      `${name}{status="NotFound"} 1`,
      `${name}_elapsed_time{status="OK",quantile="0.5"} 2`,
      `${name}_elapsed_time{status="OK",quantile="0.9"} 4`,
      `${name}_elapsed_time{status="OK",quantile="0.99"} 4`,
      `${name}_elapsed_time_sum{status="OK"} 10`,
      `${name}_elapsed_time_count{status="OK"} 4`,
      `${name}_elapsed_time{status="NotFound",quantile="0.5"} 9`,
      `${name}_elapsed_time{status="NotFound",quantile="0.9"} 9`,
      `${name}_elapsed_time{status="NotFound",quantile="0.99"} 9`,
      `${name}_elapsed_time_sum{status="NotFound"} 9`,
      `${name}_elapsed_time_count{status="NotFound"} 1`,
    ]);
  });

  test("quantiles forget samples after ten seconds, sum and count do not", async () => {
    const clock = new FakeClock();
    const metrics = registry({}, clock);
    metrics.observe("x", 5);
    await clock.advance(10_001);
    expect(values(metrics)).toEqual([
      'spire_server_x{quantile="0.5"} NaN',
      'spire_server_x{quantile="0.9"} NaN',
      'spire_server_x{quantile="0.99"} NaN',
      "spire_server_x_sum 5",
      "spire_server_x_count 1",
    ]);
  });

  test("a summary's memory is bounded: of very many samples the newest count", () => {
    const metrics = registry();
    for (let value = 1; value <= 100_000; value += 1) metrics.observe("x", value);
    const lines = values(metrics);
    expect(lines[3]).toBe("spire_server_x_sum 5000050000");
    expect(lines[4]).toBe("spire_server_x_count 100000");
    expect(Number(lines[0]?.split(" ")[1])).toBeGreaterThan(98_000);
  });

  test("labels without end do not make series without end", () => {
    const metrics = registry();
    for (let index = 0; index < 10_000; index += 1) metrics.increment("x", { by: String(index) });
    expect(values(metrics)).toHaveLength(2000);
  });

  test("names and label values hold nothing that could break out of a line", () => {
    const metrics = registry({ host: 'a"b\\c\nd' });
    metrics.increment("rate-limit.a/b=c d", { trust_domain_id: 'x.org"} 1\ny' });
    expect(values(metrics)).toEqual([
      'spire_server_rate_limit_a_b_c_d{host="a\\"b\\\\c\\nd",trust_domain_id="x_org_1_y"} 1',
    ]);
  });

  test("a key stays what it was first, and a counter never falls", () => {
    const metrics = registry();
    metrics.increment("x", undefined, 2);
    metrics.increment("x", undefined, -1);
    metrics.set("x", 9);
    metrics.observe("x", 9);
    expect(values(metrics)).toEqual(["spire_server_x 2"]);
  });
});

describe("names and filters", () => {
  test("another prefix, the trust domain and the host on every metric", () => {
    const metrics = registry({ prefix: "mine", labels: { trust_domain: "example.org" }, host: "node-1.local" });
    metrics.increment("svid.rotate", { status: "OK" });
    expect(values(metrics)).toEqual(['mine_svid_rotate{host="node-1.local",status="OK",trust_domain="example_org"} 1']);
  });

  test("the longest prefix decides, and what fits none is kept", () => {
    const metrics = registry({
      blockedPrefixes: ["spire_server.datastore", "spire_server.rpc.entry"],
      allowedPrefixes: ["spire_server.datastore.node", "spire_server.rpc.entry"],
    });
    for (const key of ["datastore.bundle.list", "datastore.node.list", "rpc.entry.v1", "rpc.agent.v1"])
      metrics.increment(key);
    expect(values(metrics)).toEqual(["spire_server_datastore_node_list 1", "spire_server_rpc_agent_v1 1"]);
  });

  test("labels left out make one line of what looks alike", () => {
    const blocked = registry({ blockedLabels: ["status", "host"], host: "h" });
    blocked.increment("x", { status: "OK", kind: "a" });
    expect(values(blocked)).toEqual(['spire_server_x{kind="a"} 1']);
    const allowed = registry({ allowedLabels: ["host"], host: "h" });
    allowed.set("x", 1, { status: "OK" });
    allowed.set("x", 2, { status: "NotFound" });
    expect(values(allowed)).toEqual(['spire_server_x{host="h"} 2']);
  });

  test("every place gets every number", () => {
    const [a, b] = [registry(), registry({ prefix: "b" })];
    const both = allMetrics([a, b]);
    both.increment("n");
    both.set("g", 1);
    both.observe("s", 1);
    expect([values(a).length, values(b).length]).toEqual([7, 7]);
    expect(allMetrics([])).toBe(noMetrics);
  });
});
