import { join } from "node:path";
import { watchX509Svids, type X509Context } from "../../src/client/index.ts";
import { readX509Context } from "../../src/client/x509-context.ts";
import { privateKeyToPkcs8 } from "../../src/crypto/key.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import type { X509SVIDResponse__Output } from "../../src/rpc/gen/X509SVIDResponse.ts";
import { protoJson } from "../../src/rpc/proto-json.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { codeNameOf, codeOf } from "../../src/rpc/status.ts";
import { type CommandNode, command, group } from "../../src/runtime/cli.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { writePrivateFile, writePublicFile } from "../../src/runtime/files.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { type Io, withProgress } from "../../src/runtime/terminal.ts";
import { trustDomainOf } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { socketFlags, socketPathFrom } from "./connection.ts";
import { printX509Context } from "./print.ts";

const SECURITY_HEADER = { "workload.spiffe.io": "true" } as const;

const fetchX509 = command({
  summary: "Fetches X509 SVIDs from the Workload API",
  flags: {
    ...socketFlags,
    timeout: { type: "duration", doc: "Time to wait for a response", default: "5s" },
    silent: { type: "bool", doc: "Suppress stdout" },
    write: {
      type: "string",
      doc: "Write SVID data to the specified path (optional; only for pretty output)",
      default: "",
    },
    output: outputFlag,
  },
  examples: ["api fetch x509", "api fetch x509 -write /run/my-service", "api fetch x509 -output json"],
  async run({ flags, io, signal }) {
    const started = systemClock.monotonic();
    const answer = fetchOnce(socketPathFrom(flags, io.env), flags.timeout, signal);
    const message = await withProgress(io, "waiting for the agent", answer);
    const afterMs = systemClock.monotonic() - started;
    if (flags.output === "json") return void io.stdout.write(`${protoJson(message)}\n`);
    const context = readX509Context(message);
    for (const svid of context.svids) checkSvid(context, svid);
    if (!flags.silent) printX509Context(io.stdout, context, afterMs);
    if (flags.write !== "") await writeContext(io, flags.write, context);
  },
});

async function fetchOnce(
  socketPath: string,
  deadlineMs: number,
  signal: AbortSignal,
): Promise<X509SVIDResponse__Output> {
  using channel = dialUnix(socketPath);
  try {
    const answers = channel.client(WorkloadApi).FetchX509SVID({}, { signal, deadlineMs, metadata: SECURITY_HEADER });
    for await (const answer of answers) return answer;
  } catch (error) {
    const fault = Fault.from(error);
    const text = `rpc error: code = ${codeNameOf(codeOf(fault))} desc = ${fault.message}`;
    const hint =
      fault.hint ??
      (isFault(fault, "denied")
        ? "create an entry whose selectors this process has, under an agent that attested"
        : undefined);
    throw new Fault(fault.kind, text, { code: fault.code, cause: error, ...(hint === undefined ? {} : { hint }) });
  }
  throw new Fault("unavailable", "the agent ended the stream without an answer", { code: "no-answer" });
}

function checkSvid({ bundles }: X509Context, { id, chain }: X509Context["svids"][number]): void {
  try {
    const authorities = (domain: ReturnType<typeof trustDomainOf>) => bundles.get(domain)?.authorities;
    validateX509Svid({ chain, authorities, at: systemClock.now() });
  } catch (error) {
    const { message, code } = Fault.from(error);
    throw new Fault("denied", `"${id}" SVID failed verification against bundle: ${message}`, { code, cause: error });
  }
}

async function writeContext(io: Io, folder: string, { svids, bundles }: X509Context): Promise<void> {
  for (const [index, { id, chain, privateKey }] of svids.entries()) {
    const own = trustDomainOf(id);
    const pem = (certificates: readonly { readonly raw: Uint8Array }[]): string =>
      certificates.map(({ raw }) => encodePem("CERTIFICATE", raw)).join("");
    const file = async (what: string, name: string, write: (path: string) => Promise<void>): Promise<void> => {
      io.stdout.write(`Writing ${what} to file ${join(folder, name)}.\n`);
      await write(join(folder, name));
    };
    await file(`SVID #${index}`, `svid.${index}.pem`, (path) => writePublicFile(path, pem(chain)));
    const key = encodePem("PRIVATE KEY", privateKeyToPkcs8(privateKey));
    await file(`key #${index}`, `svid.${index}.key`, (path) => writePrivateFile(path, key));
    const roots = pem(bundles.get(own)?.authorities ?? []);
    await file(`bundle #${index}`, `bundle.${index}.pem`, (path) => writePublicFile(path, roots));
    const foreign = [...bundles].filter(([domain]) => domain !== own).sort(([a], [b]) => (a < b ? -1 : 1));
    for (const [number, [domain, { authorities }]] of foreign.entries()) {
      const what = `federated bundle #${number} for trust domain ${domain}`;
      await file(what, `federated_bundle.${index}.${number}.pem`, (path) => writePublicFile(path, pem(authorities)));
    }
  }
}

const watch = command({
  summary: "Attaches to the Workload API and prints updates as they're received",
  flags: socketFlags,
  examples: ["api watch", "api watch -socketPath /run/steeple/agent.sock"],
  async run({ flags, io, signal }) {
    const address = { transport: "unix", path: socketPathFrom(flags, io.env) } as const;
    let last = systemClock.monotonic();
    const onError = (fault: Fault): void => void io.stderr.write(`${fault.message}\n`);
    for await (const context of watchX509Svids({ socket: address, signal, onError })) {
      const now = systemClock.monotonic();
      printX509Context(io.stdout, context, now - last);
      last = now;
    }
  },
});

const fetch: CommandNode = { ...fetchX509, commands: { x509: fetchX509 } };

export const apiCommands = group("Talks to the Workload API as a workload does", { fetch, watch });
