import { join } from "node:path";
import type { Answer } from "../../src/cli/output.ts";
import { generateKey, type KeyType } from "../../src/crypto/key.ts";
import { SvidApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { writePrivateFile } from "../../src/runtime/files.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { serverCommand } from "./connection.ts";
import { incomplete, usage } from "./input.ts";
import { idFrom } from "./match.ts";
import { secondsOf, tokenExpiry, warnOfCappedTtl } from "./mint.ts";

const RSA_TYPES: readonly KeyType[] = ["rsa-2048", "rsa-4096"];

/** Which keys sign with an algorithm. */
const KEY_TYPES_OF: Readonly<Record<string, readonly KeyType[]>> = {
  RS256: RSA_TYPES,
  RS384: RSA_TYPES,
  RS512: RSA_TYPES,
  PS256: RSA_TYPES,
  PS384: RSA_TYPES,
  PS512: RSA_TYPES,
  ES256: ["ec-p256"],
  ES384: ["ec-p384"],
};

function keyTypeFrom(word: string, algorithm: string): KeyType {
  const fitting = Object.hasOwn(KEY_TYPES_OF, algorithm) ? KEY_TYPES_OF[algorithm] : undefined;
  if (fitting === undefined) {
    throw new Fault("invalid", `unsupported signing algorithm: ${algorithm}`, {
      code: "signing-algorithm",
      hint: `choose one of ${Object.keys(KEY_TYPES_OF).join(", ")}`,
    });
  }
  const type = fitting.find((known) => known === word);
  if (type !== undefined) return type;
  const text =
    fitting === RSA_TYPES
      ? `unsupported key type '${word}' for signing algorithm '${algorithm}'`
      : `unsupported key type '${word}' for '${algorithm}' signing algorithm`;
  throw new Fault("invalid", text, { code: "key-type", hint: `choose ${fitting.join(" or ")}` });
}

const mint = serverCommand({
  summary: "Mints a WIT-SVID",
  flags: {
    spiffeID: { type: "string", doc: "SPIFFE ID of the WIT-SVID", default: "", complete: "spiffe-id" },
    keyType: {
      type: "string",
      doc: "Key type of the WIT-SVID",
      default: "ec-p256",
      complete: ["ec-p256", "ec-p384", ...RSA_TYPES],
    },
    signingAlgorithm: {
      type: "string",
      doc: "Signing algorithm for the workload signing key",
      default: "ES256",
      complete: Object.keys(KEY_TYPES_OF),
    },
    ttl: { type: "duration", doc: "TTL of the WIT-SVID; 0 means the server's default", default: "0s" },
    write: { type: "string", doc: "Directory to write output to instead of stdout", default: "", complete: "file" },
    output: outputFlag,
  },
  examples: ["wit mint -spiffeID spiffe://example.org/job -write ."],
  async run({ flags, io, api }): Promise<Answer | undefined> {
    if (flags.spiffeID === "") throw usage("spiffeID must be specified", "add -spiffeID spiffe://…");
    const id = idFrom(flags.spiffeID);
    const key = await generateKey(keyTypeFrom(flags.keyType, flags.signingAlgorithm));
    const { svid } = await api.ask(
      api.client(SvidApi).MintWITSVID({
        id,
        public_key: Buffer.from(key.publicKey),
        signing_algorithm: flags.signingAlgorithm,
        ttl: secondsOf(flags.ttl),
      }),
      "unable to mint SVID",
    );
    if (svid === null || svid.token === "") throw incomplete("server response missing token");
    const expires = tokenExpiry(svid.token);
    if (expires === undefined) io.stderr.write("Unable to determine WIT-SVID lifetime: no expiry claim\n");
    else warnOfCappedTtl(io, "WIT-SVID", { expires, ttlMs: flags.ttl });
    const privateKey = JSON.stringify(key.privateKey.export({ format: "jwk" }));
    if (flags.write === "") {
      return {
        message: { private_key: privateKey, svid: structForm(svid) },
        ordered: true,
        pretty: ({ stdout }) => void stdout.write(`${svid.token}\n${privateKey}\n`),
      };
    }
    const [tokenPath, keyPath] = [join(flags.write, "token"), join(flags.write, "key")];
    await writePrivateFile(tokenPath, svid.token);
    io.stdout.write(`WIT-SVID written to ${tokenPath}\n`);
    await writePrivateFile(keyPath, privateKey);
    io.stdout.write(`Private key written to ${keyPath}\n`);
    return undefined;
  },
});

/** As Go's plain encoder prints the message inside a structure: numbers are numbers, and zero values are left out. */
function structForm(svid: object): object {
  const fields = Object.entries(svid).filter(([, value]) => value !== null && value !== "" && value !== "0");
  return Object.fromEntries(
    fields.map(([name, value]) => [name, typeof value === "string" && /^-?\d+$/.test(value) ? Number(value) : value]),
  );
}

export const witCommands = group("Mints WIT-SVIDs", { mint });
