import { join } from "node:path";
import type { Answer } from "../../src/cli/output.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey, privateKeyToPkcs8 } from "../../src/crypto/key.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { BundleApi, SvidApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { writePrivateFile, writePublicFile } from "../../src/runtime/files.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { parseSpiffeId } from "../../src/spiffe/id.ts";
import { serverCommand } from "./connection.ts";
import { incomplete, usage } from "./input.ts";
import { secondsOf, warnOfCappedTtl } from "./mint.ts";

interface Minted {
  readonly chain: readonly Uint8Array[];
  readonly privateKey: Uint8Array;
  readonly roots: readonly Uint8Array[];
}

const mint = serverCommand({
  summary: "Mints an X509-SVID",
  flags: {
    spiffeID: { type: "string", doc: "SPIFFE ID of the X509-SVID", default: "" },
    ttl: { type: "duration", doc: "TTL of the X509-SVID; 0 means the server's default", default: "0s" },
    dns: { type: "strings", doc: "DNS name that will be included in SVID. Can be used more than once." },
    write: { type: "string", doc: "Directory to write output to instead of stdout", default: "", complete: "file" },
    output: outputFlag,
  },
  examples: ["x509 mint -spiffeID spiffe://example.org/job -ttl 10m -write ."],
  async run({ flags, io, api }): Promise<Answer | undefined> {
    if (flags.spiffeID === "") throw usage("spiffeID must be specified", "add -spiffeID spiffe://…");
    const key = await generateKey("ec-p256");
    const csr = await createCertificateRequest({
      signer: key,
      uris: [parseSpiffeId(flags.spiffeID)],
      dnsNames: flags.dns,
    });
    const ttl = secondsOf(flags.ttl);
    const { svid } = await api.ask(
      api.client(SvidApi).MintX509SVID({ csr: Buffer.from(csr), ttl }),
      "unable to mint SVID",
    );
    if (svid === null || svid.cert_chain.length === 0) throw incomplete("server response missing SVID chain");
    const bundle = await api.ask(api.client(BundleApi).GetBundle({}), "unable to get bundle");
    if (bundle.x509_authorities.length === 0) throw incomplete("server response missing X509 Authorities");

    warnOfCappedTtl(io, "X509-SVID", { expires: new Date(Number(svid.expires_at) * 1000), ttlMs: flags.ttl });
    const minted = {
      chain: svid.cert_chain,
      privateKey: privateKeyToPkcs8(key.privateKey),
      roots: bundle.x509_authorities.map(({ asn1 }) => asn1),
    };
    if (flags.write === "")
      return { message: jsonForm(minted), ordered: true, pretty: (out) => printMinted(out, minted) };
    await writeMinted(io, flags.write, minted);
    return undefined;
  },
});

function certificates(list: readonly Uint8Array[]): string {
  return list.map((der) => encodePem("CERTIFICATE", der)).join("");
}

function printMinted(io: Io, { chain, privateKey, roots }: Minted): void {
  io.stdout.write(`X509-SVID:\n${certificates(chain)}\n`);
  io.stdout.write(`Private key:\n${encodePem("PRIVATE KEY", privateKey)}\n`);
  io.stdout.write(`Root CAs:\n${certificates(roots)}\n`);
}

function jsonForm({ chain, privateKey, roots }: Minted): object {
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
  return { x509_svid: chain.map(base64), private_key: base64(privateKey), root_cas: roots.map(base64) };
}

async function writeMinted(io: Io, folder: string, { chain, privateKey, roots }: Minted): Promise<void> {
  const text = (pem: string): Uint8Array => Buffer.from(pem);
  await writePublicFile(join(folder, "svid.pem"), text(certificates(chain)));
  io.stdout.write(`X509-SVID written to ${join(folder, "svid.pem")}\n`);
  await writePrivateFile(join(folder, "key.pem"), text(encodePem("PRIVATE KEY", privateKey)));
  io.stdout.write(`Private key written to ${join(folder, "key.pem")}\n`);
  await writePublicFile(join(folder, "bundle.pem"), text(certificates(roots)));
  io.stdout.write(`Root CAs written to ${join(folder, "bundle.pem")}\n`);
}

export const x509Commands = group("Mints X.509-SVIDs", { mint });
