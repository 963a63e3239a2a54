import { parseCertificate } from "../crypto/certificate.ts";
import { parseName } from "../crypto/name.ts";
import { openTpm } from "../keys/tpm-device.ts";
import { command, group } from "../runtime/cli.ts";
import type { TextOutput } from "../runtime/terminal.ts";
import type { Tpm } from "../tpm/commands.ts";
import { endorsementCertificate, makerOf } from "../tpm/endorsement.ts";
import { ALG } from "../tpm/structures.ts";
import { EK_CERTIFICATE, endorsementOf } from "./tpm-endorsement.ts";
import { runProvisioning } from "./tpm-provision.ts";

const PCRS = Array.from({ length: 24 }, (_, pcr) => pcr);

async function printTpm(tpm: Tpm, out: TextOutput): Promise<void> {
  const { hash } = await endorsementOf(tpm);
  out.write(`Endorsement key   ${hash}\n`);
  const stored = await tpm.nvRead(EK_CERTIFICATE);
  if (stored === undefined) out.write("Certificate       none\n");
  else printCertificate(endorsementCertificate(stored), out);
  const values = await tpm.pcrRead({ hash: ALG.sha256, pcrs: PCRS });
  for (const [pcr, value] of (values ?? []).entries())
    out.write(`PCR ${String(pcr).padEnd(14)}${Buffer.from(value).toString("hex")}\n`);
  if (values === undefined) out.write("PCRs              the SHA-256 bank is not active\n");
  out.write(`
To let it attest by "tpm", put an empty file named ${hash}
into the server's hash_path. The agent is then /spire/agent/tpm/${hash}
`);
}

function printCertificate(der: Uint8Array, out: TextOutput): void {
  const certificate = parseCertificate(der);
  const { manufacturer, model, version } = makerOf(certificate);
  const { commonName = "(no common name)" } = parseName(certificate.issuer);
  out.write(`Certificate       issued by ${commonName}, until ${certificate.notAfter.toISOString()}\n`);
  if (manufacturer !== "") out.write(`Made by           ${manufacturer}, model ${model}, version ${version}\n`);
}

const show = command({
  summary: "Shows a TPM's endorsement key, its certificate and the PCRs",
  flags: {
    device: {
      type: "string",
      doc: "The TPM: a device, or a simulator as unix:/path or tcp:host:port; without it, the only device there is",
    },
  },
  examples: ["tpm show", "tpm show --device unix:/tmp/machine/tpm.sock"],
  async run({ flags, io }) {
    await using opened = await openTpm(flags.device === "" ? undefined : flags.device);
    await printTpm(opened.tpm, io.stdout);
  },
});

const provision = command({
  summary: "Makes a simulated machine: a TPM with endorsement certificate and DevID, and the authorities behind them",
  description:
    "Needs swtpm, from the PATH or from $SWTPM. Runs the simulator until it is stopped, unless told otherwise.",
  flags: {
    simulator: { type: "string", doc: "Folder of the machine, which must not exist yet or hold such a machine" },
    once: { type: "bool", doc: "End when the machine is ready, and leave its state for the next time" },
  },
  examples: ["tpm provision --simulator /tmp/machine", "tpm provision --simulator /tmp/machine --once"],
  async run({ flags, io, signal }) {
    await runProvisioning({ folder: flags.simulator ?? "", once: flags.once }, io, signal);
  },
});

export const tpmCommands = group("Looks at TPMs, and makes simulated ones", { show, provision });
