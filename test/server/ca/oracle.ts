import "reflect-metadata";
import * as x509 from "@peculiar/x509";

/** The certificates as a library reads them that shares nothing with ours. */
export function read(der: Uint8Array | undefined): x509.X509Certificate {
  return new x509.X509Certificate(Buffer.from(der ?? []));
}

export function urisOf(certificate: x509.X509Certificate): readonly string[] {
  const names = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
  return names.filter((name) => name.type === "url").map((name) => name.value);
}

export function dnsNamesOf(certificate: x509.X509Certificate): readonly string[] {
  const names = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
  return names.filter((name) => name.type === "dns").map((name) => name.value);
}
