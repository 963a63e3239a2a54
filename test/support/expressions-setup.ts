import { expect } from "vitest";

/** An expected expression is one that the text must match; without this, it would equal any text. */
expect.addEqualityTesters([
  (actual, expected) => {
    const [text, expression] = expected instanceof RegExp ? [actual, expected] : [expected, actual];
    if (!(expression instanceof RegExp) || typeof text !== "string") return undefined;
    return new RegExp(expression.source, expression.flags.replace(/[gy]/g, "")).test(text);
  },
]);
