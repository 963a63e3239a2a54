import type { Api } from "../../src/cli/api-command.ts";
import type { Answer } from "../../src/cli/output.ts";
import type { Table } from "../../src/cli/table.ts";
import type { ListEntriesRequest } from "../../src/rpc/gen/spire/api/server/entry/v1/ListEntriesRequest.ts";
import type { Entry, Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { Status__Output } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { EntryApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { Fault, isFault, messageOf } from "../../src/runtime/fault.ts";
import { type FlagSpecs, type FlagValues, outputFlag } from "../../src/runtime/flags.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { formatSelector, selectsImageByTag } from "../../src/spiffe/selector.ts";
import { serverCommand } from "./connection.ts";
import { checkEntryFlags, entriesFromJson, entryFlags, entryFromFlags, sortEntries } from "./entry-message.ts";
import { awaitAgents, waitFlags } from "./entry-wait.ts";
import { readInput, usage } from "./input.ts";
import { idFrom, inContext, matchFrom, matchSelectorsFlag, selectorFrom } from "./match.ts";
import { entryTable, idText, plural, printEntry, statusText } from "./print.ts";

const PAGE_SIZE = 500;
const SERVER_PATH = "/spire/server";

interface EntryResult {
  readonly status: Status__Output | null;
  readonly entry: Entry__Output | null;
}

/** Created or updated entries, and on standard error those that were refused. */
function resultsAnswer(verb: "create" | "update", results: readonly EntryResult[], sent: readonly Entry[]): Answer {
  const shown = results.map((result, index) => ({
    ...result,
    entry: isOk(result) ? result.entry : asReceived(sent[index] ?? {}),
  }));
  const refused = shown.filter((result) => !isOk(result));
  return {
    message: { results: shown },
    pretty({ stdout, stderr }) {
      for (const result of shown) if (isOk(result) && result.entry !== null) printEntry(stdout, result.entry);
      for (const { selectors } of shown.filter(isOk).flatMap(({ entry }) => entry ?? []))
        for (const selector of selectors.filter(selectsImageByTag))
          stderr.write(
            `Warning: ${formatSelector(selector)} names an image by tag, which can come to mean another image; use its digest\n`,
          );
      for (const { status, entry } of refused) {
        stderr.write(`Failed to ${verb} the following entry (${statusText(status)}):\n`);
        printEntry(stderr, entry ?? asReceived({}));
      }
    },
    table: withStatus(shown, entryTable(shown.map(({ entry }) => entry ?? asReceived({})))),
    failure: refused.length === 0 ? undefined : batchFailure(verb, "entries"),
  };
}

function doneIds(results: readonly EntryResult[]): string[] {
  return results.filter(isOk).flatMap(({ entry }) => entry?.id ?? []);
}

function isOk({ status }: { readonly status: Status__Output | null }): boolean {
  return status?.code === 0;
}

function batchFailure(verb: string, things: string): Fault {
  return new Fault("invalid", `failed to ${verb} one or more ${things}`, {
    code: `entry-${verb}-failed`,
    hint: "each refused item is listed with its reason; the others are done",
  });
}

function withStatus(results: readonly { readonly status: Status__Output | null }[], table: Table): Table {
  return {
    columns: [{ title: "RESULT" }, ...table.columns],
    rows: table.rows.map((row, index) => [results[index]?.status?.message ?? "", ...row]),
  };
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

const create = serverCommand({
  summary: "Creates registration entries",
  flags: {
    ...entryFlags,
    node: { type: "bool", doc: "If set, this entry will be applied to matching nodes rather than workloads" },
    ...waitFlags,
    output: outputFlag,
  },
  examples: [
    "entry create -parentID spiffe://example.org/my-node -spiffeID spiffe://example.org/my-service -selector unix:uid:1000",
    "entry create -node -spiffeID spiffe://example.org/my-node -selector join_token:…",
    "entry create -data entries.json -wait",
  ],
  async run({ flags, io, api }): Promise<Answer> {
    const entries = flags.data === "" ? [newEntry(flags)] : entriesFromJson(await readInput(flags.data, io));
    const { results } = await api.ask(api.client(EntryApi).BatchCreateEntry({ entries }));
    await awaitAgents(api, flags, { io, ids: doneIds(results) });
    return resultsAnswer("create", results, entries);
  },
});

function newEntry(flags: FlagValues<typeof entryFlags> & { readonly node: boolean }): Entry {
  if (flags.selector.length === 0) throw usage("at least one selector is required", "add -selector type:value");
  if (flags.node && flags.federatesWith.length > 0)
    throw usage("node entries can not federate", "leave -federatesWith out");
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
  flags: { ...entryFlags, ...waitFlags, output: outputFlag },
  examples: [
    "entry update -entryID <id> -parentID spiffe://example.org/my-node -spiffeID spiffe://example.org/my-service -selector unix:uid:1001",
  ],
  async run({ flags, io, api }): Promise<Answer> {
    const entries =
      flags.data === "" ? [await changedEntry(flags, api)] : entriesFromJson(await readInput(flags.data, io));
    const { results } = await api.ask(api.client(EntryApi).BatchUpdateEntry({ entries }));
    await awaitAgents(api, flags, { io, ids: doneIds(results) });
    return resultsAnswer("update", results, entries);
  },
});

/** An update replaces the whole entry, save attributes that were not named: those stay as they are. */
async function changedEntry(flags: FlagValues<typeof entryFlags>, api: Api): Promise<Entry> {
  if (flags.entryID === "") throw usage("entry ID is required", "add -entryID; entry show lists them");
  if (flags.selector.length === 0) throw usage("at least one selector is required", "add -selector type:value");
  if (flags.parentID === "") throw usage("a parent ID is required", "add -parentID spiffe://…");
  checkEntryFlags(flags);
  const entry = entryFromFlags(flags);
  if (entry.additional_attributes === undefined) return entry;
  const existing = await api.ask(
    api.client(EntryApi).GetEntry({ id: flags.entryID }),
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
  parentID: { type: "string", doc: "The Parent ID of the records", default: "", complete: "parent" },
  spiffeID: { type: "string", doc: "The SPIFFE ID of the records", default: "", complete: "spiffe-id" },
  selector: { type: "strings", doc: "A colon-delimited type:value selector. Can be used more than once" },
  matchSelectorsOn: matchSelectorsFlag,
  federatesWith: {
    type: "strings",
    doc: "SPIFFE ID of a trust domain an entry federates with. Can be used more than once",
    complete: "trust-domain",
  },
  matchFederatesWithOn: {
    ...matchSelectorsFlag,
    doc: "The match mode used when filtering by federates with. Options: exact, any, superset and subset",
  },
  downstream: { type: "bool", doc: "If set, only entries that describe downstream servers" },
  hint: { type: "string", doc: "The Hint of the records (optional)", default: "" },
} as const satisfies FlagSpecs;

function filterFrom(flags: FlagValues<typeof filterFlags>): NonNullable<ListEntriesRequest["filter"]> {
  return {
    ...(flags.parentID === ""
      ? {}
      : {
          by_parent_id: inContext(`error parsing parent ID ${JSON.stringify(flags.parentID)}`, () =>
            idFrom(flags.parentID),
          ),
        }),
    ...(flags.spiffeID === ""
      ? {}
      : {
          by_spiffe_id: inContext(`error parsing SPIFFE ID ${JSON.stringify(flags.spiffeID)}`, () =>
            idFrom(flags.spiffeID),
          ),
        }),
    ...(flags.selector.length === 0
      ? {}
      : {
          by_selectors: {
            match: matchFrom(flags.matchSelectorsOn),
            selectors: inContext("error parsing selectors", () => flags.selector.map(selectorFrom)),
          },
        }),
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
    entryID: { type: "string", doc: "The Entry ID of the record to show", default: "", complete: "entry" },
    ...filterFlags,
    output: outputFlag,
  },
  examples: [
    "entry show",
    "entry show -spiffeID spiffe://example.org/my-service",
    "entry show -selector unix:uid:1000 -output json",
    "entry show --output table --watch",
  ],
  watchable: true,
  async run({ flags, api }): Promise<Answer> {
    if (flags.entryID !== "" && (flags.parentID !== "" || flags.spiffeID !== "" || flags.selector.length > 0)) {
      throw usage("the -entryID flag can't be combined with others", "leave the other filters out");
    }
    const found =
      flags.entryID === "" ? await listEntries(api, filterFrom(flags)) : [await fetchEntry(api, flags.entryID)];
    const entries = sortEntries(found);
    return {
      message: { entries, next_page_token: "" },
      pretty({ stdout }) {
        stdout.write(`Found ${plural(entries.length, "entry", "entries")}\n`);
        for (const entry of entries) printEntry(stdout, entry);
      },
      table: entryTable(entries),
    };
  },
});

function fetchEntry(api: Api, id: string): Promise<Entry__Output> {
  return api.ask(api.client(EntryApi).GetEntry({ id }), `error fetching entry ID ${id}`);
}

async function listEntries(api: Api, filter: NonNullable<ListEntriesRequest["filter"]>): Promise<Entry__Output[]> {
  const entries: Entry__Output[] = [];
  let token = "";
  do {
    const request = { page_size: PAGE_SIZE, page_token: token, filter };
    const page = await api.ask(api.client(EntryApi).ListEntries(request), "error fetching entries");
    entries.push(...page.entries);
    token = page.next_page_token;
  } while (token !== "");
  return entries;
}

const count = serverCommand({
  summary: "Count registration entries",
  flags: { ...filterFlags, output: outputFlag },
  examples: ["entry count", "entry count -parentID spiffe://example.org/my-node"],
  async run({ flags, api }): Promise<Answer> {
    const message = await api.ask(api.client(EntryApi).CountEntries({ filter: filterFrom(flags) }));
    return {
      message,
      pretty: ({ stdout }) =>
        void stdout.write(`${plural(message.count, "registration entry", "registration entries")}\n`),
    };
  },
});

const remove = serverCommand({
  summary: "Deletes registration entries",
  flags: {
    entryID: {
      type: "string",
      doc: "The Registration Entry ID of the record to delete",
      default: "",
      complete: "entry",
    },
    file: {
      type: "string",
      doc: "Path to a file with {\"ids\": […]} for batch deletion; '-' reads standard input",
      default: "",
      complete: "file",
    },
    ...waitFlags,
    output: outputFlag,
  },
  examples: ["entry delete -entryID <id>", "entry delete -file ids.json", "entry delete --entry-id <id> --yes"],
  destructive: true,
  async run({ flags, io, api }): Promise<Answer> {
    if (flags.file === "" && flags.entryID === "")
      throw usage("an entry ID is required", "add -entryID; entry show lists them");
    const ids = flags.file === "" ? [flags.entryID] : idsFromJson(await readInput(flags.file, io));
    await api.confirm(() => describeEntries(api, ids));
    const { results } = await api.ask(api.client(EntryApi).BatchDeleteEntry({ ids }));
    await awaitAgents(api, flags, { io, ids: results.filter(isOk).map(({ id }) => id) });
    return {
      message: { results },
      pretty: (out) => printDeleted(out, results),
      table: {
        columns: [{ title: "ENTRY ID" }, { title: "RESULT" }],
        rows: results.map(({ id, status }) => [id, status?.message ?? ""]),
      },
      failure: results.every(isOk) ? undefined : batchFailure("delete", "entries"),
    };
  },
});

const MOST_DESCRIBED = 20;

async function describeEntries(api: Api, ids: readonly string[]): Promise<string> {
  const lines: string[] = [];
  for (const id of ids.slice(0, MOST_DESCRIBED)) lines.push(`  ${id}  ${await describeEntry(api, id)}`);
  if (ids.length > MOST_DESCRIBED) lines.push(`  and ${ids.length - MOST_DESCRIBED} more`);
  return `delete ${plural(ids.length, "entry", "entries")}, whose SVIDs are then no longer renewed:\n${lines.join("\n")}`;
}

async function describeEntry(api: Api, id: string): Promise<string> {
  try {
    const { spiffe_id, parent_id } = await fetchEntry(api, id);
    return `${idText(spiffe_id)} under ${idText(parent_id)}`;
  } catch (error) {
    if (isFault(error, "not_found")) return "(not found)";
    throw error;
  }
}

function idsFromJson(text: string): string[] {
  const hint = 'write {"ids": ["…"]}';
  let ids: unknown;
  try {
    ids = (JSON.parse(text) as { readonly ids?: unknown }).ids;
  } catch (error) {
    throw new Fault("invalid", `the ids are not valid JSON: ${messageOf(error)}`, { code: "entry-data", hint });
  }
  if (Array.isArray(ids) && ids.every((id) => typeof id === "string")) return ids;
  throw new Fault("invalid", 'the data has no list of strings "ids"', { code: "entry-data", hint });
}

function printDeleted(
  { stdout, stderr }: Io,
  results: readonly { readonly status: Status__Output | null; readonly id: string }[],
): void {
  const done = results.filter(isOk);
  const failed = results.length - done.length;
  for (const { id } of done) stdout.write(`Deleted entry with ID: ${id}\n`);
  if (done.length > 0) stdout.write("\n\n");
  for (const { status, id } of results.filter((result) => !isOk(result))) {
    stderr.write(`Failed to delete entry with ID ${id} (${statusText(status)})\n`);
  }
  // SPIRE ends this line without a newline; on a terminal the prompt would stand behind it.
  const end = stdout.isTTY === true ? "\n" : "";
  if (failed === 0) return void stdout.write(`Deleted ${done.length} entries successfully${end}`);
  const summary =
    done.length === 0
      ? `Failed to delete ${failed} entries`
      : `Deleted ${done.length} entries successfully, but failed to delete ${failed} entries`;
  stdout.write(`\n\n${summary}${end}`);
}

export const entryCommands = group("Creates, shows, changes and deletes registration entries", {
  count,
  create,
  delete: remove,
  show,
  update,
});
