import { encodePem } from "../../src/crypto/pem.ts";
import { bundleFromProto } from "../../src/rpc/convert.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import { BundleApi } from "../../src/rpc/protos.ts";
import { group } from "../../src/runtime/cli.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { outputFlag } from "../../src/runtime/flags.ts";
import { encodeBundleDocument } from "../../src/spiffe/bundle.ts";
import { serverCommand } from "./connection.ts";
import { plural, print } from "./print.ts";

const FORMATS: Readonly<Record<string, (bundle: Bundle__Output) => string>> = {
  pem: ({ x509_authorities }) => x509_authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join(""),
  spiffe: (bundle) => `${JSON.stringify(JSON.parse(encodeBundleDocument(bundleFromProto(bundle))), undefined, 4)}\n`,
};

const show = serverCommand({
  summary: "Prints server CA bundle to stdout",
  flags: {
    format: {
      type: "string",
      doc: 'The format to show the bundle (pretty output only). Either "pem" or "spiffe".',
      default: "pem",
    },
    output: outputFlag,
  },
  examples: ["bundle show > bundle.pem", "bundle show -format spiffe"],
  async run({ flags, io, server }) {
    const format = FORMATS[flags.format.toLowerCase() || "pem"];
    if (format === undefined) {
      throw new Fault("invalid", `invalid format: ${JSON.stringify(flags.format)}`, {
        code: "bundle-format",
        hint: "choose pem or spiffe",
      });
    }
    const message = await server.ask(server.client(BundleApi).GetBundle({}));
    print({ io, output: flags.output, message }, () => void io.stdout.write(format(message)));
  },
});

const count = serverCommand({
  summary: "Count bundles",
  flags: { output: outputFlag },
  examples: ["bundle count"],
  async run({ flags, io, server }) {
    const message = await server.ask(server.client(BundleApi).CountBundles({}));
    print(
      { io, output: flags.output, message },
      () => void io.stdout.write(`${plural(message.count, "bundle", "bundles")}\n`),
    );
  },
});

export const bundleCommands = group("Shows and counts trust bundles", { count, show });
