import { entryToSvid, fetchFromCache } from "./agent.ts";
import type { Scenarios } from "./arguments.ts";
import { workloads } from "./attest.ts";
import { crypto } from "./crypto.ts";
import { directory } from "./directory.ts";
import { entries } from "./entries.ts";
import { herd } from "./herd.ts";
import { keyTypes } from "./key-types.ts";
import { fanOut, localApis } from "./local-apis.ts";
import { memory } from "./memory.ts";
import { nodes } from "./nodes.ts";
import { propagation } from "./propagation.ts";
import { signing } from "./signing.ts";
import { simulate } from "./simulate.ts";
import { start } from "./start.ts";
import { streamMemory } from "./streams.ts";
import { jwt, tokenCalls, tokens } from "./tokens.ts";

/** In the order in which they run. */
export const scenarios: Scenarios = {
  crypto,
  "key-types": keyTypes,
  tokens,
  signing,
  jwt,
  nodes,
  workloads,
  fetch: fetchFromCache,
  "token-calls": tokenCalls,
  "local-apis": localApis,
  "fan-out": fanOut,
  "stream-memory": streamMemory,
  propagation,
  "entry-to-svid": entryToSvid,
  start,
  memory,
  entries,
  directory,
  simulate,
  herd,
};
