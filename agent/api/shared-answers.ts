import { isDeepStrictEqual } from "node:util";
import type { WorkloadUpdate } from "../cache/update.ts";

/** Makes a message of an update; undefined while there is none to tell. */
export type Compose<T> = (update: WorkloadUpdate) => T | undefined;

/** Subscribers with the same selectors get the same update, and so the same answer: one object, encoded once. */
export function shared<T extends object>(compose: Compose<T>): Compose<T> {
  const answers = new WeakMap<WorkloadUpdate, { readonly answer: T | undefined }>();
  return (update) => {
    const held = answers.get(update) ?? { answer: compose(update) };
    answers.set(update, held);
    return held.answer;
  };
}

const compared = new WeakMap<object, { readonly other: WeakRef<object>; readonly isSame: boolean }>();

/** By content. Many streams compare the same two answers, one after the other: it is done for the first of them. */
export function sameAnswer<T extends object>(answer: T, last: T | undefined): boolean {
  if (last === undefined || answer === last) return answer === last;
  const held = compared.get(answer);
  if (held?.other.deref() === last) return held.isSame;
  const isSame = isDeepStrictEqual(answer, last);
  compared.set(answer, { other: new WeakRef(last), isSame });
  return isSame;
}
