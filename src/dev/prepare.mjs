// Makes a plain checkout ready: packages, generated types, compiled JavaScript. Runs on any Node from 20 on, before
// anything is installed, so it uses nothing but Node itself.
//
//   node src/dev/prepare.mjs packages|generate|build|lint|test|check
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HOME = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const MODULES = join(HOME, "node_modules");
const CACHE = join(MODULES, ".cache", "steeple");
const DEBIAN_PROGRAMS = [
  { package: "postgresql", path: "/usr/lib/postgresql/*/bin/initdb" },
  { package: "softhsm2", path: "/usr/lib/softhsm/libsofthsm2.so" },
  { package: "openssh-client", path: "/usr/bin/ssh-keygen" },
  { package: "dbus", path: "/usr/bin/dbus-daemon" },
];

function say(text) {
  process.stderr.write(`${text}\n`);
}

/** Ends the process with the command's own status when it fails. */
function run(command, args) {
  const path = `${join(MODULES, ".bin")}:${process.env.PATH ?? ""}`;
  const done = spawnSync(command, args, {
    cwd: HOME,
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, PATH: path },
  });
  if (done.error !== undefined) say(`Error: could not run ${command}: ${done.error.message}`);
  if (done.status !== 0) process.exit(done.status ?? 1);
}

/** The digest of the named files and folders' contents, paths included. */
function digest(paths) {
  const hash = createHash("sha256");
  const visit = (path) => {
    const full = join(HOME, path);
    if (!existsSync(full)) return;
    let items;
    try {
      items = readdirSync(full, { withFileTypes: true });
    } catch {
      hash.update(`${path}\0`).update(readFileSync(full)).update("\0");
      return;
    }
    for (const item of items.map((entry) => entry.name).sort()) visit(join(path, item));
  };
  for (const path of paths) visit(path);
  return hash.digest("hex");
}

/** Does `work` unless its inputs are those of the last time it succeeded. */
function unlessDone(name, inputs, work) {
  const stamp = join(CACHE, name);
  const now = digest(inputs);
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === now) return;
  work();
  mkdirSync(CACHE, { recursive: true });
  writeFileSync(stamp, now);
}

function packages() {
  const stamp = join(CACHE, "packages");
  const now = digest(["package-lock.json"]);
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === now) return;
  say("Installing packages (once)...");
  const npm = process.env.npm_execpath;
  const args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  if (npm !== undefined && existsSync(npm)) run(process.execPath, [npm, ...args]);
  else run("npm", args);
  mkdirSync(CACHE, { recursive: true });
  writeFileSync(stamp, now);
}

function generate() {
  packages();
  unlessDone("generate", ["proto", "src/rpc/generate.ts", "package-lock.json"], () => {
    rmSync(join(HOME, "src/rpc/gen"), { recursive: true, force: true });
    run("node", ["src/rpc/generate.ts"]);
  });
}

function build() {
  generate();
  unlessDone("build", ["src", "server", "agent", "proto", "tsconfig.json", "package-lock.json"], () => {
    say("Building...");
    rmSync(join(HOME, "dist"), { recursive: true, force: true });
    run("tsc", ["-p", "src/dev/tsconfig.json"]);
    run("node", ["dist/server/store/base-image.js"]);
    run("node", ["src/dev/bundle.mjs"]);
  });
}

/** A star stands for any one name. */
function isThere(path) {
  const [folder, rest] = path.split("*");
  if (rest === undefined) return existsSync(folder);
  return existsSync(folder) && readdirSync(folder).some((name) => existsSync(join(folder, name, rest)));
}

/**
 * The tests use real programs of Debian's. As root on Debian the missing ones are installed; elsewhere their tests say
 * why they skip.
 */
function programs() {
  const missing = DEBIAN_PROGRAMS.filter(({ path }) => !isThere(path)).map((program) => program.package);
  if (missing.length === 0 || process.getuid?.() !== 0 || !existsSync("/usr/bin/apt-get")) return;
  say(`Installing ${missing.join(", ")} for the tests (once)...`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  for (const args of [
    ["update", "-qq"],
    ["install", "-y", "-qq", "--no-install-recommends", ...missing],
  ]) {
    const done = spawnSync("apt-get", args, { stdio: ["ignore", "ignore", "inherit"], env });
    if (done.status !== 0) return say("They could not be installed; their tests will be skipped.");
  }
}

/** Tests that start whole programs, and a few that take as long: `npm test` runs them, `check` does not wait for them. */
const STARTS_PROGRAMS = /\b(startServer|startAgent|startCluster)\(/;
const SLOW = [
  "agent/api/{broker,delegated}*",
  "agent/{health,workload/attest,workload/docker,workload/kube-watch}",
  "server/ca/{recovery,year}",
  "server/janitor-lease",
  "server/store/{embedded-directory,feed,kill,migrations}",
  "src/client/{broker,watch}",
  "src/rpc/{tcp-door,unix}",
].map((path) => `test/${path}.test.ts`);

function slowTests() {
  const tests = readdirSync(join(HOME, "test"), { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".test.ts"))
    .map((path) => `test/${path}`);
  return [...SLOW, ...tests.filter((path) => STARTS_PROGRAMS.test(readFileSync(join(HOME, path), "utf8")))];
}

function lint() {
  generate();
  run("tsc", ["--noEmit", "-p", "."]);
  run("biome", ["ci", "."]);
  run("knip", []);
}

function check() {
  lint();
  const excluded = ["test/e2e/**", "test/package.test.ts", ...slowTests()].map((path) => `--exclude=${path}`);
  run("vitest", ["run", "--config", "test/vitest.config.ts", ...excluded]);
}

const steps = {
  packages,
  generate,
  build,
  lint,
  check,
  test: () => {
    build();
    programs();
  },
};

const step = steps[process.argv[2] ?? ""];
if (step === undefined) {
  say(`usage: node src/dev/prepare.mjs ${Object.keys(steps).join("|")}`);
  process.exit(1);
}
step();
