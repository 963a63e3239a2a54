import { eventually } from "./eventually.ts";

/** The answers of a stream as they come, and its end. */
export function collect<T>(open: (options: { readonly signal: AbortSignal }) => AsyncIterable<T>) {
  const stop = new AbortController();
  const answers: T[] = [];
  const ended = (async (): Promise<unknown> => {
    try {
      for await (const answer of open({ signal: stop.signal })) answers.push(answer);
      return undefined;
    } catch (error) {
      return error;
    }
  })();
  const answer = (count: number): Promise<T> => eventually(`answer ${count}`, () => answers[count - 1]);
  return { answers, answer, ended, [Symbol.dispose]: () => stop.abort() };
}
