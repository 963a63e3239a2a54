/** `/s` is the only unit of which more is better. Sizes are binary: 1 MB is 1,048,576 bytes. */
export type Unit = "us" | "ms" | "s" | "/s" | "kB" | "MB" | "%" | "";

/** What a scenario hands in. */
export interface Figure {
  /** What was measured, in a few words that stay the same from run to run: results are compared by it. */
  readonly name: string;
  readonly unit: Unit;
  /** One number, or every single measurement. */
  readonly values: number | readonly number[];
  /** At which sizes, such as `{ agents: 100 }`: the same figure at several sizes makes a curve. */
  readonly at?: Readonly<Record<string, number>>;
  /** What no implementation on this machine can beat, measured in the same run and in the same unit. */
  readonly limit?: Limit;
}

export interface Limit {
  readonly name: string;
  readonly value: number;
}

export interface Spread {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly max: number;
  readonly count: number;
}

/** A figure as it is printed and written to JSON. */
export interface Result {
  /** What was measured: a store, a peer, or nothing where there is only one. */
  readonly subject: string;
  readonly name: string;
  readonly unit: Unit;
  readonly at: Readonly<Record<string, number>>;
  /** The median, of several measurements. */
  readonly value: number;
  readonly spread?: Spread;
  readonly limit?: Limit;
  /** The value divided by the limit. */
  readonly ratio?: number;
  /** The value divided by that of the peer in the same run. */
  readonly againstPeer?: number;
}

/** Throws when there is no measurement, or one that is no number: a figure of nothing is a mistake of the scenario. */
export function resultOf({ name, unit, values, at = {}, limit }: Figure, subject: string): Result {
  const all = typeof values === "number" ? [values] : values;
  if (all.length === 0 || !all.every(Number.isFinite)) throw new Error(`nothing was measured for "${name}"`);
  const spread = typeof values === "number" ? undefined : spreadOf(all);
  const value = spread?.p50 ?? (all[0] as number);
  return {
    ...{ subject, name, unit, at, value },
    ...(spread === undefined ? {} : { spread }),
    ...(limit === undefined ? {} : { limit, ratio: value / limit.value }),
  };
}

/** By nearest rank: each percentile is one of the measurements. */
export function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const rank = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
  return { p50: rank(0.5), p90: rank(0.9), p99: rank(0.99), max: rank(1), count: sorted.length };
}

/** Adds to each result its ratio to the peer's of the same name and size. */
export function compared(results: readonly Result[], peer: string | undefined): readonly Result[] {
  if (peer === undefined) return results;
  const key = ({ name, unit, at }: Result): string => JSON.stringify([name, unit, Object.entries(at).toSorted()]);
  const theirs = new Map(
    results.filter(({ subject }) => subject === peer).map((result) => [key(result), result.value]),
  );
  return results.map((result) => {
    const other = theirs.get(key(result));
    const isOurs = result.subject !== peer && other !== undefined && other !== 0;
    return isOurs ? { ...result, againstPeer: result.value / other } : result;
  });
}
