/**
 * The values of several sources as they come. A source is asked for its next value once its last one was taken. Ends,
 * or throws, with the first source that does; the others are told to return.
 */
export async function* merge<T>(sources: readonly AsyncIterable<T>[]): AsyncGenerator<T, void, undefined> {
  const arrived: Arrival<T>[] = [];
  let wake = (): void => {};
  const iterators = sources.map((source) => source[Symbol.asyncIterator]());
  const ask = (iterator: AsyncIterator<T>): void => {
    const arrive = (result: Arrival<T>["result"]): void => {
      arrived.push({ iterator, result });
      wake();
    };
    iterator.next().then(
      (value) => arrive({ value }),
      (error: unknown) => arrive({ error }),
    );
  };
  try {
    for (const iterator of iterators) ask(iterator);
    for (;;) {
      const next = arrived.shift();
      if (next === undefined) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        continue;
      }
      if ("error" in next.result) throw next.result.error;
      if (next.result.value.done === true) return;
      yield next.result.value.value;
      ask(next.iterator);
    }
  } finally {
    for (const iterator of iterators) void iterator.return?.().catch(() => {});
  }
}

interface Arrival<T> {
  readonly iterator: AsyncIterator<T>;
  readonly result: { readonly value: IteratorResult<T, unknown> } | { readonly error: unknown };
}
