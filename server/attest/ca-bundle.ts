import { type Certificate, parseCertificateUpTo } from "../../src/crypto/certificate.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import { MOST_RSA_BITS } from "../../src/crypto/public-key.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Reloaded } from "../../src/runtime/reloaded.ts";

/** Trust anchors in PEM files, read again when one changes. A file without any is refused. */
export function caBundles(
  paths: readonly string[],
  log: Log,
  maxRsaBits = MOST_RSA_BITS,
): Reloaded<readonly Certificate[]> {
  return new Reloaded({
    paths,
    read: (contents) =>
      contents.flatMap((text, index) => {
        const found = decodePem(text, "CERTIFICATE").map((der) => parseCertificateUpTo(der, maxRsaBits));
        if (found.length > 0) return found;
        throw new Fault("invalid", `unable to load trust bundle "${paths[index]}": no certificates found`, {
          code: "ca-bundle-empty",
          hint: "put CA certificates in PEM form into the file",
        });
      }),
    rejected: (error) => log.warn("Changed CA bundle cannot be used; the earlier one stays in use", { error }),
  });
}
