import type { Agent__Output } from "../../src/rpc/gen/spire/api/types/Agent.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { SPIFFEID__Output } from "../../src/rpc/gen/spire/api/types/SPIFFEID.ts";
import type { Status__Output } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { protoJson } from "../../src/rpc/proto-json.ts";
import { codeNameOf } from "../../src/rpc/status.ts";
import type { OutputFormat } from "../../src/runtime/flags.ts";
import { goUtcTime } from "../../src/runtime/go-time.ts";
import { goDateTime, quote } from "../../src/runtime/logfmt.ts";
import type { Io, TextOutput } from "../../src/runtime/terminal.ts";

export interface Answer {
  readonly io: Io;
  readonly output: OutputFormat;
  /** The message that `json` prints whole. */
  readonly message: object;
}

/** Prints the message as one line of JSON, or lets `pretty` print it. */
export function print({ io, output, message }: Answer, pretty: () => void): void {
  if (output === "pretty") pretty();
  else io.stdout.write(`${protoJson(message)}\n`);
}

export function plural(count: number, singular: string, many: string): string {
  return `${count} ${count === 1 ? singular : many}`;
}

/** Empty for an absent ID. */
export function idText(id: SPIFFEID__Output | null | undefined): string {
  return id === null || id === undefined ? "" : `spiffe://${id.trust_domain}${id.path}`;
}

/** `(code: NotFound, msg: "…")`. */
export function statusText(status: Status__Output | null): string {
  return `(code: ${codeNameOf(status?.code ?? 2)}, msg: ${quote(status?.message ?? "")})`;
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

export function printAgent(out: TextOutput, agent: Agent__Output): void {
  writeRows(out, 18, [
    ["SPIFFE ID", idText(agent.id)],
    ["Attestation type", agent.attestation_type],
    ["Expiration time", goDateTime(new Date(Number(agent.x509svid_expires_at) * 1000))],
    agent.banned ? ["Banned", true] : ["Serial number", agent.x509svid_serial_number],
    ["Can re-attest", agent.can_reattest],
    ...(agent.agent_version === "" ? [] : [["Agent version", agent.agent_version] as const]),
  ]);
}
