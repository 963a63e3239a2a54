import { isDeepStrictEqual } from "node:util";

/** Makes a message of a state; undefined while there is none to tell. */
export type Compose<U, T> = (update: U) => T | undefined;

/** Subscribers with the same selectors get the same update, and so the same answer: one object, encoded once. */
export function shared<U extends object, T extends object>(compose: Compose<U, T>): Compose<U, T> {
  const answers = new WeakMap<U, { readonly answer: T | undefined }>();
  return (update) => {
    const held = answers.get(update) ?? { answer: compose(update) };
    answers.set(update, held);
    return held.answer;
  };
}

const compared = new WeakMap<object, { readonly other: WeakRef<object>; readonly isSame: boolean }>();

interface Answers<U, T> {
  readonly updates: AsyncIterable<U>;
  readonly compose: Compose<U, T>;
  /** Throws when the caller may have no more answers. */
  readonly check: (update: U, answer: T) => Promise<void>;
}

/** Every answer that differs from the one before. The caller is looked at again before each. */
export async function* changedAnswers<U, T extends object>({
  updates,
  compose,
  check,
}: Answers<U, T>): AsyncGenerator<T, void, undefined> {
  let last: T | undefined;
  for await (const update of updates) {
    const answer = compose(update);
    if (answer === undefined || sameAnswer(answer, last)) continue;
    await check(update, answer);
    last = answer;
    yield answer;
  }
}

/** By content. Many streams compare the same two answers, one after the other: it is done for the first of them. */
function sameAnswer<T extends object>(answer: T, last: T | undefined): boolean {
  if (last === undefined || answer === last) return answer === last;
  const held = compared.get(answer);
  if (held?.other.deref() === last) return held.isSame;
  const isSame = isDeepStrictEqual(answer, last);
  compared.set(answer, { other: new WeakRef(last), isSame });
  return isSame;
}
