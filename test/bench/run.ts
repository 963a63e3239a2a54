import { readFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { measureEntryToSvid, measureFetch } from "./agent.ts";
import { measureAttestation } from "./attest.ts";
import { measureCrypto } from "./crypto.ts";
import { measureDirectory } from "./directory.ts";
import { measureEntries } from "./entries.ts";
import { measureKeyTypes } from "./key-types.ts";
import { measureFanOut, measureLocalApis } from "./local-apis.ts";
import { measureNodeAttestation } from "./nodes.ts";
import { measurePush } from "./push.ts";
import { measureSigning } from "./signing.ts";
import { measureStart } from "./start.ts";
import { measureTokenCalls, measureTokens } from "./tokens.ts";

/**
 * Figures of this machine at this moment. Absolute numbers move with the hour; what carries is a ratio, or a figure
 * beside the reference measured in the same run.
 */
const benches = {
  crypto: measureCrypto,
  signing: measureSigning,
  "key-types": measureKeyTypes,
  attest: measureAttestation,
  nodes: measureNodeAttestation,
  fetch: measureFetch,
  "local-apis": measureLocalApis,
  "fan-out": measureFanOut,
  tokens: measureTokens,
  "token-calls": measureTokenCalls,
  "entry-to-svid": measureEntryToSvid,
  directory: measureDirectory,
  push: measurePush,
  start: measureStart,
  entries: measureEntries,
};

const wanted = process.argv.slice(2);
console.log(
  `Node ${process.version}, ${cpus().length} cores (${cpus()[0]?.model.trim()}), ${Math.round(totalmem() / 2 ** 30)} GiB, load ${loadAverage()}\n`,
);
for (const [name, measure] of Object.entries(benches)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  console.log(`## ${name}`);
  for (const line of await measure()) console.log(line);
  console.log();
}

function loadAverage(): string {
  return readFileSync("/proc/loadavg", "utf8").split(" ").slice(0, 1).join("");
}
