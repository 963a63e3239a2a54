import { readFile } from "node:fs/promises";
import type { ListEntriesRequest } from "../../src/rpc/gen/spire/api/server/entry/v1/ListEntriesRequest.ts";
import type { Entry, Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { Status__Output } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { EntryApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { type FlagSpecs, type FlagValues, outputFlag } from "../../src/runtime/flags.ts";
import { type Io, readStdin, type TextOutput } from "../../src/runtime/terminal.ts";
import { type ServerConnection, serverCommand } from "./connection.ts";
import { checkEntryFlags, entriesFromJson, entryFlags, entryFromFlags, sortEntries, usage } from "./entry-message.ts";
import { idFrom, matchFrom, matchSelectorsFlag, selectorFrom } from "./match.ts";
import { plural, print, printEntry, statusText } from "./print.ts";

const PAGE_SIZE = 500;
const MAX_DATA_BYTES = 64 * 1024 * 1024;
const SERVER_PATH = "/spire/server";

/** A file's text, or standard input for `-`. Throws `invalid`. */
async function readData(path: string, io: Io): Promise<string> {
  if (path !== "-") {
    return readFile(path, "utf8").catch((error: unknown) => {
      throw new Fault("invalid", messageOf(error), {
        code: "entry-data",
        hint: "give the path of a readable file, or - for standard input",
      });
    });
  }
  const text = await readStdin(io, MAX_DATA_BYTES);
  if (text === undefined) throw new Fault("invalid", "standard input is larger than 64 MiB", { code: "entry-data" });
  return text;
}

interface EntryResult {
  readonly status: Status__Output | null;
  readonly entry: Entry__Output | null;
}

/** Created or updated entries, then what failed on standard error; status 1 when anything did. */
function printResults(
  io: Io,
  verb: "create" | "update",
  results: readonly EntryResult[],
  sent: readonly Entry[],
): void {
  const failed = results
    .map((result, index) => ({ ...result, sent: sent[index] }))
    .filter(({ status }) => status?.code !== 0);
  for (const { status, entry } of results) if (status?.code === 0 && entry !== null) printEntry(io.stdout, entry);
  for (const { status, sent: entry } of failed) {
    io.stderr.write(`Failed to ${verb} the following entry ${statusText(status)}:\n`);
    printEntry(io.stderr, asReceived(entry ?? {}));
  }
  if (failed.length === 0) return;
  throw new Fault("invalid", `failed to ${verb} one or more entries`, { code: `entry-${verb}-failed` });
}

/** The server does not send back what it refused, so what was sent is shown. */
function asReceived(entry: Entry): Entry__Output {
  const { spiffe_id, parent_id, additional_attributes } = entry;
  return {
    id: entry.id ?? "",
    spiffe_id: spiffe_id ? { trust_domain: spiffe_id.trust_domain ?? "", path: spiffe_id.path ?? "" } : null,
    parent_id: parent_id ? { trust_domain: parent_id.trust_domain ?? "", path: parent_id.path ?? "" } : null,
    selectors: (entry.selectors ?? []).map(({ type = "", value = "" }) => ({ type, value })),
    x509_svid_ttl: entry.x509_svid_ttl ?? 0,
    jwt_svid_ttl: entry.jwt_svid_ttl ?? 0,
    federates_with: entry.federates_with ?? [],
    dns_names: entry.dns_names ?? [],
    admin: entry.admin ?? false,
    downstream: entry.downstream ?? false,
    store_svid: entry.store_svid ?? false,
    expires_at: String(entry.expires_at ?? 0),
    hint: entry.hint ?? "",
    revision_number: "0",
    created_at: "0",
    additional_attributes: additional_attributes
      ? {
          disable_x509_svid_prefetch: additional_attributes.disable_x509_svid_prefetch ?? false,
          jwt_svid_include_jti: additional_attributes.jwt_svid_include_jti ?? false,
        }
      : null,
  };
}

/** For JSON, which prints the whole answer: a refused item carries the entry that was sent. */
function withSent<R extends EntryResult>(results: readonly R[], sent: readonly Entry[]): R[] {
  return results.map((result, index) =>
    result.status?.code === 0 ? result : { ...result, entry: asReceived(sent[index] ?? {}) },
  );
}

function failures(results: readonly { readonly status: Status__Output | null }[]): number {
  return results.filter(({ status }) => status?.code !== 0).length;
}

const create = serverCommand({
  summary: "Creates registration entries",
  flags: {
    ...entryFlags,
    node: { type: "bool", doc: "If set, this entry will be applied to matching nodes rather than workloads" },
    output: outputFlag,
  },
  examples: [
    "entry create -parentID spiffe://example.org/my-node -spiffeID spiffe://example.org/my-service -selector unix:uid:1000",
    "entry create -node -spiffeID spiffe://example.org/my-node -selector join_token:…",
    "entry create -data entries.json",
  ],
  async run({ flags, io, server }) {
    const entries = flags.data === "" ? [newEntry(flags)] : entriesFromJson(await readData(flags.data, io));
    const answer = await server.ask(server.client(EntryApi).BatchCreateEntry({ entries }));
    const message = { ...answer, results: withSent(answer.results, entries) };
    print({ io, output: flags.output, message }, () => printResults(io, "create", answer.results, entries));
    return failures(answer.results) === 0 ? 0 : 1;
  },
});

function newEntry(flags: FlagValues<typeof entryFlags> & { readonly node: boolean }): Entry {
  if (flags.selector.length === 0) throw usage("at least one selector is required", "add -selector type:value");
  if (flags.node && flags.federatesWith.length > 0) throw usage("node entries can not federate");
  if (flags.parentID === "" && !flags.node) {
    throw usage(
      "a parent ID is required if the node flag is not set",
      "add -parentID spiffe://…, the agent's ID or a node entry's",
    );
  }
  checkEntryFlags(flags);
  const entry = entryFromFlags(flags);
  return flags.node
    ? { ...entry, parent_id: { trust_domain: entry.spiffe_id?.trust_domain ?? "", path: SERVER_PATH } }
    : entry;
}

const update = serverCommand({
  summary: "Updates registration entries",
  flags: { ...entryFlags, output: outputFlag },
  examples: [
    "entry update -entryID <id> -parentID spiffe://example.org/my-node -spiffeID spiffe://example.org/my-service -selector unix:uid:1001",
  ],
  async run({ flags, io, server }) {
    const entries =
      flags.data === "" ? [await changedEntry(flags, server)] : entriesFromJson(await readData(flags.data, io));
    const answer = await server.ask(server.client(EntryApi).BatchUpdateEntry({ entries }));
    const message = { ...answer, results: withSent(answer.results, entries) };
    print({ io, output: flags.output, message }, () => printResults(io, "update", answer.results, entries));
    return failures(answer.results) === 0 ? 0 : 1;
  },
});

/** An update replaces the whole entry, save attributes that were not named: those stay as they are. */
async function changedEntry(flags: FlagValues<typeof entryFlags>, server: ServerConnection): Promise<Entry> {
  if (flags.entryID === "") throw usage("entry ID is required", "add -entryID; entry show lists them");
  if (flags.selector.length === 0) throw usage("at least one selector is required", "add -selector type:value");
  if (flags.parentID === "") throw usage("a parent ID is required", "add -parentID spiffe://…");
  checkEntryFlags(flags);
  const entry = entryFromFlags(flags);
  if (entry.additional_attributes === undefined) return entry;
  const existing = await server.ask(
    server.client(EntryApi).GetEntry({ id: flags.entryID }),
    "failed to fetch existing entry to merge additional attributes",
  );
  const kept = existing.additional_attributes;
  return {
    ...entry,
    additional_attributes: {
      disable_x509_svid_prefetch: flags.disableX509SVIDPrefetch || kept?.disable_x509_svid_prefetch === true,
      jwt_svid_include_jti: flags.jwtSVIDIncludeJTI || kept?.jwt_svid_include_jti === true,
    },
  };
}

const filterFlags = {
  parentID: { type: "string", doc: "The Parent ID of the records", default: "" },
  spiffeID: { type: "string", doc: "The SPIFFE ID of the records", default: "" },
  selector: { type: "strings", doc: "A colon-delimited type:value selector. Can be used more than once" },
  matchSelectorsOn: matchSelectorsFlag,
  federatesWith: {
    type: "strings",
    doc: "SPIFFE ID of a trust domain an entry federates with. Can be used more than once",
  },
  matchFederatesWithOn: {
    type: "string",
    doc: "The match mode used when filtering by federates with. Options: exact, any, superset and subset",
    default: "superset",
  },
  downstream: { type: "bool", doc: "If set, only entries that describe downstream servers" },
  hint: { type: "string", doc: "The Hint of the records (optional)", default: "" },
} as const satisfies FlagSpecs;

function filterFrom(flags: FlagValues<typeof filterFlags>): NonNullable<ListEntriesRequest["filter"]> {
  return {
    ...(flags.parentID === "" ? {} : { by_parent_id: idFrom(flags.parentID) }),
    ...(flags.spiffeID === "" ? {} : { by_spiffe_id: idFrom(flags.spiffeID) }),
    ...(flags.selector.length === 0
      ? {}
      : { by_selectors: { selectors: flags.selector.map(selectorFrom), match: matchFrom(flags.matchSelectorsOn) } }),
    ...(flags.federatesWith.length === 0
      ? {}
      : {
          by_federates_with: { trust_domains: [...flags.federatesWith], match: matchFrom(flags.matchFederatesWithOn) },
        }),
    ...(flags.hint === "" ? {} : { by_hint: { value: flags.hint } }),
    ...(flags.downstream ? { by_downstream: { value: true } } : {}),
  };
}

const show = serverCommand({
  summary: "Displays configured registration entries",
  flags: {
    entryID: { type: "string", doc: "The Entry ID of the record to show", default: "" },
    ...filterFlags,
    output: outputFlag,
  },
  examples: [
    "entry show",
    "entry show -spiffeID spiffe://example.org/my-service",
    "entry show -selector unix:uid:1000 -output json",
  ],
  async run({ flags, io, server }) {
    if (flags.entryID !== "" && (flags.parentID !== "" || flags.spiffeID !== "" || flags.selector.length > 0)) {
      throw usage("the -entryID flag can't be combined with others");
    }
    const found =
      flags.entryID === "" ? await listEntries(server, filterFrom(flags)) : [await fetchEntry(server, flags.entryID)];
    const entries = sortEntries(found);
    print({ io, output: flags.output, message: { entries, next_page_token: "" } }, () => {
      io.stdout.write(`Found ${plural(entries.length, "entry", "entries")}\n`);
      for (const entry of entries) printEntry(io.stdout, entry);
    });
  },
});

function fetchEntry(server: ServerConnection, id: string): Promise<Entry__Output> {
  return server.ask(server.client(EntryApi).GetEntry({ id }), `error fetching entry ID ${id}`);
}

async function listEntries(
  server: ServerConnection,
  filter: NonNullable<ListEntriesRequest["filter"]>,
): Promise<Entry__Output[]> {
  const entries: Entry__Output[] = [];
  let token = "";
  do {
    const request = { page_size: PAGE_SIZE, page_token: token, filter };
    const page = await server.ask(server.client(EntryApi).ListEntries(request), "error fetching entries");
    entries.push(...page.entries);
    token = page.next_page_token;
  } while (token !== "");
  return entries;
}

const count = serverCommand({
  summary: "Count registration entries",
  flags: { ...filterFlags, output: outputFlag },
  examples: ["entry count", "entry count -parentID spiffe://example.org/my-node"],
  async run({ flags, io, server }) {
    const message = await server.ask(server.client(EntryApi).CountEntries({ filter: filterFrom(flags) }));
    print({ io, output: flags.output, message }, () => {
      io.stdout.write(`${plural(message.count, "registration entry", "registration entries")}\n`);
    });
  },
});

const remove = serverCommand({
  summary: "Deletes registration entries",
  flags: {
    entryID: { type: "string", doc: "The Registration Entry ID of the record to delete", default: "" },
    file: {
      type: "string",
      doc: "Path to a file with {\"ids\": […]} for batch deletion; '-' reads standard input",
      default: "",
    },
    output: outputFlag,
  },
  examples: ["entry delete -entryID <id>", "entry delete -file ids.json"],
  async run({ flags, io, server }) {
    if (flags.file === "" && flags.entryID === "")
      throw usage("an entry ID is required", "add -entryID; entry show lists them");
    const ids = flags.file === "" ? [flags.entryID] : idsFromJson(await readData(flags.file, io));
    const answer = await server.ask(server.client(EntryApi).BatchDeleteEntry({ ids }));
    print({ io, output: flags.output, message: answer }, () => printDeleted(io, answer.results));
    return failures(answer.results) === 0 ? 0 : 1;
  },
});

function idsFromJson(text: string): string[] {
  let ids: unknown;
  try {
    ids = (JSON.parse(text) as { readonly ids?: unknown }).ids;
  } catch (error) {
    throw new Fault("invalid", `the ids are not valid JSON: ${messageOf(error)}`, { code: "entry-data" });
  }
  if (Array.isArray(ids) && ids.every((id) => typeof id === "string")) return ids;
  throw new Fault("invalid", 'the data has no list of strings "ids"', {
    code: "entry-data",
    hint: 'write {"ids": ["…"]}',
  });
}

function printDeleted(
  io: Io,
  results: readonly { readonly status: Status__Output | null; readonly id: string }[],
): void {
  const out: TextOutput = io.stdout;
  const failed = failures(results);
  const succeeded = results.length - failed;
  for (const { status, id } of results) if (status?.code === 0) out.write(`Deleted entry with ID: ${id}\n`);
  if (succeeded > 0) out.write("\n\n");
  for (const { status, id } of results) {
    if (status?.code !== 0) io.stderr.write(`Failed to delete entry with ID ${id} ${statusText(status)}\n`);
  }
  if (failed === 0) return void out.write(`Deleted ${succeeded} entries successfully\n`);
  const summary =
    succeeded === 0
      ? `Failed to delete ${failed} entries`
      : `Deleted ${succeeded} entries successfully, but failed to delete ${failed} entries`;
  out.write(`\n\n${summary}\n`);
  throw new Fault("invalid", "failed to delete one or more entries", { code: "entry-delete-failed" });
}

export const entryCommands = group("Creates, shows, changes and deletes registration entries", {
  count,
  create,
  delete: remove,
  show,
  update,
});
