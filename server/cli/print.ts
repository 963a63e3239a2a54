import { type Table, timeCell } from "../../src/cli/table.ts";
import type { Agent__Output } from "../../src/rpc/gen/spire/api/types/Agent.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { SPIFFEID__Output } from "../../src/rpc/gen/spire/api/types/SPIFFEID.ts";
import type { Status__Output } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { codeNameOf } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { goUtcTime } from "../../src/runtime/go-time.ts";
import { goDateTime, quote } from "../../src/runtime/logfmt.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";

export function plural(count: number, singular: string, many: string): string {
  return `${count} ${count === 1 ? singular : many}`;
}

/** Empty for an absent ID. */
export function idText(id: SPIFFEID__Output | null | undefined): string {
  return id === null || id === undefined ? "" : `spiffe://${id.trust_domain}${id.path}`;
}

/** `code: NotFound, msg: "…"`. */
export function statusText(status: Status__Output | null): string {
  return `code: ${codeNameOf(status?.code ?? 2)}, msg: ${quote(status?.message ?? "")}`;
}

type Row = readonly [label: string, value: string | number | boolean];

function writeRows(out: TextOutput, width: number, rows: readonly Row[]): void {
  out.write(`${rows.map(([label, value]) => `${label.padEnd(width)}: ${value}\n`).join("")}\n`);
}

export function printEntry(out: TextOutput, entry: Entry__Output): void {
  const attributes = entry.additional_attributes;
  const flag = (label: string, set: boolean | undefined): readonly Row[] => (set === true ? [[label, true]] : []);
  writeRows(out, 24, [
    ["Entry ID", entry.id === "" ? "(none)" : entry.id],
    ["SPIFFE ID", idText(entry.spiffe_id)],
    ["Parent ID", idText(entry.parent_id)],
    ["Revision", entry.revision_number],
    ...flag("Downstream", entry.downstream),
    ["X509-SVID TTL", entry.x509_svid_ttl === 0 ? "default" : entry.x509_svid_ttl],
    ["JWT-SVID TTL", entry.jwt_svid_ttl === 0 ? "default" : entry.jwt_svid_ttl],
    ...(Number(entry.expires_at) === 0
      ? []
      : [["Expiration time", goUtcTime(new Date(Number(entry.expires_at) * 1000))] as const]),
    ...entry.selectors.map(({ type, value }): Row => ["Selector", `${type}:${value}`]),
    ...entry.federates_with.map((domain): Row => ["FederatesWith", domain]),
    ...entry.dns_names.map((name): Row => ["DNS name", name]),
    ...flag("Admin", entry.admin),
    ...flag("StoreSvid", entry.store_svid),
    ...(entry.hint === "" ? [] : [["Hint", entry.hint] as const]),
    ...flag("DisableX509SvidPrefetch", attributes?.disable_x509_svid_prefetch),
    ...flag("JwtSvidIncludeJti", attributes?.jwt_svid_include_jti),
  ]);
}

export function entryTable(entries: readonly Entry__Output[]): Table {
  const lifetime = (seconds: number): string => (seconds === 0 ? "default" : `${seconds}s`);
  return {
    columns: [
      { title: "ENTRY ID" },
      { title: "SPIFFE ID" },
      { title: "PARENT ID" },
      { title: "SELECTORS" },
      { title: "FLAGS" },
      { title: "EXPIRES" },
      { title: "X509 TTL", wide: true },
      { title: "JWT TTL", wide: true },
      { title: "FEDERATES WITH", wide: true },
      { title: "DNS NAMES", wide: true },
      { title: "HINT", wide: true },
      { title: "REVISION", wide: true },
      { title: "CREATED", wide: true },
    ],
    rows: entries.map((entry) => [
      entry.id,
      idText(entry.spiffe_id),
      idText(entry.parent_id),
      entry.selectors.map(({ type, value }) => `${type}:${value}`),
      entryMarks(entry),
      timeCell(entry.expires_at),
      lifetime(entry.x509_svid_ttl),
      lifetime(entry.jwt_svid_ttl),
      entry.federates_with,
      entry.dns_names,
      entry.hint,
      entry.revision_number,
      timeCell(entry.created_at),
    ]),
  };
}

function entryMarks({ admin, downstream, store_svid, additional_attributes: more }: Entry__Output): readonly string[] {
  const marks = {
    admin,
    downstream,
    "store-svid": store_svid,
    "no-prefetch": more?.disable_x509_svid_prefetch === true,
    jti: more?.jwt_svid_include_jti === true,
  };
  return Object.entries(marks).flatMap(([mark, set]) => (set ? [mark] : []));
}

/** An agent, and since when and why it is in quarantine. */
export type ShownAgent = Agent__Output & { readonly quarantine?: { readonly since: string; readonly reason: string } };

export function printAgent(out: TextOutput, agent: ShownAgent): void {
  const { quarantine } = agent;
  writeRows(out, 18, [
    ["SPIFFE ID", idText(agent.id)],
    ["Attestation type", agent.attestation_type],
    ["Expiration time", goDateTime(new Date(Number(agent.x509svid_expires_at) * 1000))],
    agent.banned ? ["Banned", true] : ["Serial number", agent.x509svid_serial_number],
    ["Can re-attest", agent.can_reattest],
    ...(quarantine === undefined
      ? []
      : [["Quarantined since", goDateTime(new Date(Number(quarantine.since) * 1000))] as const]),
    ...(quarantine === undefined || quarantine.reason === ""
      ? []
      : [["Quarantine reason", quarantine.reason] as const]),
    ...(agent.agent_version === "" ? [] : [["Agent version", agent.agent_version] as const]),
  ]);
}

export function agentTable(agents: readonly ShownAgent[], clock: Clock): Table {
  const now = clock.now().getTime();
  const state = (agent: ShownAgent): string => {
    if (agent.banned) return "banned";
    if (agent.quarantine !== undefined) return "quarantined";
    return Number(agent.x509svid_expires_at) * 1000 < now ? "expired" : "attested";
  };
  return {
    columns: [
      { title: "SPIFFE ID" },
      { title: "ATTESTED BY" },
      { title: "STATE" },
      { title: "EXPIRES" },
      { title: "CAN RE-ATTEST", wide: true },
      { title: "VERSION", wide: true },
      { title: "SERIAL NUMBER", wide: true },
      { title: "SELECTORS", wide: true },
      { title: "QUARANTINE", wide: true },
    ],
    rows: agents.map((agent) => [
      idText(agent.id),
      agent.attestation_type,
      state(agent),
      timeCell(agent.x509svid_expires_at),
      agent.can_reattest,
      agent.agent_version,
      agent.x509svid_serial_number,
      agent.selectors.map(({ type, value }) => `${type}:${value}`),
      agent.quarantine?.reason,
    ]),
  };
}
