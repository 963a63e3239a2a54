import type { KeyObject } from "node:crypto";
import { type Certificate, parseCertificateUpTo } from "../../src/crypto/certificate.ts";
import { verifyChains } from "../../src/crypto/chain.ts";
import { parseName } from "../../src/crypto/name.ts";
import type { AgentPathTemplate, TemplateData, TemplateValue } from "../../src/evidence/agent-path.ts";
import {
  certificateFingerprint,
  makeChallenge,
  readEvidence,
  serialNumberHex,
  verifyResponse,
  X509POP,
} from "../../src/evidence/x509pop.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { addressesEqual } from "../../src/runtime/networks.ts";
import { isMember, pathOf, type SpiffeId, type TrustDomain } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { caBundles } from "./ca-bundle.ts";

export interface X509PopConfig {
  /** Who issued the nodes' certificates: a PKI of the operator's own, or this trust domain itself. */
  readonly mode:
    | { readonly kind: "external_pki"; readonly caPaths: readonly string[] }
    | { readonly kind: "spiffe"; readonly prefix: string };
  readonly agentPath: AgentPathTemplate;
  readonly maxIntermediates: number;
  readonly maxRsaKeySize: number;
  readonly verifyClientIp: boolean;
}

export interface X509PopOptions extends X509PopConfig {
  readonly trustDomain: TrustDomain;
  /** The trust domain's own X.509 authorities, as of now. */
  readonly ownAuthorities: () => readonly Certificate[];
  readonly clock: Clock;
  readonly log: Log;
}

/** What a leaf has been shown to be. */
interface Proven {
  readonly leaf: Certificate;
  /** From the leaf to an anchor, each. */
  readonly paths: readonly (readonly Certificate[])[];
  /** In spiffe mode, the leaf's path below the prefix. */
  readonly svidPath: string;
}

/** The node shows a certificate and that it holds its key. */
export class X509PopAttestor implements NodeAttestor {
  readonly type = X509POP;
  readonly ownPath = true;
  readonly #options: X509PopOptions;
  readonly #anchors: () => Promise<readonly Certificate[]>;

  private constructor(options: X509PopOptions, anchors: () => Promise<readonly Certificate[]>) {
    this.#options = options;
    this.#anchors = anchors;
  }

  /** Throws `invalid` when the CA bundles can't be read. */
  static async open(options: X509PopOptions): Promise<X509PopAttestor> {
    const { mode, ownAuthorities } = options;
    if (mode.kind === "spiffe") return new X509PopAttestor(options, async () => ownAuthorities());
    const bundles = caBundles(mode.caPaths, options.log, options.maxRsaKeySize);
    await bundles.value();
    return new X509PopAttestor(options, () => bundles.value());
  }

  async attest(payload: Uint8Array, challenge: Challenge, context: AttestationContext): Promise<NodeClaim> {
    const chain = this.#parse(readEvidence(payload));
    const proven = await this.#verify(chain);
    if (this.#options.verifyClientIp) checkAddress(proven.leaf, context.remoteAddress);
    const key = signingKey(proven.leaf);
    const asked = makeChallenge(key);
    verifyResponse(key, asked, await challenge(asked.message));
    return this.#claim(proven);
  }

  /** Counts and sizes come first: nothing expensive is done for what is refused in any case (T-N5). */
  #parse(ders: readonly Uint8Array[]): readonly [Certificate, ...Certificate[]] {
    const { maxIntermediates, maxRsaKeySize } = this.#options;
    if (ders.length === 0) throw invalid("no certificate to attest");
    if (ders.length - 1 > maxIntermediates) throw invalid("too many intermediate certificates");
    const [leaf, ...intermediates] = ders.map((der, index) => {
      const what = index === 0 ? "leaf certificate" : `intermediate certificate ${index - 1}`;
      return readCertificate(der, what, maxRsaKeySize);
    });
    return leaf === undefined ? [unreachable()] : [leaf, ...intermediates];
  }

  async #verify(chain: readonly [Certificate, ...Certificate[]]): Promise<Proven> {
    const { mode, clock } = this.#options;
    const [leaf] = chain;
    const roots = await this.#anchors();
    try {
      const paths = verifyChains({ chain, roots, at: clock.now() });
      return { leaf, paths, svidPath: mode.kind === "spiffe" ? this.#svidPath(chain, roots, mode.prefix) : "" };
    } catch (error) {
      const fault = Fault.from(error);
      if (fault.code === WRONG_SVID || fault.kind === "internal") throw fault;
      throw new Fault("denied", `certificate verification failed: ${fault.message}`, { code: "x509pop-chain" });
    }
  }

