import { join } from "node:path";
import { type Answer, printAnswer } from "../../src/cli/output.ts";
import { watchX509Svids, type X509Context } from "../../src/client/index.ts";
import { readX509Context } from "../../src/client/x509-context.ts";
import { privateKeyToPkcs8 } from "../../src/crypto/key.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { type CommandNode, command, group } from "../../src/runtime/cli.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { writePrivateFile, writePublicFile } from "../../src/runtime/files.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { trustDomainOf } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { socketFlags, socketPathFrom } from "./connection.ts";
import { fetchJwt, validateJwt } from "./jwt.ts";
import { printX509Context, x509Table } from "./print.ts";
import { fetchWit } from "./wit.ts";
import { callOptions, firstOf, timeoutFlag, workloadCommand } from "./workload.ts";

const fetchX509 = workloadCommand({
  summary: "Fetches X509 SVIDs from the Workload API",
  flags: {
    ...timeoutFlag,
    silent: { type: "bool", doc: "Suppress stdout" },
    write: {
      type: "string",
      doc: "Write SVID data to the specified path (optional; only for pretty output)",
      default: "",
      complete: "file",
    },
    output: outputFlag,
  },
  examples: ["api fetch x509", "api fetch x509 -write /run/my-service", "api fetch x509 -output json"],
  async run({ flags, io, api, signal }): Promise<Answer | undefined> {
    const started = systemClock.monotonic();
    const message = await api.ask(firstOf(api.client(WorkloadApi).FetchX509SVID({}, callOptions(flags, signal))));
    const afterMs = systemClock.monotonic() - started;
    if (flags.output === "json" || flags.output === "yaml") return { message, pretty: () => undefined };
    const context = readX509Context(message);
    for (const svid of context.svids) checkSvid(context, svid);
    const answer: Answer = {
      message,
      pretty: ({ stdout }) => printX509Context(stdout, context, afterMs),
      table: x509Table(context),
    };
    if (!flags.silent) await printAnswer(answer, { io, output: flags.output, clock: systemClock });
    if (flags.write !== "") await writeContext(io, flags.write, context);
    return undefined;
  },
});

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
  flags: { ...socketFlags, output: outputFlag },
  examples: ["api watch", "api watch -socketPath /run/steeple/agent.sock", "api watch -output json"],
  async run({ flags, io, signal }) {
    const address = { transport: "unix", path: socketPathFrom(flags, io.env) } as const;
    let last = systemClock.monotonic();
    const onError = (fault: Fault): void => void io.stderr.write(`${fault.message}\n`);
    for await (const context of watchX509Svids({ socket: address, signal, onError })) {
      const now = systemClock.monotonic();
      await printAnswer(updateAnswer(context, now - last), { io, output: flags.output, clock: systemClock });
      last = now;
    }
  },
});

/** Of an update only what may stand in a log: no private keys. */
function updateAnswer(context: X509Context, afterMs: number): Answer {
  const svids = context.svids.map(({ id, hint, chain: [leaf] }) => ({
    spiffe_id: id,
    hint,
    serial_number: leaf?.serialNumber,
    valid_after: leaf?.notBefore.toISOString(),
    valid_until: leaf?.notAfter.toISOString(),
  }));
  return {
    message: { svids, trust_domains: [...context.bundles.keys()] },
    ordered: true,
    pretty: ({ stdout }) => printX509Context(stdout, withoutHints(context), afterMs),
    table: x509Table(context),
  };
}

/** SPIRE's `api watch` does not print them. */
function withoutHints(context: X509Context): X509Context {
  const [first, ...others] = context.svids;
  return { ...context, svids: [{ ...first, hint: "" }, ...others.map((svid) => ({ ...svid, hint: "" }))] };
}

const fetch: CommandNode = { ...fetchX509, commands: { jwt: fetchJwt, wit: fetchWit, x509: fetchX509 } };
const validate = group("Validates SVIDs by the Workload API", { jwt: validateJwt });

export const apiCommands = group("Talks to the Workload API as a workload does", { fetch, validate, watch });
