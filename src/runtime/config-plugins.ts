import {
  type Key,
  objectsOf,
  type PluginSpec,
  type PluginType,
  type PluginTypes,
  type Spot,
  type Values,
} from "./config.ts";
import { readConfigFile } from "./config-file.ts";
import { block, flag, text, unsupported } from "./config-keys.ts";
import type { ConfigEntry, ConfigObject, ConfigValue } from "./config-value.ts";
import { isFault } from "./fault.ts";
import { didYouMean } from "./nearest.ts";

type PluginsOf<T extends PluginType> = {
  readonly [N in keyof T["plugins"]]?: T["plugins"][N] extends PluginSpec ? Values<T["plugins"][N]["keys"]> : undefined;
};

/** The data of each enabled plug-in, by type and name. */
export type PluginValues<T extends PluginTypes> = { readonly [P in keyof T]: PluginsOf<T[P]> };

/** The `plugins` section: `Type "name" { plugin_data { … } }`, each plug-in at most once. */
export function plugins<const T extends PluginTypes>(types: T): Key<PluginValues<T>> {
  const read = (value: ConfigValue | undefined, spot: Spot): PluginValues<T> => {
    const found: Record<string, Record<string, unknown>> = Object.fromEntries(
      Object.keys(types).map((type) => [type, {}]),
    );
    for (const { type, entry } of pluginEntries(value, types, spot)) {
      const enabled = found[type];
      const at = { ...spot, path: `plugins.${type}.${entry.key}`, at: entry.at };
      spot.reader.mark(at.path, at.at);
      const data = enabled === undefined ? undefined : readPlugin(types, { type, entry, spot: at });
      if (enabled === undefined || data === undefined) continue;
      if (Object.hasOwn(enabled, entry.key))
        spot.reader.fault(entry.at, `plugin "${type}"/"${entry.key}" declared more than once`);
      enabled[entry.key] = data;
    }
    return found as PluginValues<T>;
  };
  return {
    type: "block",
    doc: 'Plug-ins, each as Type "name" { plugin_data { … } }.',
    status: "works",
    plugins: types,
    read,
  };
}

/** Names of the plug-ins of a type that the configuration enables. */
export function pluginNames(values: Readonly<Record<string, unknown>>): readonly string[] {
  return Object.keys(values).filter((name) => values[name] !== undefined);
}

interface PluginEntry {
  readonly type: string;
  readonly entry: ConfigEntry;
}

function pluginEntries(
  value: ConfigValue | undefined,
  types: PluginTypes,
  { reader, at }: Spot,
): readonly PluginEntry[] {
  const sections = value === undefined ? [] : objectsOf(value);
  if (sections === undefined) reader.fault(at, "plugins: expected a block such as plugins { … }");
  return (sections ?? [])
    .flatMap(({ entries }) => entries)
    .flatMap((section) => {
      if (!Object.hasOwn(types, section.key)) {
        reader.fault(section.at, nameFault("plugin type", section.key, Object.keys(types)));
        return [];
      }
      const named = objectsOf(section.value);
      if (named === undefined) reader.fault(section.at, `plugins: expected ${section.key} "name" { … }`);
      return (named ?? []).flatMap(({ entries }) => entries).map((entry) => ({ type: section.key, entry }));
    });
}

interface PluginAt {
  readonly type: string;
  readonly entry: ConfigEntry;
  readonly spot: Spot;
}

/** The plug-in's data, or undefined when it's disabled or can't be read. */
function readPlugin(types: PluginTypes, { type, entry, spot }: PluginAt): unknown {
  const { reader } = spot;
  const known = types[type]?.plugins ?? {};
  const spec = Object.hasOwn(known, entry.key) ? known[entry.key] : undefined;
  const objects = objectsOf(entry.value);
  if (objects === undefined) return reader.fault(entry.at, `${spot.path}: expected ${type} "${entry.key}" { … }`);
  const outer = reader.readKeys(OUTER_KEYS, spec === undefined ? only(objects, "enabled") : objects, spot);
  if (!outer.enabled) return undefined;
  if (spec !== undefined) return readData({ spec, objects, file: outer.plugin_data_file, spot });
  const external = only(objects, "plugin_cmd").some(({ entries }) => entries.length > 0);
  if (external)
    return reader.fault(
      entry.at,
      `external plugins such as ${type} "${entry.key}" are not supported by this version of Steeple`,
    );
  if (Object.hasOwn(known, entry.key))
    return reader.fault(entry.at, `plugin ${type} "${entry.key}" is not supported by this version of Steeple`);
  return reader.fault(entry.at, nameFault(`${type} plugin`, entry.key, Object.keys(known)));
}

/** Read by `readData`; here so that it's a known name. */
const pluginData: Key<void> = { type: "block", doc: "The plug-in's data.", status: "works", read: () => undefined };

const OUTER_KEYS = {
  plugin_data: pluginData,
  enabled: flag({ doc: "Whether the plug-in is used.", default: true }),
  plugin_data_file: text({ doc: "A file with the plug-in's data, instead of plugin_data." }),
  plugin_cmd: unsupported("An external plug-in's program."),
  plugin_args: unsupported("Arguments of an external plug-in."),
  plugin_checksum: unsupported("SHA-256 of an external plug-in's program."),
};

function only(objects: readonly ConfigObject[], name: string): readonly ConfigObject[] {
  return objects.map((object) => ({
    ...object,
    entries: object.entries.filter(({ key }) => key.toLowerCase() === name),
  }));
}

interface PluginData {
  readonly spec: PluginSpec;
  readonly objects: readonly ConfigObject[];
  readonly file: string | undefined;
  readonly spot: Spot;
}

function readData({ spec, objects, file, spot }: PluginData): unknown {
  const inner = only(objects, "plugin_data").flatMap(({ entries }) => entries);
  const data: readonly ConfigValue[] = inner.map(({ value }) => value);
  if (file !== undefined && data.length > 0) {
    return spot.reader.fault(spot.at, `${spot.path}: only one of [plugin_data, plugin_data_file] can be used`);
  }
  const values = file === undefined ? data : dataFromFile(file, spot);
  if (values === undefined) return undefined;
  const items = values.flatMap<ConfigValue>((value) => objectsOf(value) ?? [value]);
  const merged: ConfigValue = { kind: "list", at: inner[0]?.at ?? spot.at, items };
  return block(spec.doc, spec.keys).read(merged, { ...spot, at: merged.at });
}

/** Undefined, with the fault said, when there is nothing to read. */
function dataFromFile(file: string, { reader, path, at }: Spot): readonly ConfigValue[] | undefined {
  try {
    return [readConfigFile(file).root];
  } catch (error) {
    if (!isFault(error)) throw error;
    const why = error.kind === "not_found" ? `open ${file}: no such file or directory` : error.message;
    reader.fault(at, `${path}.plugin_data_file: failed to read plugin configuration: ${why}`);
    return undefined;
  }
}

function nameFault(what: string, name: string, known: readonly string[]): string {
  const nearest = didYouMean(name, known);
  return `unknown ${what} "${name}"${nearest === undefined ? "" : `; ${nearest}`}`;
}
