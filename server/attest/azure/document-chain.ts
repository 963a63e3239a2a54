import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { verifyChain } from "../../../src/crypto/chain.ts";
import { decodePem } from "../../../src/crypto/pem.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";

/** The only host that is asked for issuers, and where they are on it: a signer that nobody believes yet names the URL. */
const ISSUERS_HOST = "www.microsoft.com";
const ISSUERS_PATH = /^\/(pkiops|pki)\/[A-Za-z0-9/%._ -]{1,200}\.(crt|cer|der)$/;
const MAX_KEPT = 64;
const MAX_REDIRECTS = 3;

export interface ChainParts {
  readonly signer: Certificate;
  readonly others: readonly Uint8Array[];
  readonly roots: readonly Certificate[];
  readonly at: Date;
}

/** Builds the chain of the certificate that verified the signature: by what came with it, or by its issuer's URL (T-N2). */
export class DocumentChains {
  readonly #http: HttpCaller;
  readonly #issuers = new Map<string, Certificate>();

  constructor(http: HttpCaller) {
    this.#http = http;
  }

  /** Throws `denied`, and `unavailable` when the issuer cannot be fetched. */
  async verify({ signer, others, roots, at }: ChainParts, signal: AbortSignal): Promise<void> {
    const along = others.flatMap(readable);
    try {
      verifyChain({ chain: [signer, ...along], roots, at });
      return;
    } catch (error) {
      if (Fault.from(error).code !== "unknown-authority") throw refused(Fault.from(error));
    }
    const issuer = await this.#issuerOf(signer, signal);
    try {
      verifyChain({ chain: [signer, issuer, ...along], roots, at });
    } catch (error) {
      throw refused(Fault.from(error));
    }
  }

  async #issuerOf({ issuerUrls }: Certificate, signal: AbortSignal): Promise<Certificate> {
    const url = checkedUrl(issuerUrls[0] ?? "");
    const kept = this.#issuers.get(url.href);
    if (kept !== undefined) return kept;
    const certificate = await this.#fetch(url, signal);
    if (this.#issuers.size >= MAX_KEPT) this.#issuers.clear();
    this.#issuers.set(url.href, certificate);
    return certificate;
  }

  async #fetch(first: URL, signal: AbortSignal): Promise<Certificate> {
    let url = first;
    for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects += 1) {
      const { status, headers, body } = await this.#http.call({ url }, signal);
      if (status === 200) return certificateIn(body);
      if (status < 300 || status > 399 || headers.location === undefined)
        throw this.#http.fault(`failed to fetch intermediate certificate, status: ${status}`);
      url = checkedUrl(URL.canParse(headers.location, url) ? new URL(headers.location, url).href : "");
    }
    throw this.#http.fault("failed to fetch intermediate certificate: too many redirects");
  }
}

function checkedUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isPlain = url?.search === "" && url.port === "" && url.username === "" && /^https?:$/.test(url.protocol);
  if (url !== undefined && isPlain && url.hostname === ISSUERS_HOST && ISSUERS_PATH.test(url.pathname)) return url;
  throw new Fault("denied", `CA Issuers URL of the signing certificate is not one of ${ISSUERS_HOST}`, {
    code: "azure-imds-refused",
  });
}

function certificateIn(body: Buffer): Certificate {
  try {
    const [pem] =
      body.subarray(0, 5).toString("latin1") === "-----" ? decodePem(body.toString("latin1"), "CERTIFICATE") : [];
    return parseCertificate(pem ?? body);
  } catch (cause) {
    throw new Fault("unavailable", "failed to parse intermediate certificate", { code: "azure-api", cause });
  }
}

function readable(der: Uint8Array): readonly Certificate[] {
  try {
    return [parseCertificate(der)];
  } catch {
    return [];
  }
}

function refused({ message, code }: Fault): Fault {
  return new Fault("denied", `certificate chain validation failed: ${message}`, { code });
}
