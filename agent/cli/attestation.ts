import { apiCommand } from "../../src/cli/api-command.ts";
import type { Answer } from "../../src/cli/output.ts";
import type { WorkloadAttestation__Output } from "../../src/rpc/gen/steeple/api/agent/attestation/v1/WorkloadAttestation.ts";
import { AttestationApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { formatDuration } from "../../src/runtime/duration.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { type FlagSpecs, outputFlag } from "../../src/runtime/flags.ts";
import { rfc3339 } from "../../src/runtime/logfmt.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";
import { formatSelector } from "../../src/spiffe/selector.ts";
import { adminEndpoint } from "./admin.ts";

const pidFlag = { pid: { type: "int", doc: "The process, as the agent sees it" } } as const satisfies FlagSpecs;

const list = apiCommand(adminEndpoint, {
  summary: "Lists the last callers that the agent attested, the newest first",
  flags: { ...pidFlag, output: outputFlag },
  watchable: true,
  examples: ["attestation list", "attestation list -pid 4711", "attestation list -output table -watch"],
  async run({ flags, api }): Promise<Answer> {
    const message = await api.ask(api.client(AttestationApi).ListAttestations({ pid: flags.pid ?? 0 }));
    const { attestations } = message;
    return {
      message,
      pretty({ stdout }) {
        stdout.write(`Found ${attestations.length} attestation${attestations.length === 1 ? "" : "s"}\n`);
        for (const attestation of attestations) printAttestation(stdout, attestation);
      },
      table: {
        columns: ["TIME", "PID", "UID", "TOOK", "SELECTORS", "ATTESTORS", "ERROR"].map((title) => ({ title })),
        rows: attestations.map((each) => [
          ...[timeOf(each), each.pid, each.uid, formatDuration(each.took_ms)],
          each.results.reduce((sum, { selector_count }) => sum + selector_count, 0),
          each.results.map(({ attestor, error }) => (error === "" ? attestor : `${attestor} (failed)`)),
          each.error,
        ]),
      },
    };
  },
});

const show = apiCommand(adminEndpoint, {
  summary: "Shows what each attestor found of a process when it called last, selectors included",
  flags: { ...pidFlag, output: outputFlag },
  examples: ["attestation show -pid 4711", "attestation show -pid 4711 -output json"],
  async run({ flags: { pid = 0 }, api }): Promise<Answer> {
    if (pid <= 0) throw new Fault("invalid", "a process is required", { code: "attestation-pid", hint: "add -pid" });
    const message = await api.ask(api.client(AttestationApi).ListAttestations({ pid, limit: 1, selectors: true }));
    const [attestation] = message.attestations;
    if (attestation === undefined)
      throw new Fault("not_found", `process ${pid} is none of the last callers`, {
        code: "attestation-unknown",
        hint: "attestation list shows whom the agent remembers",
      });
    return { message: attestation, pretty: ({ stdout }) => printAttestation(stdout, attestation) };
  },
});

export const attestationCommands = group("Shows what the agent found of its last callers", { list, show });

function timeOf({ at_ms }: WorkloadAttestation__Output): Date {
  return new Date(Number(at_ms));
}

function printAttestation(stdout: TextOutput, attestation: WorkloadAttestation__Output): void {
  const { pid, uid, gid, took_ms, results, error } = attestation;
  const line = (name: string, value: string | number): void => void stdout.write(`${name.padEnd(10)}: ${value}\n`);
  stdout.write("\n");
  line("PID", pid);
  line("Caller", `uid ${uid}, gid ${gid}`);
  line("Time", rfc3339(timeOf(attestation), false));
  line("Took", formatDuration(took_ms));
  if (error !== "") line("Error", error);
  for (const result of results) {
    const { selector_count: count } = result;
    const found = result.error === "" ? `${count} selector${count === 1 ? "" : "s"}` : `failed: ${result.error}`;
    line("Attestor", `${result.attestor}, ${formatDuration(result.took_ms)}, ${found}`);
    for (const selector of result.selectors) line("  Selector", formatSelector(selector));
  }
}
