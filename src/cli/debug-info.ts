import { rfc3339 } from "../runtime/logfmt.ts";

interface ChainCertificate {
  readonly id: { readonly trust_domain: string; readonly path: string } | null;
  readonly expires_at: string;
  readonly subject: string;
}

/** The certificates of `debug getinfo`, of server and agent alike. */
export function svidChainText(chain: readonly ChainCertificate[]): string {
  if (chain.length === 0) return "";
  const entries = chain.map(({ id, expires_at, subject }, index) => {
    const name = id === null ? "(none)" : `spiffe://${id.trust_domain}${id.path}`;
    const expires = rfc3339(new Date(Number(expires_at) * 1000), false);
    return `    [${index}] SPIFFE ID:  ${name}\n        Subject:    ${subject}\n        Expires At: ${expires}\n`;
  });
  return `  SVID Chain:\n${entries.join("")}`;
}
