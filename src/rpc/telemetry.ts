import { hostname } from "node:os";
import type { Clock } from "../runtime/clock.ts";
import type { Log } from "../runtime/log.ts";
import { allMetrics, MetricNaming, type Metrics } from "../runtime/metrics.ts";
import { PrometheusRegistry, processText } from "../runtime/prometheus.ts";
import { type StatsdDialect, StatsdSink } from "../runtime/statsd.ts";
import { every, type Task } from "../runtime/task.ts";
import type { TelemetrySettings } from "../runtime/telemetry-config.ts";
import type { SpiffeId, TrustDomain } from "../spiffe/id.ts";
import { type MetricsTls, serveMetrics } from "./metrics-endpoint.ts";

export interface TelemetryOptions {
  readonly settings: TelemetrySettings<SpiffeId>;
  /** `spire_server` or `spire_agent`. */
  readonly program: string;
  readonly version: string;
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly log: Log;
}

const REPORT_MS = 10_000;

/** The program's metrics, and where they go. Nothing is kept or sent unless the configuration names a place for it. */
export class Telemetry {
  readonly metrics: Metrics;
  readonly #options: TelemetryOptions;
  readonly #registry: PrometheusRegistry | undefined;
  readonly #pushed: readonly StatsdSink[];
  readonly #started: number;

  constructor(options: TelemetryOptions) {
    const { settings, clock } = options;
    this.#options = options;
    this.#started = clock.monotonic();
    const naming = namingOf(options);
    const sinks = (dialect: StatsdDialect, addresses: readonly string[]): readonly StatsdSink[] =>
      addresses.map((address) => new StatsdSink({ dialect, address, naming, clock }));
    this.#registry = settings.prometheus && new PrometheusRegistry(naming, clock);
    this.#pushed = [...sinks("statsd", settings.statsd), ...sinks("dogstatsd", settings.dogStatsd)];
    this.metrics = allMetrics([...(this.#registry === undefined ? [] : [this.#registry]), ...this.#pushed]);
  }

  /**
   * Opens the endpoint for Prometheus, when there is to be one, and returns what keeps all places up to date. Throws
   * when the endpoint's port or certificate cannot be used.
   */
  async serve(tls: Omit<MetricsTls, "settings">, scope: AsyncDisposableStack): Promise<readonly Task[]> {
    const { settings, clock, log, version, trustDomain } = this.#options;
    this.metrics.set("started", 1, { version, trust_domain_id: trustDomain });
    const report = (signal: AbortSignal): Promise<void> =>
      every(
        clock,
        () => REPORT_MS,
        async () => this.#report(),
        signal,
      );
    for (const sink of this.#pushed) scope.use(sink);
    const pushing = this.#pushed.map(({ run }) => run);
    if (settings.prometheus === undefined) return pushing.length === 0 ? [] : [report, ...pushing];
    const { host, port, tls: tlsSettings } = settings.prometheus;
    const endpoint = scope.use(
      await serveMetrics({
        ...{ host, port, clock, log },
        tls: tlsSettings && { ...tls, settings: tlsSettings },
        text: () => this.#text(),
      }),
    );
    return [endpoint.run, report, ...pushing];
  }

  #text(): string {
    this.#report();
    return (this.#registry?.text() ?? "") + processText(this.#options.clock);
  }

  /** What the runtime says of itself, under the names of the Go runtime's where they mean the same. */
  #report(): void {
    const { heapUsed, rss } = process.memoryUsage();
    this.metrics.set("uptime_in_ms", Math.round(this.#options.clock.monotonic() - this.#started));
    this.metrics.set("runtime.alloc_bytes", heapUsed);
    this.metrics.set("runtime.sys_bytes", rss);
  }
}

function namingOf({ settings, program, trustDomain }: TelemetryOptions): MetricNaming {
  const { prefix, hostLabel, trustDomainLabel, ...filters } = settings;
  return new MetricNaming({
    ...filters,
    prefix: prefix ?? program,
    labels: trustDomainLabel ? { trust_domain: trustDomain } : {},
    host: hostLabel ? hostname() : undefined,
  });
}
