import type { Api } from "../../src/cli/api-command.ts";
import type { Answer } from "../../src/cli/output.ts";
import type { Table } from "../../src/cli/table.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { Status__Output } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { BundleApi, EntryApi } from "../../src/rpc/protos.ts";
import { codeNameOf } from "../../src/rpc/status.ts";
import { group } from "../../src/runtime/cli.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { type FlagSpec, outputFlag } from "../../src/runtime/flags.ts";
import { serverCommand } from "./connection.ts";
import { incomplete, readInput, usage } from "./input.ts";
import { withContext } from "./match.ts";
import { plural } from "./print.ts";
import { BUNDLE_FORMATS, bundleFormatFrom, bundleFromData, bundleText } from "./trust-bundle.ts";

function formatFlag(doc: string) {
  return { type: "string", doc, default: "pem", complete: BUNDLE_FORMATS } as const satisfies FlagSpec;
}

const idFlag = {
  type: "string",
  doc: "SPIFFE ID of the trust domain",
  default: "",
  complete: "trust-domain",
} as const satisfies FlagSpec;

const show = serverCommand({
  summary: "Prints server CA bundle to stdout",
  flags: {
    format: formatFlag('The format to show the bundle (pretty output only). Either "pem" or "spiffe".'),
    output: outputFlag,
  },
  examples: ["bundle show > bundle.pem", "bundle show -format spiffe"],
  async run({ flags, api }): Promise<Answer> {
    const message = await api.ask(api.client(BundleApi).GetBundle({}));
    return {
      message,
      pretty: ({ stdout }) => void stdout.write(bundleText(message, bundleFormatFrom(flags.format))),
      table: bundleTable([message]),
    };
  },
});

const count = serverCommand({
  summary: "Count bundles",
  flags: { output: outputFlag },
  examples: ["bundle count"],
  async run({ api }): Promise<Answer> {
    const message = await api.ask(api.client(BundleApi).CountBundles({}));
    return { message, pretty: ({ stdout }) => void stdout.write(`${plural(message.count, "bundle", "bundles")}\n`) };
  },
});

const list = serverCommand({
  summary: "Lists federated bundle data",
  flags: {
    id: idFlag,
    format: formatFlag('The format to list federated bundles (pretty output only). Either "pem" or "spiffe".'),
    output: outputFlag,
  },
  examples: ["bundle list", "bundle list -id spiffe://other.org -format spiffe", "bundle list --output table --watch"],
  watchable: true,
  async run({ flags, api }): Promise<Answer> {
    if (flags.id !== "") {
      const message = await api.ask(api.client(BundleApi).GetFederatedBundle({ trust_domain: flags.id }));
      return {
        message,
        pretty: ({ stdout }) => void stdout.write(bundleText(message, bundleFormatFrom(flags.format))),
        table: bundleTable([message]),
      };
    }
    const bundles = await listBundles(api);
    return {
      message: { bundles, next_page_token: "" },
      pretty({ stdout }) {
        const texts = bundles.map(
          (bundle) => `${heading(bundle.trust_domain)}${bundleText(bundle, bundleFormatFrom(flags.format))}`,
        );
        stdout.write(texts.join("\n"));
      },
      table: bundleTable(bundles),
    };
  },
});

async function listBundles(api: Api): Promise<Bundle__Output[]> {
  const bundles: Bundle__Output[] = [];
  let token = "";
  do {
    const page = await api.ask(api.client(BundleApi).ListFederatedBundles({ page_token: token }));
    bundles.push(...page.bundles);
    token = page.next_page_token;
  } while (token !== "");
  return bundles;
}

function heading(trustDomain: string): string {
  const stars = "*".repeat(40);
  return `${stars}\n* ${trustDomain}\n${stars}\n`;
}

function bundleTable(bundles: readonly Bundle__Output[]): Table {
  return {
    columns: [
      { title: "TRUST DOMAIN" },
      { title: "X509 AUTHORITIES" },
      { title: "JWT AUTHORITIES" },
      { title: "WIT AUTHORITIES", wide: true },
      { title: "REFRESH HINT" },
      { title: "SEQUENCE" },
    ],
    rows: bundles.map((bundle) => [
      bundle.trust_domain,
      bundle.x509_authorities.length,
      bundle.jwt_authorities.length,
      bundle.wit_authorities.length,
      Number(bundle.refresh_hint) === 0 ? undefined : `${bundle.refresh_hint}s`,
      bundle.sequence_number,
    ]),
  };
}

