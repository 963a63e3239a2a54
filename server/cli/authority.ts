import type { Api } from "../../src/cli/api-command.ts";
import type { Answer } from "../../src/cli/output.ts";
import { type Table, timeCell } from "../../src/cli/table.ts";
import type { AuthorityState__Output as AuthorityState } from "../../src/rpc/gen/spire/api/server/localauthority/v1/AuthorityState.ts";
import { LocalAuthorityApi } from "../../src/rpc/protos.ts";
import { type CommandNode, group } from "../../src/runtime/cli.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { goUtcTime } from "../../src/runtime/go-time.ts";
import { serverCommand } from "./connection.ts";
import { incomplete, usage } from "./input.ts";

type Client = ReturnType<typeof clientOf>;

function clientOf(api: Api) {
  return api.client(LocalAuthorityApi);
}

interface States {
  readonly active: AuthorityState | null;
  readonly prepared: AuthorityState | null;
  readonly old: AuthorityState | null;
}

type Changed<K extends string> = { readonly [N in K]: AuthorityState | null };

/** How the server is told to revoke what is in use. */
interface Insisting {
  readonly metadata?: Readonly<Record<string, string>>;
}

/** One kind of authority that the server has on its own; the commands of each differ in these only. */
interface Kind {
  readonly word: "x509" | "jwt" | "wit";
  /** As it stands in sentences. */
  readonly title: string;
  readonly upstream: boolean;
  show(client: Client): Promise<States>;
  prepare(client: Client): Promise<Changed<"prepared_authority">>;
  activate(client: Client, authority_id: string): Promise<Changed<"activated_authority">>;
  taint(client: Client, authority_id: string): Promise<Changed<"tainted_authority">>;
  revoke(client: Client, authority_id: string, options: Insisting): Promise<Changed<"revoked_authority">>;
  /** SPIRE puts no context before this error. */
  readonly showContext: string | undefined;
  /** What taint and revoke do, for the question. */
  readonly effects: { readonly taint: string; readonly revoke: string };
}

const x509: Kind = {
  word: "x509",
  title: "X.509",
  upstream: true,
  show: (client) => client.GetX509AuthorityState({}),
  prepare: (client) => client.PrepareX509Authority({}),
  activate: (client, authority_id) => client.ActivateX509Authority({ authority_id }),
  taint: (client, authority_id) => client.TaintX509Authority({ authority_id }),
  revoke: (client, authority_id, options) => client.RevokeX509Authority({ authority_id }, options),
  showContext: "could not get X.509 authorities",
  effects: {
    taint: "every X.509-SVID it signed is replaced at once, in the whole trust domain",
    revoke: "it leaves the bundle, and every X.509-SVID it signed that is still in use stops being accepted",
  },
};

const jwt: Kind = {
  word: "jwt",
  title: "JWT",
  upstream: false,
  show: (client) => client.GetJWTAuthorityState({}),
  prepare: (client) => client.PrepareJWTAuthority({}),
  activate: (client, authority_id) => client.ActivateJWTAuthority({ authority_id }),
  taint: (client, authority_id) => client.TaintJWTAuthority({ authority_id }),
  revoke: (client, authority_id, options) => client.RevokeJWTAuthority({ authority_id }, options),
  showContext: undefined,
  effects: {
    taint: "agents drop every JWT-SVID it signed",
    revoke: "it leaves the bundle, and every JWT-SVID it signed that is still in use stops being accepted",
  },
};

/** SPIRE's server has the calls and no command for them. */
const wit: Kind = {
  word: "wit",
  title: "WIT",
  upstream: false,
  show: (client) => client.GetWITAuthorityState({}),
  prepare: (client) => client.PrepareWITAuthority({}),
  activate: (client, authority_id) => client.ActivateWITAuthority({ authority_id }),
  taint: (client, authority_id) => client.TaintWITAuthority({ authority_id }),
  revoke: (client, authority_id, options) => client.RevokeWITAuthority({ authority_id }, options),
  showContext: "could not get WIT authorities",
  effects: {
    taint: "agents replace every WIT-SVID it signed",
    revoke: "it leaves the bundle, and every WIT-SVID it signed that is still in use stops being accepted",
  },
};

function stateText({ upstream }: Kind, state: AuthorityState): string {
  const expires = goUtcTime(new Date(Number(state.expires_at) * 1000));
  const own = `  Authority ID: ${state.authority_id}\n  Expires at: ${expires}\n`;
  if (!upstream) return own;
  const parent = state.upstream_authority_subject_key_id;
  return `${own}  ${parent === "" ? "Upstream authority ID: No upstream authority" : `Upstream authority Subject Key ID: ${parent}`}\n`;
}

function stateTable(rows: readonly (readonly [slot: string, state: AuthorityState | null])[]): Table {
  return {
    columns: [{ title: "SLOT" }, { title: "AUTHORITY ID" }, { title: "EXPIRES" }, { title: "UPSTREAM SUBJECT KEY ID" }],
    rows: rows.map(([slot, state]) => [
      slot,
      state?.authority_id,
      timeCell(state?.expires_at ?? 0),
      state?.upstream_authority_subject_key_id,
    ]),
  };
}

