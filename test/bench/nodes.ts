import { attestWith } from "../support/attest.ts";
import { attestorsOf, type NodeMethod, openNodeMethods, type Shown } from "../support/node-evidence.ts";
import { withoutSwtpm } from "../support/swtpm.ts";
import { temporaryDirectory } from "../support/workload.ts";
import type { Limit } from "./figures.ts";
import { type MeasuredServer, type Report, scenario } from "./scenario.ts";
import { calls } from "./stats.ts";

const MACHINES = 4;
/** Where a TPM makes the evidence, or RSA keys are needed for it. */
const FEW = 40;

/** Whole attestations over TLS by this process, so many at once, and what the server's CPU spends on each. */
export const nodes = scenario({
  summary: "node attestation over TLS, by method",
  parameters: {
    attestations: { doc: "By each method; fewer where the evidence takes long to make.", default: 200 },
    inFlight: { doc: "Nodes at the same time.", default: 8 },
  },
  async run({ parameters, onServers, limits }) {
    await using scope = new AsyncDisposableStack();
    const { path: folder } = scope.use(await temporaryDirectory());
    const limit = await limits.signing("ec-p256", "sign and verify");
    let createToken: () => Promise<string> = () => Promise.reject(new Error("there is no server yet"));
    const methods = await openNodeMethods(scope, { folder, createToken: () => createToken(), machines: MACHINES });
    const options = { ...attestorsOf(methods), anyStore: true, wireOnly: true } as const;
    await onServers(options, async (server, report) => {
      createToken = () => server.createToken();
      if (!server.isOurs) report.note("join_token alone: the other methods want its configuration");
      if (withoutSwtpm) report.note("tpm_devid, tpm: there is no swtpm on this machine");
      for (const method of server.isOurs ? methods : methods.slice(0, 1))
        await measure(method, { server, report, limit, ...parameters });
    });
  },
});

interface Measuring {
  readonly server: MeasuredServer;
  readonly report: Report;
  readonly limit: Limit;
  readonly attestations: number;
  readonly inFlight: number;
}

/** Evidence is made beforehand, except by a TPM: its work is in the rate, and not in the server's CPU. */
async function measure(
  { name, isSlow = false, isOnMachine = false, show }: NodeMethod,
  { server, report, limit, attestations, inFlight }: Measuring,
): Promise<void> {
  const count = isSlow ? Math.min(attestations, FEW) : attestations;
  const ready: Shown[] = [];
  while (!isOnMachine && ready.length < count) ready.push(await show());
  const options = { count, inFlight: isOnMachine ? MACHINES : inFlight, pid: server.pid };
  const { seconds, ms, cpuUs } = await calls(options, async (index, worker) => {
    await using evidence = ready[index] ?? (await show(worker));
    using apis = server.connect();
    await attestWith(apis, evidence);
  });
  report.figure({ name, unit: "/s", values: count / seconds });
  report.figure({ name: `${name}, one`, unit: "ms", values: ms });
  if (cpuUs !== undefined) report.figure({ name: `${name}, server CPU for one`, unit: "us", values: cpuUs, limit });
}
