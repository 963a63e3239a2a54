import { type Answer, printAnswer } from "../../src/cli/output.ts";
import { parseJws } from "../../src/crypto/jws.ts";
import type { JWTBundlesResponse__Output } from "../../src/rpc/gen/JWTBundlesResponse.ts";
import type { JWTSVID__Output } from "../../src/rpc/gen/JWTSVID.ts";
import { escapeHtml } from "../../src/rpc/proto-json.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { jsonFromStruct } from "../../src/rpc/struct.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";
import { timeOf } from "../../src/spiffe/token.ts";
import { callOptions, firstOf, timeoutFlag, workloadCommand } from "./workload.ts";

export const fetchJwt = workloadCommand({
  summary: "Fetches a JWT SVID from the Workload API",
  flags: {
    ...timeoutFlag,
    audience: { type: "strings", doc: "comma separated list of audience values" },
    spiffeID: { type: "string", doc: "SPIFFE ID subject (optional)", default: "" },
    output: outputFlag,
    format: { ...outputFlag, doc: "deprecated; use -output" },
  },
  examples: [
    "api fetch jwt -audience https://api.example.org",
    "api fetch jwt -audience reports,billing -spiffeID spiffe://example.org/web -output json",
  ],
  async run({ flags, io, api, signal }) {
    const audience = flags.audience.flatMap((values) => values.split(","));
    if (audience.length === 0) throw missing("audience", "add -audience and the name of the service the token is for");
    const workload = api.client(WorkloadApi);
    const options = callOptions(flags, signal);
    const bundles = await api.ask(firstOf(workload.FetchJWTBundles({}, options)));
    const svids = await api.ask(workload.FetchJWTSVID({ audience, spiffe_id: flags.spiffeID }, options));
    const output = flags.output === "pretty" ? flags.format : flags.output;
    await printAnswer(fetched(svids.svids, bundles), { io, output, clock: systemClock });
  },
});

function fetched(svids: readonly JWTSVID__Output[], bundles: JWTBundlesResponse__Output): Answer {
  return {
    message: [{ svids }, bundles],
    pretty({ stdout }) {
      for (const svid of svids) printSvid(stdout, svid);
      for (const [id, document] of Object.entries(bundles.bundles))
        stdout.write(`bundle(${id}):\n\t${document.toString()}\n`);
    },
    table: {
      columns: [{ title: "SPIFFE ID" }, { title: "HINT" }, { title: "EXPIRES" }, { title: "TOKEN", wide: true }],
      rows: svids.map(({ spiffe_id, hint, svid }) => [spiffe_id, hint, timeOf(parseJws(svid).payload, "exp"), svid]),
    },
  };
}

function printSvid(out: TextOutput, { spiffe_id, svid, hint }: JWTSVID__Output): void {
  out.write(`token(${spiffe_id}):\n\t${svid}\n`);
  if (hint !== "") out.write(`hint(${spiffe_id}):\n\t${hint}\n`);
}

export const validateJwt = workloadCommand({
  summary: "Validates a JWT SVID",
  flags: {
    ...timeoutFlag,
    audience: { type: "string", doc: "expected audience value", default: "" },
    svid: { type: "string", doc: "JWT SVID", default: "" },
    output: outputFlag,
  },
  examples: ["api validate jwt -audience https://api.example.org -svid eyJhbGciOi…"],
  async run({ flags, api, signal }): Promise<Answer> {
    if (flags.audience === "") throw missing("audience", "add -audience and the name that the token has to be for");
    if (flags.svid === "") throw missing("svid", "add -svid and the token");
    const request = { audience: flags.audience, svid: flags.svid };
    const answer = api.client(WorkloadApi).ValidateJWTSVID(request, callOptions(flags, signal));
    const { spiffe_id, claims } = await api.ask(answer, "unable to validate JWT SVID").catch(inItsWords);
    const shown = claims === null ? {} : jsonFromStruct(claims);
    return {
      message: { claims: shown, spiffe_id },
      pretty({ stdout }) {
        stdout.write(`SVID is valid.\nSPIFFE ID : ${spiffe_id}\nClaims    : ${escapeHtml(JSON.stringify(shown))}\n`);
      },
      table: { columns: [{ title: "SPIFFE ID" }, { title: "EXPIRES" }], rows: [[spiffe_id, timeOf(shown, "exp")]] },
    };
  },
});

/** What the agent says of a token is the answer to the question, and no failed call. */
function inItsWords(error: unknown): never {
  if (!isFault(error, "invalid")) throw error;
  const { message, code } = Fault.from(error.cause);
  throw new Fault("invalid", `SVID is not valid: ${message}`, { code, cause: error });
}

function missing(flag: string, hint: string): Fault {
  return new Fault("invalid", `${flag} must be specified`, { code: `${flag}-missing`, hint });
}
