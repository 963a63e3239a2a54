import { Fault } from "../runtime/fault.ts";

/** One fact about a node or a workload. `type` has no colon; `value` may. */
export interface Selector {
  readonly type: string;
  readonly value: string;
}

/** Beyond any selector that an attestor makes; paths and labels are the longest. */
const MAX_TYPE_BYTES = 255;
const MAX_VALUE_BYTES = 8192;

/** Reads `type:value`. Throws `invalid`. */
export function parseSelector(text: string): Selector {
  const colon = text.indexOf(":");
  if (colon < 0) {
    throw new Fault("invalid", `selector "${text}" must be formatted as type:value`, {
      code: "selector-format",
      hint: "for example unix:uid:1000",
    });
  }
  return checkSelector({ type: text.slice(0, colon), value: text.slice(colon + 1) });
}

/** As `parseSelector`, of what was checked before it was stored. Never throws: what should not be there is read as it is. */
export function storedSelector(text: string): Selector {
  const colon = text.indexOf(":");
  return colon < 0 ? { type: text, value: "" } : { type: text.slice(0, colon), value: text.slice(colon + 1) };
}

/** Returns its argument when type and value are well formed. Throws `invalid`. */
export function checkSelector(selector: Selector): Selector {
  if (selector.type === "") throw new Fault("invalid", "missing selector type", { code: "selector-type" });
  if (selector.type.includes(":")) throw new Fault("invalid", "selector type contains ':'", { code: "selector-type" });
  if (selector.value === "") throw new Fault("invalid", "missing selector value", { code: "selector-value" });
  if (Buffer.byteLength(selector.type) > MAX_TYPE_BYTES) {
    throw new Fault("invalid", `selector type is longer than ${MAX_TYPE_BYTES} bytes`, { code: "selector-type" });
  }
  if (Buffer.byteLength(selector.value) > MAX_VALUE_BYTES) {
    throw new Fault("invalid", `selector value is longer than ${MAX_VALUE_BYTES} bytes`, { code: "selector-value" });
  }
  if (selector.type.includes("\0") || selector.value.includes("\0")) {
    throw new Fault("invalid", "selector contains a NUL byte", { code: "selector-value" });
  }
  return selector;
}

export function formatSelector(selector: Selector): string {
  return `${selector.type}:${selector.value}`;
}

/** Sorted by text, each once: the form in which sets are stored and compared. */
export function selectorSet(selectors: Iterable<Selector>): readonly Selector[] {
  const byText = new Map<string, Selector>();
  for (const selector of selectors)
    byText.set(formatSelector(selector), { type: selector.type, value: selector.value });
  return [...byText.keys()].sort().map((text) => byText.get(text) as Selector);
}

/** True when every wanted selector is present. An empty set of wants matches nothing. */
export function matches(wanted: readonly Selector[], present: ReadonlySet<string>): boolean {
  return wanted.length > 0 && wanted.every((selector) => present.has(formatSelector(selector)));
}

export function selectorTexts(selectors: Iterable<Selector>): ReadonlySet<string> {
  return new Set(Array.from(selectors, formatSelector));
}

/** Selectors of workload attestors whose values name container images. */
const IMAGE = /^(?:k8s:(?:container|pod|pod-init)-image|docker:image_id):(.*)$/s;
const BY_DIGEST = /@sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128})$|^(?:sha256:)?[0-9a-f]{64}$/;

/**
 * True when the selector names a container image by something that can come to mean another image: a tag. Which of
 * several tags a runtime reports for one image is not defined either.
 */
export function selectsImageByTag(selector: Selector): boolean {
  const image = IMAGE.exec(formatSelector(selector))?.[1];
  return image !== undefined && !BY_DIGEST.test(image);
}
