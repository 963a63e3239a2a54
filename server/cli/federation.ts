import type { Answer } from "../../src/cli/output.ts";
import type { Table } from "../../src/cli/table.ts";
import type {
  FederationRelationship,
  FederationRelationship__Output,
} from "../../src/rpc/gen/spire/api/types/FederationRelationship.ts";
import type { Status__Output } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { TrustDomainApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { type FlagSpecs, outputFlag } from "../../src/runtime/flags.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";
import { serverCommand } from "./connection.ts";
import { relationshipFlags, relationshipsFrom } from "./federation-message.ts";
import { incomplete, usage } from "./input.ts";
import { plural, statusText } from "./print.ts";

/** What both directions of the message have in common. */
type Relationship = FederationRelationship | FederationRelationship__Output;

function printRelationship(out: TextOutput, { https_spiffe, ...relationship }: Relationship): void {
  out.write(`Trust domain              : ${relationship.trust_domain ?? ""}\n`);
  out.write(`Bundle endpoint URL       : ${relationship.bundle_endpoint_url ?? ""}\n`);
  if (relationship.https_web) out.write("Bundle endpoint profile   : https_web\n");
  if (!https_spiffe) return;
  out.write("Bundle endpoint profile   : https_spiffe\n");
  out.write(`Endpoint SPIFFE ID        : ${https_spiffe.endpoint_spiffe_id ?? ""}\n`);
}

function relationshipTable(relationships: readonly Relationship[]): Table {
  return {
    columns: [
      { title: "TRUST DOMAIN" },
      { title: "PROFILE" },
      { title: "BUNDLE ENDPOINT URL" },
      { title: "ENDPOINT SPIFFE ID" },
      { title: "HAS BUNDLE", wide: true },
    ],
    rows: relationships.map((relationship) => [
      relationship.trust_domain,
      relationship.https_spiffe ? "https_spiffe" : relationship.https_web ? "https_web" : undefined,
      relationship.bundle_endpoint_url,
      relationship.https_spiffe?.endpoint_spiffe_id,
      Boolean(relationship.trust_domain_bundle),
    ]),
  };
}

interface Result {
  readonly status: Status__Output | null;
  readonly federation_relationship: FederationRelationship__Output | null;
}

const isOk = ({ status }: Result): boolean => status?.code === 0;

/** Created or updated relationships, and on standard error those that were refused, as they were sent. */
function resultsAnswer(
  verb: "create" | "update",
  message: { readonly results: readonly Result[] },
  sent: readonly FederationRelationship[],
): Answer {
  const shown = message.results.map((result, index) => ({
    ...result,
    relationship: (isOk(result) ? result.federation_relationship : sent[index]) ?? {},
  }));
  const refused = shown.filter((result) => !isOk(result));
  const table = relationshipTable(shown.map(({ relationship }) => relationship));
  return {
    message,
    pretty({ stdout, stderr }) {
      for (const { relationship } of shown.filter(isOk)) {
        stdout.write("\n");
        printRelationship(stdout, relationship);
      }
      for (const { status, relationship } of refused) {
        stdout.write("\n");
        stderr.write(`Failed to ${verb} the following federation relationship (${statusText(status)}):\n`);
        printRelationship(stderr, relationship);
      }
    },
    table: {
      columns: [{ title: "RESULT" }, ...table.columns],
      rows: table.rows.map((row, index) => [shown[index]?.status?.message ?? "", ...row]),
    },
    failure:
      refused.length === 0
        ? undefined
        : new Fault("invalid", `failed to ${verb} one or more federation relationships`, {
            code: `federation-${verb}-failed`,
            hint: "each refused item is listed with its reason; the others are done",
          }),
  };
}

const EXAMPLE = "-trustDomain other.org -bundleEndpointURL https://other.org/bundle -bundleEndpointProfile https_web";

const create = serverCommand({
  summary: "Creates a dynamic federation relationship with a foreign trust domain",
  flags: { ...relationshipFlags, output: outputFlag },
  examples: [`federation create ${EXAMPLE}`, "federation create -data relationships.json"],
  async run({ flags, io, api }): Promise<Answer> {
    const relationships = await relationshipsFrom(flags, io);
    const message = await api.ask(
      api.client(TrustDomainApi).BatchCreateFederationRelationship({ federation_relationships: relationships }),
      "request failed",
    );
    return resultsAnswer("create", message, relationships);
  },
});

const update = serverCommand({
  summary: "Updates a dynamic federation relationship with a foreign trust domain",
  flags: { ...relationshipFlags, output: outputFlag },
  examples: [`federation update ${EXAMPLE}`, "federation update -data -"],
  async run({ flags, io, api }): Promise<Answer> {
    const relationships = await relationshipsFrom(flags, io);
    const message = await api.ask(
      api.client(TrustDomainApi).BatchUpdateFederationRelationship({ federation_relationships: relationships }),
      "request failed",
    );
    return resultsAnswer("update", message, relationships);
  },
});

const list = serverCommand({
  summary: "Lists all dynamic federation relationships",
  flags: { output: outputFlag },
  examples: ["federation list", "federation list --output table --watch"],
  watchable: true,
  async run({ api }): Promise<Answer> {
    const relationships: FederationRelationship__Output[] = [];
    let token = "";
    do {
      const page = await api.ask(
        api.client(TrustDomainApi).ListFederationRelationships({ page_token: token }),
        "error listing federation relationship",
      );
      relationships.push(...page.federation_relationships);
      token = page.next_page_token;
    } while (token !== "");
    return {
      message: { federation_relationships: relationships, next_page_token: "" },
      pretty({ stdout }) {
        const found = plural(relationships.length, "federation relationship", "federation relationships");
        stdout.write(`Found ${found}\n`);
        for (const relationship of relationships) {
          stdout.write("\n");
          printRelationship(stdout, relationship);
        }
      },
      table: relationshipTable(relationships),
    };
  },
});

const show = serverCommand({
  summary: "Shows a dynamic federation relationship",
  flags: {
    trustDomain: {
      type: "string",
      doc: "The trust domain name of the federation relationship to show",
      default: "",
      complete: "relationship",
    },
    output: outputFlag,
  },
  examples: ["federation show -trustDomain other.org"],
  async run({ flags, api }): Promise<Answer> {
    if (flags.trustDomain === "")
      throw usage("a trust domain name is required", "add -trustDomain; federation list shows them");
    const message = await api.ask(
      api.client(TrustDomainApi).GetFederationRelationship({ trust_domain: flags.trustDomain }),
      "error showing federation relationship",
    );
    return {
      message,
      pretty({ stdout }) {
        stdout.write(`Found a federation relationship with trust domain ${flags.trustDomain}:\n\n`);
        printRelationship(stdout, message);
      },
      table: relationshipTable([message]),
    };
  },
});

const idFlags = {
  id: { type: "string", doc: "SPIFFE ID of the trust domain", default: "", complete: "relationship" },
  output: outputFlag,
} as const satisfies FlagSpecs;

const ID_HINT = "add -id, the trust domain; federation list shows them";

const remove = serverCommand({
  summary: "Deletes a dynamic federation relationship",
  flags: idFlags,
  examples: ["federation delete -id other.org"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    if (flags.id === "") throw usage("id is required", ID_HINT);
    await api.confirm(
      () => `delete the federation relationship with ${flags.id}: its bundle stays, and is no longer refreshed`,
    );
    const message = await api.ask(
      api.client(TrustDomainApi).BatchDeleteFederationRelationship({ trust_domains: [flags.id] }),
      "failed to delete federation relationship",
    );
    const result = message.results[0];
    if (result === undefined) throw incomplete("the server's answer has no result");
    const text = `failed to delete federation relationship ${JSON.stringify(result.trust_domain)}: ${result.status?.message}`;
    const failure =
      result.status?.code === 0
        ? undefined
        : new Fault("precondition", text, { code: "federation-delete-failed", hint: "federation list shows them" });
    return {
      message,
      pretty: ({ stdout }) => void (failure ?? stdout.write("federation relationship deleted.\n")),
      failure,
    };
  },
});

const refresh = serverCommand({
  summary: "Refreshes the bundle from the specified federated trust domain",
  flags: idFlags,
  examples: ["federation refresh -id other.org"],
  async run({ flags, api }): Promise<Answer> {
    if (flags.id === "") throw usage("id is required", ID_HINT);
    await api
      .ask(api.client(TrustDomainApi).RefreshBundle({ trust_domain: flags.id }), "failed to refresh bundle")
      .catch((error: unknown) => {
        if (!isFault(error, "not_found")) throw error;
        const text = `there is no federation relationship with trust domain ${JSON.stringify(flags.id)}`;
        throw new Fault("not_found", text, { code: "federation-not-found", hint: "federation list shows them" });
      });
    return {
      message: { code: 0, message: "OK" },
      pretty: ({ stdout }) => void stdout.write("Bundle refreshed\n"),
    };
  },
});

export const federationCommands = group("Manages federation relationships with foreign trust domains", {
  create,
  delete: remove,
  list,
  refresh,
  show,
  update,
});