function changedAnswer(kind: Kind, verb: string, [message, state]: readonly [object, AuthorityState | null]): Answer {
  if (state === null)
    throw incomplete(`internal error: expected to have ${verb.toLowerCase()} ${kind.title} authority information`);
  return {
    message,
    pretty: ({ stdout }) => void stdout.write(`${verb} ${kind.title} authority:\n${stateText(kind, state)}`),
    table: stateTable([[verb.toLowerCase(), state]]),
  };
}

function showCommand(kind: Kind): CommandNode {
  return serverCommand({
    summary: `Shows the local ${kind.title} authorities`,
    flags: { output: outputFlag },
    examples: [`localauthority ${kind.word} show`, `localauthority ${kind.word} show --output table --watch`],
    watchable: true,
    async run({ api }): Promise<Answer> {
      const states = await api.ask(kind.show(clientOf(api)), kind.showContext);
      const slots = [
        ["Active", states.active],
        ["Prepared", states.prepared],
        ["Old", states.old],
      ] as const;
      const section = ([name, state]: (typeof slots)[number]): string =>
        `${name} ${kind.title} authority:\n${state === null ? `  No ${name.toLowerCase()} ${kind.title} authority found\n` : stateText(kind, state)}`;
      return {
        message: states,
        pretty: ({ stdout }) => void stdout.write(slots.map(section).join("\n")),
        table: stateTable(slots.map(([name, state]) => [name.toLowerCase(), state])),
      };
    },
  });
}

function prepareCommand(kind: Kind): CommandNode {
  return serverCommand({
    summary: `Prepares a new ${kind.title} authority for use, with a new key, and adds it to the bundle`,
    flags: { output: outputFlag },
    examples: [`localauthority ${kind.word} prepare`],
    async run({ api }): Promise<Answer> {
      const message = await api.ask(kind.prepare(clientOf(api)), `could not prepare ${kind.title} authority`);
      return changedAnswer(kind, "Prepared", [message, message.prepared_authority]);
    },
  });
}

function authorityFlags(kind: Kind, verb: string) {
  return {
    authorityID: {
      type: "string",
      doc: `The authority ID of the ${kind.title} authority to ${verb}`,
      default: "",
      complete: `${kind.word}-authority`,
    },
    output: outputFlag,
  } as const;
}

function required(kind: Kind, authorityID: string): string {
  if (authorityID !== "") return authorityID;
  throw usage("an authority ID is required", `add -authorityID; localauthority ${kind.word} show lists them`);
}

function activateCommand(kind: Kind): CommandNode {
  return serverCommand({
    summary: `Activates a prepared ${kind.title} authority, so that it signs from now on`,
    flags: authorityFlags(kind, "activate"),
    examples: [`localauthority ${kind.word} activate -authorityID <id>`],
    async run({ flags, api }): Promise<Answer> {
      const id = required(kind, flags.authorityID);
      const message = await api.ask(kind.activate(clientOf(api), id), `could not activate ${kind.title} authority`);
      return changedAnswer(kind, "Activated", [message, message.activated_authority]);
    },
  });
}

function taintCommand(kind: Kind): CommandNode {
  return serverCommand({
    summary: `Marks the previously active ${kind.title} authority as being tainted`,
    flags: authorityFlags(kind, "taint"),
    examples: [`localauthority ${kind.word} taint -authorityID <id>`],
    destructive: true,
    async run({ flags, api }): Promise<Answer> {
      const id = required(kind, flags.authorityID);
      await api.confirm(() => `taint the ${kind.title} authority ${id}: ${kind.effects.taint}`);
      const message = await api.ask(kind.taint(clientOf(api), id), `could not taint ${kind.title} authority`);
      return changedAnswer(kind, "Tainted", [message, message.tainted_authority]);
    },
  });
}

export const forceFlag = {
  type: "bool",
  doc: "Revoke it although SVIDs that it signed are in use; they stop being accepted",
  default: false,
} as const;

export function insisting(force: boolean): Insisting {
  return force ? { metadata: { "steeple-force": "true" } } : {};
}

function revokeCommand(kind: Kind): CommandNode {
  return serverCommand({
    summary: `Revokes the previously active ${kind.title} authority by taking it out of the bundle`,
    flags: { ...authorityFlags(kind, "revoke"), force: forceFlag },
    examples: [`localauthority ${kind.word} revoke -authorityID <id>`],
    destructive: true,
    async run({ flags, api }): Promise<Answer> {
      const id = required(kind, flags.authorityID);
      await api.confirm(() => `revoke the ${kind.title} authority ${id}: ${kind.effects.revoke}`);
      const revoked = kind.revoke(clientOf(api), id, insisting(flags.force));
      const message = await api.ask(revoked, `could not revoke ${kind.title} authority`);
      return changedAnswer(kind, "Revoked", [message, message.revoked_authority]);
    },
  });
}

function kindCommands(kind: Kind): CommandNode {
  return group(`The ${kind.title} authorities of this server`, {
    activate: activateCommand(kind),
    prepare: prepareCommand(kind),
    revoke: revokeCommand(kind),
    show: showCommand(kind),
    taint: taintCommand(kind),
  });
}

export const localAuthorityCommands = group("Rotates, taints and revokes the authorities of this server", {
  jwt: kindCommands(jwt),
  wit: kindCommands(wit),
  x509: kindCommands(x509),
});
