import type { Key, Keys, PluginTypes } from "./config.ts";

/** Markdown tables of every key, from the same data that reads the file. */
export function keyReference(title: string, sections: Keys): string {
  const parts = Object.entries(sections).map(([name, key]) => sectionText(name, key));
  return `## ${title}\n\n${parts.join("\n")}`;
}

function sectionText(name: string, key: Key<unknown>): string {
  if (key.plugins !== undefined) return `### \`${name}\`\n\n${cellText(key.doc)}\n\n${pluginText(key.plugins)}`;
  const rows = key.keys === undefined ? row("", name, key) : rowsOf("", key.keys);
  return `### \`${name}\`\n\n${cellText(key.doc)}\n\n${table(rows)}`;
}

function pluginText(types: PluginTypes): string {
  return Object.entries(types)
    .map(([type, { doc, plugins }]) => {
      const missing = Object.keys(plugins).filter((name) => plugins[name] === undefined);
      const built = Object.entries(plugins).map(([name, spec]) => {
        if (spec === undefined) return "";
        const keys = Object.keys(spec.keys).length === 0 ? "" : `\n${table(rowsOf("", spec.keys))}`;
        return `**\`${type} "${name}"\`** ${cellText(spec.doc)}\n${keys}\n`;
      });
      const rest =
        missing.length === 0
          ? ""
          : `Not supported in this version: ${missing.map((name) => `\`${name}\``).join(", ")}.\n\n`;
      return `#### \`${type}\`\n\n${cellText(doc)}\n\n${built.join("")}${rest}`;
    })
    .join("");
}

function table(rows: string): string {
  return `| key | type | default | meaning | compared with SPIRE |\n|---|---|---|---|---|\n${rows}`;
}

function rowsOf(prefix: string, keys: Keys): string {
  return Object.entries(keys)
    .map(([name, key]) => row(prefix, name, key))
    .join("");
}

function row(prefix: string, name: string, key: Key<unknown>): string {
  const cells = [`\`${prefix}${name}\``, key.type, shown(key.shownDefault), key.doc, comparison(key)].map(cellText);
  return `| ${cells.join(" | ")} |\n${key.keys === undefined ? "" : rowsOf(`${prefix}${name}.`, key.keys)}`;
}

function shown(value: string | undefined): string {
  return value === undefined || value === "" ? "" : `\`${value}\``;
}

function comparison(key: Key<unknown>): string {
  if (key.own === true) return "Steeple only";
  return key.status === "works" ? "as SPIRE" : key.status;
}

function cellText(cell: string): string {
  return cell.replaceAll("|", "\\|").replaceAll("\n", " ");
}
