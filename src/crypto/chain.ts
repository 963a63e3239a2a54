import { Fault } from "../runtime/fault.ts";
import type { Certificate } from "./certificate.ts";
import { checkNameConstraints, countComparisons } from "./name-constraints.ts";
import { signatureHolds } from "./signature.ts";

/** Leaf included, anchor excluded. T-X4, T-X5. */
export const MAX_CHAIN_CERTIFICATES = 10;
/** Signature checks that one call may cost. A chain of ten needs ten; the rest is for cross-signed and shuffled ones. */
const MAX_SIGNATURE_CHECKS = 25;
/** Candidate issuers that one call may look at. */
const MAX_STEPS = 1000;
/** Comparisons of a name with a constraint that one call may cost. */
const MAX_NAME_COMPARISONS = 100_000;

export interface ChainOptions {
  /** Leaf first; the others in any order, and some may be of no use. */
  readonly chain: readonly Certificate[];
  /** The only trust anchors. They need not be self-signed. */
  readonly roots: readonly Certificate[];
  readonly at: Date;
}

/**
 * Finds a path from the leaf to one of the roots that holds under RFC 5280, section 6, and returns it, leaf first and
 * root last. Validity, basic constraints, key usage, path length and name constraints of the root count as well. Says
 * nothing about what the leaf may be used for. Throws `denied`; the work is bounded whatever the peer sends.
 */
export function verifyChain(options: ChainOptions): readonly Certificate[] {
  const search = searchOf(options);
  const first = search.next();
  if (first.done === true) throw first.value;
  return first.value;
}

/** As `verifyChain`, with every path that holds: a cross-signed certificate has several. At least one. */
export function verifyChains(options: ChainOptions): readonly (readonly Certificate[])[] {
  const search = searchOf(options);
  const paths: (readonly Certificate[])[] = [];
  for (let next = search.next(); ; next = search.next()) {
    if (next.done !== true) paths.push(next.value);
    else if (paths.length > 0) return paths;
    else throw next.value;
  }
}

/** Yields the paths that hold; returns what to tell when there is none. */
function* searchOf(options: ChainOptions): Generator<readonly Certificate[], Fault, undefined> {
  const [leaf, ...intermediates] = options.chain;
  if (leaf === undefined) throw denied("empty certificates chain", "empty-chain");
  if (options.chain.length > MAX_CHAIN_CERTIFICATES)
    throw denied(`certificate chain is longer than ${MAX_CHAIN_CERTIFICATES}`, "chain-too-long");
  checkAlone(leaf, options.at);
  const search = new PathSearch(intermediates, options);
  yield* search.from([leaf]);
  return search.failure ?? denied("x509: certificate signed by unknown authority", "unknown-authority");
}

/** Depth first, roots before intermediates. */
class PathSearch {
  /** Of the first candidate that fitted by name and still failed: what to tell when nothing else holds. */
  failure: Fault | undefined;
  readonly #intermediates: readonly Certificate[];
  readonly #roots: readonly Certificate[];
  readonly #at: Date;
  readonly #verdicts = new Map<Certificate, Map<Certificate, boolean>>();
  #signatureChecks = 0;
  #steps = 0;
  #comparisons = 0;

  constructor(intermediates: readonly Certificate[], { roots, at }: ChainOptions) {
    this.#intermediates = intermediates;
    this.#roots = roots;
    this.#at = at;
  }

