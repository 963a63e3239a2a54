import { type ConfigEntry, type ConfigObject, type ConfigValue, type Place, placeText } from "./config-value.ts";
import { Fault } from "./fault.ts";
import { didYouMean } from "./nearest.ts";

/** What the reference says about a key, and how its value is read. Made by the functions of `config-keys.ts`. */
export interface Key<T> {
  readonly type: string;
  readonly doc: string;
  /** As the reference shows it. */
  readonly shownDefault?: string;
  readonly status: KeyStatus;
  /** Not one of SPIRE's keys. */
  readonly own?: boolean;
  /** The keys inside, for a block. */
  readonly keys?: Keys;
  /** What stands inside the plugins section. */
  readonly plugins?: PluginTypes;
  /** Always returns; what is wrong goes to the reader. `value` is missing when nobody set the key. */
  read(value: ConfigValue | undefined, spot: Spot): T;
}

type KeyStatus = "works" | "accepted, no effect" | "not supported";

export type Keys = Readonly<Record<string, Key<unknown>>>;
export type Values<K extends Keys> = { readonly [P in keyof K]: K[P] extends Key<infer T> ? T : never };

/** Plug-ins by type and name; undefined for those of SPIRE that are not built. */
export type PluginTypes = Readonly<Record<string, PluginType>>;
export interface PluginType {
  readonly doc: string;
  readonly plugins: Readonly<Record<string, PluginSpec | undefined>>;
}
export interface PluginSpec {
  readonly doc: string;
  readonly keys: Keys;
}

/** Where a value is being read: its path such as `server.ca_ttl`, and the place to blame. */
export interface Spot {
  readonly reader: ConfigReader;
  readonly path: string;
  readonly at: Place;
}

const MOST_FAULTS_SHOWN = 20;

/**
 * One reading of one configuration: collects every fault and warning with its place, and lets flags go before the
 * file. Not reusable.
 */
export class ConfigReader {
  readonly #overrides: ReadonlyMap<string, ConfigValue>;
  readonly #faults: { readonly at: Place; readonly message: string }[] = [];
  readonly #warnings: string[] = [];
  readonly #places = new Map<string, Place>();
  readonly #source: Place;

  /** `overrides` maps paths to values that win over the file's. */
  constructor(source: string, overrides: ReadonlyMap<string, ConfigValue>) {
    this.#source = { source };
    this.#overrides = overrides;
  }

  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /** Blames a place, or the value that was read at a path. */
  fault(where: Place | string, message: string): void {
    this.#faults.push({ at: this.#place(where), message });
  }

  warn(where: Place | string, message: string): void {
    this.#warnings.push(`${placeText(this.#place(where))}: ${message}`);
  }

  /** A warning that has no place. */
  note(message: string): void {
    this.#warnings.push(message);
  }

  /** Says where to blame what concerns a path as a whole. */
  mark(path: string, at: Place): void {
    this.#places.set(path, at);
  }

  /** True when the file or a flag set the key at this path to something. */
  isSet(path: string): boolean {
    return this.#places.has(path);
  }

  /** Throws one `invalid` that names every fault, in the order of the file. */
  throwFaults(): void {
    const count = this.#faults.length;
    if (count === 0) return;
    const inOrder = this.#faults.sort((a, b) => comparePlaces(a.at, b.at)).slice(0, MOST_FAULTS_SHOWN);
    const shown = inOrder.map(({ at, message }) => `${placeText(at)}: ${message}`);
    if (count > shown.length) shown.push(`and ${count - shown.length} more`);
    const message = count === 1 ? shown.join("") : `${count} faults in the configuration:\n  ${shown.join("\n  ")}`;
    throw new Fault("invalid", message, { code: "config-invalid" });
  }

  /** Reads all keys of an object, reports those that don't exist, and gives absent ones their defaults. */
  readKeys<K extends Keys>(keys: K, objects: readonly ConfigObject[], spot: Omit<Spot, "reader">): Values<K> {
    const found = this.#groupEntries(keys, objects, spot.path);
    const values = Object.entries(keys).map(([name, key]) => {
      const path = spot.path === "" ? name : `${spot.path}.${name}`;
      return [name, this.#readKey(key, found.get(name) ?? [], { path, at: spot.at })];
    });
    return Object.fromEntries(values) as Values<K>;
  }

  #readKey<T>(key: Key<T>, entries: readonly ConfigEntry[], spot: Omit<Spot, "reader">): T {
    const override = this.#overrides.get(spot.path);
    const value = override ?? this.#merge(entries, spot.path);
    const at = override?.at ?? entries[0]?.at ?? spot.at;
    if (value !== undefined && !isEmpty(value)) this.#places.set(spot.path, at);
    return key.read(value?.kind === "null" ? undefined : value, { reader: this, path: spot.path, at });
  }

  /** SPIRE finds keys whatever their case. */
  #groupEntries(keys: Keys, objects: readonly ConfigObject[], path: string): ReadonlyMap<string, ConfigEntry[]> {
    const names = new Map(Object.keys(keys).map((name) => [name.toLowerCase(), name]));
    const found = new Map<string, ConfigEntry[]>();
    for (const entry of objects.flatMap((object) => object.entries)) {
      const name = names.get(entry.key.toLowerCase());
      const before = name === undefined ? undefined : found.get(name);
      if (name === undefined) this.fault(entry.at, this.#unknownKey(entry.key, keys, path));
      else if (before === undefined) found.set(name, [entry]);
      else before.push(entry);
    }
    return found;
  }

  /** With the nearest name, while that can still be seen: finding it takes time. */
  #unknownKey(key: string, keys: Keys, section: string): string {
    const isShown = this.#faults.length < MOST_FAULTS_SHOWN;
    const nearest = isShown ? didYouMean(key, Object.keys(keys)) : undefined;
    return `unknown key "${key}"${section === "" ? "" : ` in ${section}`}${nearest === undefined ? "" : `; ${nearest}`}`;
  }

  /** Repeated blocks count as one; anything else may be set once. */
  #merge(entries: readonly ConfigEntry[], path: string): ConfigValue | undefined {
    const [first, second] = entries;
    if (first === undefined || second === undefined) return first?.value;
    const objects = entries.flatMap(({ value }) => objectsOf(value) ?? []);
    if (objects.length >= entries.length) return { kind: "list", at: first.at, items: objects };
    this.fault(second.at, `${path} is set twice; the first is at ${placeText(first.at)}`);
    return first.value;
  }

  #place(where: Place | string): Place {
    if (typeof where !== "string") return where;
    for (let path = where; path !== ""; path = path.slice(0, Math.max(0, path.lastIndexOf(".")))) {
      const place = this.#places.get(path);
      if (place !== undefined) return place;
    }
    return this.#source;
  }
}

function comparePlaces(a: Place, b: Place): number {
  return (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0);
}

/** The objects of a block: one, or a list of them as JSON configurations write it; undefined for anything else. */
export function objectsOf(value: ConfigValue): readonly ConfigObject[] | undefined {
  const items = value.kind === "list" ? value.items : [value];
  const objects = items.filter((item) => item.kind === "object");
  return objects.length === items.length ? objects : undefined;
}

/** As good as nothing, as in SPIRE. */
function isEmpty(value: ConfigValue): boolean {
  return value.kind === "null" || (value.kind === "string" && value.text === "");
}
