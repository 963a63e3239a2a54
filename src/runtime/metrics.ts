/** Label names and values, from closed sets or from what an administrator made: never from what a stranger sends. */
export type MetricLabels = Readonly<Record<string, string>>;

/**
 * Where numbers go. Keys are SPIRE's with dots between their parts, such as `server_ca.sign.x509_svid`, without the
 * program's prefix. Nothing here throws.
 */
export interface Metrics {
  increment(key: string, labels?: MetricLabels, by?: number): void;
  /** A gauge: the last value counts. */
  set(key: string, value: number, labels?: MetricLabels): void;
  /** A sample of a distribution: a span in milliseconds, or a count of things. */
  observe(key: string, value: number, labels?: MetricLabels): void;
}

export const noMetrics: Metrics = { increment: () => {}, set: () => {}, observe: () => {} };

/** Every number goes to each of them. */
export function allMetrics(sinks: readonly Metrics[]): Metrics {
  const [only, ...others] = sinks;
  if (only === undefined) return noMetrics;
  if (others.length === 0) return only;
  return {
    increment: (key, labels, by) => {
      for (const sink of sinks) sink.increment(key, labels, by);
    },
    set: (key, value, labels) => {
      for (const sink of sinks) sink.set(key, value, labels);
    },
    observe: (key, value, labels) => {
      for (const sink of sinks) sink.observe(key, value, labels);
    },
  };
}

export interface CallResult {
  /** A gRPC code as SPIRE spells it, such as `OK` or `NotFound`. */
  readonly status: string;
  readonly ms: number;
}

/** SPIRE's call counter: how often, and for how long, by status. */
export function recordCall(metrics: Metrics, key: string, { status, ms }: CallResult, labels?: MetricLabels): void {
  const all = labels === undefined ? { status } : { ...labels, status };
  metrics.increment(key, all);
  metrics.observe(`${key}.elapsed_time`, ms, all);
}

export interface NamingOptions {
  /** Goes before every key, such as `spire_server`. */
  readonly prefix: string;
  /** Of keys with their prefix; the longest that fits decides, and what no prefix fits is allowed. */
  readonly allowedPrefixes?: readonly string[];
  readonly blockedPrefixes?: readonly string[];
  /** When given, no other label is kept. */
  readonly allowedLabels?: readonly string[] | undefined;
  readonly blockedLabels?: readonly string[];
  /** On every metric, before filters: the trust domain, when wanted. */
  readonly labels?: MetricLabels;
  /** The `host` label of every metric; values of other labels are made plain, this one is not. */
  readonly host?: string | undefined;
}

export type LabelPair = readonly [name: string, value: string];

/** Most distinct keys of which the decision is remembered. */
const REMEMBERED_KEYS = 4096;

/** Which metrics leave the program, and under which names and labels. */
export class MetricNaming {
  readonly #options: NamingOptions;
  readonly #decided = new Map<string, string | undefined>();
  readonly #prefixes: readonly { readonly prefix: string; readonly allowed: boolean }[];

  constructor(options: NamingOptions) {
    this.#options = options;
    const { allowedPrefixes = [], blockedPrefixes = [] } = options;
    this.#prefixes = [
      ...blockedPrefixes.map((prefix) => ({ prefix, allowed: false })),
      ...allowedPrefixes
        .filter((prefix) => !blockedPrefixes.includes(prefix))
        .map((prefix) => ({ prefix, allowed: true })),
    ].sort((a, b) => b.prefix.length - a.prefix.length);
  }

  /** The key with its prefix, parts between dots; undefined when a blocked prefix fits. */
  nameOf(key: string): string | undefined {
    if (this.#decided.has(key)) return this.#decided.get(key);
    const { prefix } = this.#options;
    const name = prefix === "" ? key : `${prefix}.${key}`;
    const rule = this.#prefixes.find((candidate) => name.startsWith(candidate.prefix));
    const result = rule?.allowed === false ? undefined : name;
    if (this.#decided.size < REMEMBERED_KEYS) this.#decided.set(key, result);
    return result;
  }

  /** Those that stay, the event's own first. */
  labelsOf(labels: MetricLabels | undefined): readonly LabelPair[] {
    const { labels: common, host } = this.#options;
    const pairs: LabelPair[] = [];
    for (const set of [labels, common])
      for (const name in set) if (Object.hasOwn(set, name)) pairs.push([plain(name), plain(set[name] ?? "")]);
    if (host !== undefined) pairs.push(["host", host]);
    return pairs.filter(([name]) => this.#keeps(name));
  }

  #keeps(label: string): boolean {
    const { allowedLabels, blockedLabels = [] } = this.#options;
    return !blockedLabels.includes(label) && (allowedLabels === undefined || allowedLabels.includes(label));
  }
}

/** What every metrics system accepts: other characters become one underscore, as SPIRE has it. */
function plain(text: string): string {
  return text.replace(/[^A-Za-z0-9_]+_?/g, "_");
}
