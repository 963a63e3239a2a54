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