  /** An SVID of this trust domain, by every rule for one, below the prefix that may be exchanged. */
  #svidPath(chain: readonly Certificate[], roots: readonly Certificate[], prefix: string): string {
    const { trustDomain, clock } = this.#options;
    const authorities = (of: TrustDomain) => (of === trustDomain ? roots : undefined);
    const id = validateX509Svid({ chain, authorities, at: clock.now() });
    if (!isMember(id, trustDomain)) throw wrongSvid("valid SVID x509 cert not found");
    const path = pathOf(id);
    if (!path.startsWith(prefix) || path.length === prefix.length)
      throw wrongSvid("x509 cert doesnt match SVID prefix");
    return path.slice(prefix.length);
  }

  #claim({ leaf, paths, svidPath }: Proven): NodeClaim {
    const sans = sanSelectors(leaf, this.#options);
    const id = this.#agentId(leaf, svidPath, sans);
    const { commonName = "" } = parseName(leaf.subject);
    const authorities = new Set(paths.flatMap((path) => path.slice(1).map(certificateFingerprint)));
    const values = [
      ...(commonName === "" ? [] : [`subject:cn:${commonName}`]),
      ...[...authorities].map((fingerprint) => `ca:fingerprint:${fingerprint}`),
      `serialnumber:${serialNumberHex(leaf)}`,
      ...Object.entries(sans).map(([key, value]) => `san:${key}:${value}`),
    ];
    return { id, selectors: values.map((value) => ({ type: X509POP, value })), canReattest: true };
  }

  #agentId(leaf: Certificate, svidPath: string, sans: Readonly<Record<string, string>>): SpiffeId {
    const { agentPath, trustDomain } = this.#options;
    return agentPath.render(trustDomain, templateData(leaf, { trustDomain, svidPath, sans }));
  }
}

function readCertificate(der: Uint8Array, what: string, maxRsaBits: number): Certificate {
  let certificate: Certificate;
  try {
    certificate = parseCertificateUpTo(der, maxRsaBits);
  } catch (error) {
    throw invalid(`unable to parse ${what}: ${Fault.from(error).message}`);
  }
  try {
    certificate.key();
  } catch (error) {
    throw invalid(`${what} key is not accepted: ${Fault.from(error).message}`);
  }
  return certificate;
}

function signingKey(leaf: Certificate): KeyObject {
  if (leaf.keyUsage?.has("digitalSignature") === true) return leaf.key();
  throw new Fault("denied", "unable to generate challenge: certificate not intended for digital signature use", {
    code: "x509pop-key-usage",
    hint: "issue the node a certificate whose key usage includes digitalSignature",
  });
}

function checkAddress(leaf: Certificate, address: string | undefined): void {
  if (address === undefined) throw new Fault("internal", "client IP not available for verification");
  if (leaf.ipAddresses.some((octets) => addressesEqual(octets, address))) return;
  throw new Fault("denied", `client IP ${address} does not match any certificate IP SAN`, {
    code: "x509pop-address",
    hint: "turn verify_client_ip off when nodes come through a proxy or NAT",
  });
}

/** `x509pop://<trust domain>/<key>/<value>`; the last of several with one key counts. */
function sanSelectors(leaf: Certificate, { trustDomain, log }: X509PopOptions): Readonly<Record<string, string>> {
  const prefix = `x509pop://${trustDomain}/`;
  const found = new Map<string, string>();
  for (const uri of leaf.uris.filter((uri) => uri.startsWith(prefix))) {
    const path = uri.slice(prefix.length).replace(/^\/+|\/+$/g, "");
    const slash = path.indexOf("/");
    if (slash < 1 || !PLAIN_PATH.test(path)) log.warn("Cannot extract x509pop SAN selectors from a URI name");
    else found.set(path.slice(0, slash), path.slice(slash + 1));
  }
  return Object.fromEntries(found);
}

/** Read as it is: nothing in it needs to be decoded, and nothing has a meaning in URIs. */
const PLAIN_PATH = /^[A-Za-z0-9._~!$&'()*+,;=:@/-]+$/;

interface Surroundings {
  readonly trustDomain: TrustDomain;
  readonly svidPath: string;
  readonly sans: Readonly<Record<string, string>>;
}

function templateData(leaf: Certificate, { trustDomain, svidPath, sans }: Surroundings): TemplateData {
  return {
    fields: {
      PluginName: X509POP,
      TrustDomain: trustDomain,
      Fingerprint: certificateFingerprint(leaf),
      SerialNumber: leaf.serialNumber,
      SerialNumberHex: serialNumberHex(leaf),
      SVIDPathTrimmed: svidPath,
      URISanSelectors: sans,
      Subject: nameFields(leaf.subject),
      Issuer: nameFields(leaf.issuer),
      DNSNames: leaf.dnsNames,
      EmailAddresses: leaf.emailAddresses,
    },
    paths: ["SVIDPathTrimmed", "URISanSelectors"],
  };
}

/** As Go names the parts. */
function nameFields(der: Uint8Array): TemplateValue {
  const name = parseName(der);
  const all = (value: string | readonly string[] | undefined): readonly string[] => [value ?? []].flat();
  return {
    CommonName: name.commonName ?? "",
    SerialNumber: name.serialNumber ?? "",
    Country: all(name.country),
    Organization: all(name.organization),
    OrganizationalUnit: all(name.organizationalUnit),
    Locality: all(name.locality),
    Province: all(name.province),
    StreetAddress: all(name.streetAddress),
    PostalCode: all(name.postalCode),
  };
}

const WRONG_SVID = "x509pop-svid";

function wrongSvid(message: string): Fault {
  return new Fault("denied", message, { code: WRONG_SVID, hint: "give the node an SVID below spiffe_prefix" });
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "x509pop-evidence" });
}

function unreachable(): never {
  throw new Fault("internal", "no certificate");
}
