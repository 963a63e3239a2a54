// Joins what each program is made of into a few files beside its main.js: some hundred small ones cost it twice the time to
// start, and a fifth of its memory. What is native, brings files of its own or is seldom needed stays a package.
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";

const DIST = fileURLToPath(new URL("../../dist/", import.meta.url));
const PACKAGES = [/^@electric-sql\//, "@grpc/proto-loader", "@sigstore/tuf", "koffi", "pg", "pino", "yaml"];

/** `parts` is where modules find what they expect beside them. `alone` when nothing else of the folder is needed. */
const PROGRAMS = [
  { name: "agent", parts: "parts", alone: true },
  { name: "server", parts: "store", alone: false },
];

for (const { name, parts, alone } of PROGRAMS) {
  const dir = join(DIST, name);
  const bundle = await rolldown({
    input: { main: join(dir, "main.js") },
    ...{ platform: "node", external: PACKAGES, logLevel: "warn" },
  });
  const names = { chunkFileNames: `${parts}/part-[hash].js`, comments: false };
  const { output } = await bundle.write({ dir, format: "esm", ...names });
  await bundle.close();
  for (const { type, fileName, code } of output)
    if (type === "chunk") writeFileSync(join(dir, fileName), oneByte(code));
  const made = output.map(({ fileName }) => fileName.split("/")[0]);
  const others = alone ? readdirSync(dir).filter((each) => !made.includes(each)) : [];
  for (const each of others) rmSync(join(dir, each), { recursive: true });
  const modules = output.flatMap((chunk) => (chunk.type === "chunk" ? chunk.moduleIds : []));
  writeFileSync(join(dir, "third-party-licenses.txt"), licensesOf(modules));
}

/** A single character beyond Latin 1 makes the engine hold all of a file in two bytes for each. */
function oneByte(code) {
  return code.replace(/[^\0-\xff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** Of the packages whose files are in the bundle, as these ask for. */
function licensesOf(modules) {
  const folders = new Set(modules.flatMap((path) => /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []));
  const texts = [...folders].sort().map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
    const text = file === undefined ? "" : `\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
    return `${name} ${version} (${license})\n${text}`;
  });
  return texts.join("\n\n");
}
