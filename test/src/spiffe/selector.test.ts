import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  checkSelector,
  formatSelector,
  matches,
  parseSelector,
  selectorSet,
  selectorTexts,
  selectsImageByTag,
} from "../../../src/spiffe/selector.ts";
import { faultOf } from "../../support/faults.ts";

describe("reading", () => {
  test.each([
    { text: "unix:uid:1000", type: "unix", value: "uid:1000" },
    { text: "k8s:ns:default", type: "k8s", value: "ns:default" },
    { text: "a::", type: "a", value: ":" },
    { text: "docker:label:x=y z", type: "docker", value: "label:x=y z" },
  ])("$text", ({ text, type, value }) => {
    expect(parseSelector(text)).toEqual({ type, value });
    expect(formatSelector({ type, value })).toBe(text);
  });

  test.each([
    { text: "unix", message: 'selector "unix" must be formatted as type:value', code: "selector-format" },
    { text: "", message: 'selector "" must be formatted as type:value', code: "selector-format" },
    { text: ":x", message: "missing selector type", code: "selector-type" },
    { text: "unix:", message: "missing selector value", code: "selector-value" },
  ])("$text is refused: $message", ({ text, message, code }) => {
    expect(faultOf(() => parseSelector(text))).toMatchObject({ kind: "invalid", message, code });
  });

  test.each([
    { what: "a colon in the type", type: "a:b", value: "x", message: "selector type contains ':'" },
    { what: "a NUL in the value", type: "a", value: "x\0", message: "selector contains a NUL byte" },
    { what: "a NUL in the type", type: "a\0", value: "x", message: "selector contains a NUL byte" },
    {
      what: "a type of 256 bytes",
      type: "a".repeat(256),
      value: "x",
      message: "selector type is longer than 255 bytes",
    },
    {
      what: "a value of 8193 bytes",
      type: "a",
      value: "x".repeat(8193),
      message: "selector value is longer than 8192 bytes",
    },
    {
      what: "a value of 8194 bytes in 4097 characters",
      type: "a",
      value: "ü".repeat(4097),
      message: "selector value is longer than 8192 bytes",
    },
  ])("T-S7 $what is refused", ({ type, value, message }) => {
    expect(faultOf(() => checkSelector({ type, value }))).toMatchObject({ kind: "invalid", message });
  });

  test("T-S7 the longest type and value are accepted", () => {
    const selector = { type: "a".repeat(255), value: "x".repeat(8192) };
    expect(checkSelector(selector)).toBe(selector);
  });
});

const selector = fc.record({
  type: fc.constantFrom("unix", "k8s", "docker"),
  value: fc.constantFrom("a", "b", "c", "a:b"),
});

test("a set is sorted, holds each selector once, and does not depend on the order given", () => {
  fc.assert(
    fc.property(fc.array(selector), (selectors) => {
      const set = selectorSet(selectors);
      const texts = set.map(formatSelector);
      expect(texts).toEqual([...new Set(selectors.map(formatSelector))].sort());
      expect(selectorSet([...selectors].reverse())).toEqual(set);
      expect(selectorSet(set)).toEqual(set);
    }),
  );
});

test("T-W8 all wanted selectors have to be present, and an empty set of wants matches nothing", () => {
  fc.assert(
    fc.property(fc.array(selector), fc.array(selector), (wanted, present) => {
      const texts = present.map(formatSelector);
      const expected = wanted.length > 0 && wanted.every((one) => texts.includes(formatSelector(one)));
      expect(matches(wanted, selectorTexts(present))).toBe(expected);
    }),
  );
  expect(matches([], selectorTexts([{ type: "unix", value: "uid:0" }]))).toBe(false);
});

describe("T-W9 images by tag", () => {
  const digest = `sha256:${"a".repeat(64)}`;
  test.each([
    { text: "k8s:container-image:nginx", byTag: true },
    { text: "k8s:container-image:registry.example:5000/nginx:1.27", byTag: true },
    { text: "k8s:pod-image:nginx:latest", byTag: true },
    { text: "k8s:pod-init-image:busybox", byTag: true },
    { text: "docker:image_id:busybox", byTag: true },
    { text: `docker:image_id:nginx@sha256:${"a".repeat(63)}`, byTag: true },
    { text: `k8s:container-image:nginx@${digest}`, byTag: false },
    { text: `k8s:container-image:nginx:1.27@${digest}`, byTag: false },
    { text: `k8s:pod-image:docker-pullable://nginx@${digest}`, byTag: false },
    { text: `k8s:pod-image:nginx@sha512:${"a".repeat(128)}`, byTag: false },
    { text: `docker:image_id:${digest}`, byTag: false },
    { text: `docker:image_config_digest:${digest}`, byTag: false },
    { text: "k8s:pod-image-count:2", byTag: false },
    { text: "docker:label:image_id:nginx", byTag: false },
    { text: "unix:path:k8s:container-image:nginx", byTag: false },
  ])("$text: $byTag", ({ text, byTag }) => expect(selectsImageByTag(parseSelector(text))).toBe(byTag));
});
