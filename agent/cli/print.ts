import type { Table } from "../../src/cli/table.ts";
import type { X509Context, X509Svid } from "../../src/client/index.ts";
import type { Certificate } from "../../src/crypto/certificate.ts";
import { formatDuration } from "../../src/runtime/duration.ts";
import { goUtcTime } from "../../src/runtime/go-time.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";
import { type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";

/** All identities with their validity, as SPIRE's agent prints them. */
export function printX509Context(out: TextOutput, context: X509Context, afterMs: number): void {
  const { svids, bundles } = context;
  out.write(`Received ${svids.length} svid${svids.length === 1 ? "" : "s"} after ${formatDuration(afterMs)}\n`);
  for (const svid of svids) {
    out.write("\n");
    printSvid(out, svid);
    const own = trustDomainOf(svid.id);
    printValidity(out, "CA", bundles.get(own)?.authorities ?? []);
    for (const [domain, { authorities }] of foreign(bundles, own)) printValidity(out, `[${domain}] CA`, authorities);
  }
  out.write("\n");
}

function foreign<T>(bundles: ReadonlyMap<TrustDomain, T>, own: TrustDomain): (readonly [TrustDomain, T])[] {
  return [...bundles].filter(([domain]) => domain !== own).sort(([a], [b]) => (a < b ? -1 : 1));
}

function printSvid(out: TextOutput, { id, hint, chain }: X509Svid): void {
  const [leaf, ...intermediates] = chain;
  out.write(`SPIFFE ID:\t\t${id}\n`);
  if (hint !== "") out.write(`Hint:\t\t\t${hint}\n`);
  if (leaf === undefined) return;
  out.write(`SVID Valid After:\t${goUtcTime(leaf.notBefore)}\n`);
  out.write(`SVID Valid Until:\t${goUtcTime(leaf.notAfter)}\n`);
  printValidity(out, "Intermediate", intermediates);
}

function printValidity(out: TextOutput, what: string, certificates: readonly Certificate[]): void {
  certificates.forEach(({ notBefore, notAfter }, index) => {
    out.write(`${what} #${index + 1} Valid After:\t${goUtcTime(notBefore)}\n`);
    out.write(`${what} #${index + 1} Valid Until:\t${goUtcTime(notAfter)}\n`);
  });
}

export function x509Table({ svids }: X509Context): Table {
  return {
    columns: [
      { title: "SPIFFE ID" },
      { title: "HINT" },
      { title: "EXPIRES" },
      { title: "SERIAL NUMBER", wide: true },
      { title: "DNS NAMES", wide: true },
    ],
    rows: svids.map(({ id, hint, chain: [leaf] }) => [id, hint, leaf?.notAfter, leaf?.serialNumber, leaf?.dnsNames]),
  };
}