  *from(path: readonly Certificate[]): Generator<readonly Certificate[], void, undefined> {
    const child = path.at(-1);
    if (child === undefined) return;
    for (const root of issuersOf(child, this.#roots)) {
      const whole = [...path, root];
      if (this.#holds(child, root) && this.#attempt(() => this.#checkPath(whole))) yield whole;
    }
    if (path.length >= MAX_CHAIN_CERTIFICATES) return;
    for (const issuer of issuersOf(child, this.#intermediates)) {
      if (path.some((passed) => sameKeyAndName(passed, issuer)) || !this.#holds(child, issuer)) continue;
      yield* this.from([...path, issuer]);
    }
  }

  #holds(child: Certificate, issuer: Certificate): boolean {
    this.#steps += 1;
    if (this.#steps > MAX_STEPS) throw tooComplex();
    return this.#attempt(() => {
      checkAlone(issuer, this.#at);
      checkMaySign(issuer);
      if (!this.#signed(child, issuer))
        throw denied("x509: certificate signature does not verify", "certificate-signature");
    });
  }

  #signed(child: Certificate, issuer: Certificate): boolean {
    const verdicts = this.#verdicts.get(child) ?? new Map<Certificate, boolean>();
    this.#verdicts.set(child, verdicts);
    let verdict = verdicts.get(issuer);
    if (verdict === undefined) {
      this.#signatureChecks += 1;
      if (this.#signatureChecks > MAX_SIGNATURE_CHECKS) throw tooComplex();
      verdict = signatureHolds(child, issuer.key());
      verdicts.set(issuer, verdict);
    }
    return verdict;
  }

  /** What depends on the rest of the path: path length, and the names of every certificate below. */
  #checkPath(path: readonly Certificate[]): void {
    for (const [index, { pathLength, nameConstraints }] of path.entries()) {
      const below = path.slice(0, index);
      if (pathLength !== undefined && below.slice(1).filter(countsForPathLength).length > pathLength) {
        throw denied("x509: too many intermediates for path length constraint", "path-length");
      }
      if (nameConstraints === undefined) continue;
      for (const names of below) {
        this.#comparisons += countComparisons(nameConstraints, names);
        if (this.#comparisons > MAX_NAME_COMPARISONS) throw tooComplex();
        checkNameConstraints(nameConstraints, names);
      }
    }
  }

  #attempt(check: () => void): boolean {
    try {
      check();
      return true;
    } catch (error) {
      const fault = Fault.from(error);
      if (fault.code === TOO_COMPLEX) throw fault;
      this.failure ??= fault.kind === "denied" ? fault : denied(`x509: ${fault.message}`, fault.code);
      return false;
    }
  }
}

/** Those whose subject is the child's issuer, byte for byte; first the ones whose key id fits as well. */
function issuersOf(child: Certificate, candidates: readonly Certificate[]): readonly Certificate[] {
  const named = candidates.filter(({ subject }) => Buffer.compare(subject, child.issuer) === 0);
  const fits = (issuer: Certificate): boolean =>
    child.authorityKeyId !== "" && child.authorityKeyId === issuer.subjectKeyId;
  return [...named.filter(fits), ...named.filter((issuer) => !fits(issuer))];
}

/** A path never passes the same name and key twice, so cycles end. */
function sameKeyAndName(a: Certificate, b: Certificate): boolean {
  return Buffer.compare(a.subject, b.subject) === 0 && Buffer.compare(a.publicKey, b.publicKey) === 0;
}

/** What holds for any certificate of a path by itself. */
function checkAlone({ notBefore, notAfter, unknownCritical }: Certificate, at: Date): void {
  if (at < notBefore)
    throw denied(
      `x509: certificate is not yet valid: current time ${iso(at)} is before ${iso(notBefore)}`,
      "certificate-not-yet-valid",
    );
  if (at > notAfter)
    throw denied(
      `x509: certificate has expired: current time ${iso(at)} is after ${iso(notAfter)}`,
      "certificate-expired",
    );
  if (unknownCritical.length > 0)
    throw denied(`x509: unhandled critical extension ${unknownCritical[0]}`, "unknown-critical-extension");
}

function checkMaySign({ isCa, keyUsage }: Certificate): void {
  if (!isCa) throw denied("x509: issuer is not a certificate authority", "not-a-ca");
  if (keyUsage !== undefined && !keyUsage.has("keyCertSign")) {
    throw denied("x509: issuer may not sign certificates: keyCertSign is missing", "missing-key-cert-sign");
  }
}

/** Self-issued intermediates do not. RFC 5280, section 4.2.1.9. */
function countsForPathLength({ subject, issuer }: Certificate): boolean {
  return Buffer.compare(subject, issuer) !== 0;
}

const TOO_COMPLEX = "path-too-complex";

function tooComplex(): Fault {
  return denied("certificate chain takes too much work to verify", TOO_COMPLEX);
}

function iso(time: Date): string {
  return time.toISOString();
}

function denied(message: string, code: string): Fault {
  return new Fault("denied", message, { code });
}
