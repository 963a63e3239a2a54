import type { Clock } from "./clock.ts";
import type { LabelPair, MetricLabels, MetricNaming, Metrics } from "./metrics.ts";

/** Quantiles of SPIRE's summaries, over the samples of the last ten seconds. */
const QUANTILES = [0.5, 0.9, 0.99] as const;
const WINDOW_MS = 10_000;
/** Of one series; in a busier window the newest count. */
const MOST_SAMPLES = 1024;
/** Of one metric: labels come from closed sets, and this is what holds when one does not. */
const MOST_SERIES = 2000;

type Kind = "counter" | "gauge" | "summary";

interface Series {
  readonly labels: readonly LabelPair[];
  value: number;
  samples: number;
  readonly recent: Recent | undefined;
}

interface Family {
  readonly name: string;
  readonly kind: Kind;
  /** By the event's own labels. */
  readonly series: Map<string, Series>;
}

/** Numbers kept for a Prometheus server to fetch. What nobody fetches costs no more memory than its last values. */
export class PrometheusRegistry implements Metrics {
  readonly #naming: MetricNaming;
  readonly #clock: Pick<Clock, "monotonic">;
  /** By key; undefined for those that a filter blocks. */
  readonly #families = new Map<string, Family | undefined>();

  constructor(naming: MetricNaming, clock: Pick<Clock, "monotonic">) {
    this.#naming = naming;
    this.#clock = clock;
  }

  increment(key: string, labels?: MetricLabels, by = 1): void {
    const series = this.#series("counter", key, labels);
    if (series !== undefined && by > 0) series.value += by;
  }

  set(key: string, value: number, labels?: MetricLabels): void {
    const series = this.#series("gauge", key, labels);
    if (series !== undefined) series.value = value;
  }

  observe(key: string, value: number, labels?: MetricLabels): void {
    const series = this.#series("summary", key, labels);
    if (series === undefined) return;
    series.value += value;
    series.samples += 1;
    series.recent?.add(this.#clock.monotonic(), value);
  }

  /** The text format of Prometheus, version 0.0.4: families by name, each with its series. */
  text(): string {
    const families = [...this.#families.values()].filter((family) => family !== undefined);
    const since = this.#clock.monotonic() - WINDOW_MS;
    return families
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .map((family) => familyText(family, since))
      .join("");
  }

  #series(kind: Kind, key: string, labels: MetricLabels | undefined): Series | undefined {
    const family = this.#family(kind, key);
    if (family === undefined) return undefined;
    const hash = hashOf(labels);
    const known = family.series.get(hash);
    if (known !== undefined || family.series.size >= MOST_SERIES) return known;
    const pairs = this.#naming.labelsOf(labels).toSorted(([a], [b]) => (a < b ? -1 : 1));
    const recent = kind === "summary" ? new Recent() : undefined;
    const series: Series = { labels: pairs, value: 0, samples: 0, recent };
    family.series.set(hash, series);
    return series;
  }

  #family(kind: Kind, key: string): Family | undefined {
    const known = this.#families.get(key);
    if (known !== undefined) return known.kind === kind ? known : undefined;
    if (this.#families.has(key)) return undefined;
    const name = this.#naming.nameOf(key);
    const family = name === undefined ? undefined : { name: flat(name), kind, series: new Map<string, Series>() };
    this.#families.set(key, family);
    return family;
  }
}

function hashOf(labels: MetricLabels | undefined): string {
  let hash = "";
  for (const name in labels) hash += `${name}=${labels[name]};`;
  return hash;
}

/** A ring of the newest samples. Grows only as far as it is used. */
class Recent {
  readonly #times: number[] = [];
  readonly #values: number[] = [];
  #next = 0;

  add(time: number, value: number): void {
    this.#times[this.#next] = time;
    this.#values[this.#next] = value;
    this.#next = (this.#next + 1) % MOST_SAMPLES;
  }

  /** In ascending order. */
  after(time: number): readonly number[] {
    return this.#values.filter((_, index) => (this.#times[index] ?? 0) >= time).sort((a, b) => a - b);
  }
}

function familyText({ name, kind, series }: Family, since: number): string {
  const text = kind === "summary" ? summaryText : plainText;
  const lines = distinct([...series.values()]).map((one) => text(name, one, since));
  return `# HELP ${name} ${name}\n# TYPE ${name} ${kind}\n${lines.join("")}`;
}

/** Filters can make two series look alike; a scrape with the same line twice would be refused as a whole. */
function distinct(series: readonly Series[]): readonly Series[] {
  return [...new Map(series.map((one) => [labelText(one.labels), one])).values()];
}

function plainText(name: string, { labels, value }: Series): string {
  return `${name}${labelText(labels)} ${numberText(value)}\n`;
}

function summaryText(name: string, { labels, value, samples, recent }: Series, since: number): string {
  const sorted = recent?.after(since) ?? [];
  const quantiles = QUANTILES.map((share) => {
    const at = sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
    return `${name}${labelText([...labels, ["quantile", String(share)]])} ${numberText(at)}\n`;
  });
  const own = labelText(labels);
  return `${quantiles.join("")}${name}_sum${own} ${numberText(value)}\n${name}_count${own} ${numberText(samples)}\n`;
}

function labelText(labels: readonly LabelPair[]): string {
  if (labels.length === 0) return "";
  return `{${labels.map(([name, value]) => `${name}="${escaped(value)}"`).join(",")}}`;
}

function escaped(value: string): string {
  return value.replace(/[\\"\n]/g, (character) => (character === "\n" ? "\\n" : `\\${character}`));
}

function numberText(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return "+Inf";
  return value === Number.NEGATIVE_INFINITY ? "-Inf" : String(value);
}

function flat(name: string): string {
  return name.replace(/[ .=\-/]/g, "_");
}

/** The process's own numbers, under the names that every Prometheus client gives them. */
export function processText(clock: Clock): string {
  const { user, system } = process.cpuUsage();
  const startedAt = (clock.now().getTime() / 1000 - process.uptime()).toFixed(2);
  return [
    ["process_cpu_seconds_total", "counter", ((user + system) / 1e6).toFixed(2)],
    ["process_resident_memory_bytes", "gauge", String(process.memoryUsage.rss())],
    ["process_start_time_seconds", "gauge", startedAt],
  ]
    .map(([name, kind, value]) => `# HELP ${name} ${name}\n# TYPE ${name} ${kind}\n${name} ${value}\n`)
    .join("");
}
