import type { Answer } from "../../src/cli/output.ts";
import { LocalAuthorityApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { forceFlag, insisting } from "./authority.ts";
import { serverCommand } from "./connection.ts";
import { usage } from "./input.ts";

function subjectKeyFlags(verb: string) {
  return {
    subjectKeyID: {
      type: "string",
      doc: `The X.509 Subject Key Identifier of the upstream authority's CA certificate to ${verb}`,
      default: "",
    },
    output: outputFlag,
  } as const;
}

function required(subjectKeyID: string): string {
  if (subjectKeyID !== "") return subjectKeyID;
  throw usage(
    "the Subject Key ID of the X.509 upstream authority is required",
    "add -subjectKeyID; localauthority x509 show has those in use",
  );
}

interface Changed {
  readonly upstream_authority_subject_key_id: string;
}

function changedAnswer(verb: string, message: Changed): Answer {
  const id = message.upstream_authority_subject_key_id;
  return {
    message,
    pretty: ({ stdout }) => void stdout.write(`${verb} X.509 upstream authority:\n  Subject Key ID: ${id}\n`),
    table: { columns: [{ title: "RESULT" }, { title: "SUBJECT KEY ID" }], rows: [[verb.toLowerCase(), id]] },
  };
}

const taint = serverCommand({
  summary: "Marks the provided X.509 upstream authority as being tainted",
  flags: subjectKeyFlags("taint"),
  examples: ["upstreamauthority taint -subjectKeyID <hex>"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    const subject_key_id = required(flags.subjectKeyID);
    await api.confirm(() => `taint the upstream authority ${subject_key_id}: every X.509-SVID below it is replaced`);
    const answer = api.client(LocalAuthorityApi).TaintX509UpstreamAuthority({ subject_key_id });
    return changedAnswer("Tainted", await api.ask(answer, "could not taint X.509 upstream authority"));
  },
});

const revoke = serverCommand({
  summary: "Revokes the previously active X.509 upstream authority by taking it out of the bundle",
  flags: { ...subjectKeyFlags("revoke"), force: forceFlag },
  examples: ["upstreamauthority revoke -subjectKeyID <hex>"],
  destructive: true,
  async run({ flags, api }): Promise<Answer> {
    const subject_key_id = required(flags.subjectKeyID);
    await api.confirm(
      () => `revoke the upstream authority ${subject_key_id}: every X.509-SVID below it stops being accepted`,
    );
    const answer = api
      .client(LocalAuthorityApi)
      .RevokeX509UpstreamAuthority({ subject_key_id }, insisting(flags.force));
    return changedAnswer("Revoked", await api.ask(answer, "could not revoke X.509 upstream authority"));
  },
});

export const upstreamAuthorityCommands = group("Taints and revokes the authorities above this server", {
  revoke,
  taint,
});