const set = serverCommand({
  summary: "Creates or updates federated bundle data",
  flags: {
    id: idFlag,
    path: { type: "string", doc: "Path to the bundle data; standard input without it", default: "", complete: "file" },
    format: formatFlag('The format of the bundle data. Either "pem" or "spiffe".'),
    output: outputFlag,
  },
  examples: [
    "bundle set -id spiffe://other.org -path other.pem",
    "bundle set -id spiffe://other.org -format spiffe < bundle.json",
  ],
  async run({ flags, io, api }): Promise<Answer> {
    if (flags.id === "") throw usage("id flag is required", "add -id spiffe://…, the trust domain of the bundle");
    const format = bundleFormatFrom(flags.format);
    const text = await readInput(flags.path === "" ? "-" : flags.path, io).catch((error: unknown) => {
      throw withContext("unable to load bundle data", error);
    });
    const bundle = bundleFromData({ text, format, id: flags.id });
    const message = await api.ask(
      api.client(BundleApi).BatchSetFederatedBundle({ bundle: [bundle] }),
      "failed to set federated bundle",
    );
    const failure = refusal(message.results[0], "failed to set federated bundle");
    return {
      message,
      pretty: ({ stdout }) => void (failure ?? stdout.write("bundle set.\n")),
      failure,
    };
  },
});

const MODES = { restrict: "RESTRICT", delete: "DELETE", dissociate: "DISSOCIATE" } as const;

const remove = serverCommand({
  summary: "Deletes federated bundle data",
  flags: {
    id: idFlag,
    mode: {
      type: "string",
      doc: "Deletion mode: one of restrict, delete, or dissociate",
      default: "restrict",
      complete: Object.keys(MODES),
    },
    output: outputFlag,
  },
  examples: ["bundle delete -id spiffe://other.org", "bundle delete -id spiffe://other.org -mode dissociate"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    if (flags.id === "") throw usage("id is required", "add -id spiffe://…; bundle list shows them");
    const mode = modeFrom(flags.mode);
    await api.confirm(() => describeDeletion(api, flags.id, mode));
    const message = await api.ask(
      api.client(BundleApi).BatchDeleteFederatedBundle({ mode, trust_domains: [flags.id] }),
      "failed to delete federated bundle",
    );
    const result = message.results[0];
    const failure = refusal(result, `failed to delete federated bundle ${JSON.stringify(result?.trust_domain ?? "")}`);
    return {
      message,
      pretty: ({ stdout }) => void (failure ?? stdout.write("bundle deleted.\n")),
      failure,
    };
  },
});

type Mode = (typeof MODES)[keyof typeof MODES];

function modeFrom(word: string): Mode {
  const name = word === "" ? "restrict" : word;
  if (Object.hasOwn(MODES, name)) return MODES[name as keyof typeof MODES];
  throw new Fault("invalid", `unsupported mode ${JSON.stringify(word)}`, {
    code: "bundle-delete-mode",
    hint: "choose restrict, delete or dissociate",
  });
}

const CONSEQUENCES: Readonly<Record<Mode, (entries: string) => string>> = {
  RESTRICT: (entries) => `; it is refused while an entry federates with it (now ${entries})`,
  DELETE: (entries) => ` and ${entries} that federate with it`,
  DISSOCIATE: (entries) => ` and take it from ${entries} that federate with it`,
};

async function describeDeletion(api: Api, id: string, mode: Mode): Promise<string> {
  const filter = { by_federates_with: { trust_domains: [id], match: "MATCH_SUPERSET" as const } };
  const { count } = await api.ask(api.client(EntryApi).CountEntries({ filter }));
  return `delete the bundle of ${id}${CONSEQUENCES[mode](plural(count, "entry", "entries"))}`;
}

interface Result {
  readonly status: Status__Output | null;
}

/** Undefined for a result that is as it should be. */
function refusal(result: Result | undefined, context: string): Fault | undefined {
  if (result === undefined) throw incomplete("the server's answer has no result");
  const { code, message } = result.status ?? { code: 2, message: "no status" };
  if (code === 0) return undefined;
  return new Fault("precondition", `${context}: ${message}`, {
    code: "bundle-refused",
    hint: `the server refused it as ${codeNameOf(code)}`,
  });
}

export const bundleCommands = group("Shows and manages trust bundles", { count, delete: remove, list, set, show });
