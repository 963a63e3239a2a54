import { open } from "node:fs/promises";
import { fetchX509Bundles, type X509Bundles } from "../../src/client/index.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { type Bundle, parseBundleDocument } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AgentConfig } from "../config.ts";
import { bootstrapWent } from "../events.ts";
import { downloadTrustBundle } from "./download.ts";
import type { AgentData } from "./state.ts";

/** How the agent learns whom to trust before it has met the server. Exactly one way. */
export type TrustBundleSource = AgentConfig["trustBundle"];
type BundleFormat = Extract<TrustBundleSource, { readonly kind: "path" }>["format"];

/** `undefined` authorities mean that the first server to show the right SPIFFE ID is believed. */
export type Trust = { readonly kind: "bundle"; readonly bundle: Bundle } | { readonly kind: "insecure" };

type KeptBundle = Pick<AgentData, "bundle" | "bundleSequence" | "tainted">;

export interface BootstrapOptions {
  readonly source: TrustBundleSource;
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly attempt: BootstrapAttempt;
}

/** For whoever hands out the bundle over a Unix socket. */
export interface BootstrapAttempt {
  readonly mode: "bootstrap" | "rebootstrap";
  /** From 1. */
  readonly count: number;
  readonly startedAt: Date;
  readonly serverAddress: string;
  readonly serverPort: number;
}

export interface BootstrapPlan extends Omit<BootstrapOptions, "attempt"> {
  readonly serverAddress: string;
  readonly serverPort: number;
  readonly log?: Log;
}

/** Gets the trust to start with as often as it takes, and counts the attempts since the last success. */
export class Bootstrap {
  readonly #plan: BootstrapPlan;
  #count = 0;
  #mode: BootstrapAttempt["mode"] = "bootstrap";
  #startedAt = new Date(0);

  constructor(plan: BootstrapPlan) {
    this.#plan = plan;
  }

  trust(mode: BootstrapAttempt["mode"], signal: AbortSignal): Promise<Trust> {
    if (this.#count === 0) this.#startedAt = this.#plan.clock.now();
    this.#count += 1;
    this.#mode = mode;
    this.#tell(this.#startedAt);
    const attempt = { ...this.#plan, mode, count: this.#count, startedAt: this.#startedAt };
    return bootstrapTrust({ ...this.#plan, attempt }, signal);
  }

  succeeded(): void {
    this.#count = 0;
    this.#tell(undefined);
  }

  #tell(since: Date | undefined): void {
    const { log } = this.#plan;
    if (log !== undefined) bootstrapWent(log, { mode: this.#mode, attempts: this.#count, since });
  }
}

const WORKLOAD_API_MS = 60_000;
const MAX_BUNDLE_BYTES = 4 * 1024 * 1024;

/** The trust to start with. A bundle that is kept from an earlier run takes precedence; that is the caller's choice. */
export async function bootstrapTrust(
  { source, trustDomain, clock, attempt }: BootstrapOptions,
  signal: AbortSignal,
): Promise<Trust> {
  switch (source.kind) {
    case "insecure":
      return { kind: "insecure" };
    case "none":
      throw new Fault("invalid", "load bundle: no certs in bundle", {
        code: "trust-bundle-missing",
        hint: "set trust_bundle_path, trust_bundle_url or insecure_bootstrap",
      });
    case "path":
      return read(await readFileCapped(source.path), source.format, trustDomain);
    case "workload_api":
      return fromWorkloadApi(source.socket, trustDomain, signal);
    case "unix_socket": {
      const { socketPath, format } = source;
      const url = withAttempt(source.url, attempt, trustDomain);
      return read(
        await downloadTrustBundle({ url, socketPath, clock, maxBytes: MAX_BUNDLE_BYTES }, signal),
        format,
        trustDomain,
      );
    }
    case "url": {
      const roots = source.rootsPath === undefined ? undefined : await readFileCapped(source.rootsPath);
      return read(
        await downloadTrustBundle({ url: source.url, roots, clock, maxBytes: MAX_BUNDLE_BYTES }, signal),
        source.format,
        trustDomain,
      );
    }
  }
}

async function fromWorkloadApi(socket: string, trustDomain: TrustDomain, signal: AbortSignal): Promise<Trust> {
  const refuse = (reason: string, cause?: unknown): Fault =>
    new Fault("unavailable", `SPIFFE Workload API ${socket} ${reason}`, {
      code: "trust-bundle-workload-api",
      hint: "check trust_bundle_spiffe_workload_api, and that the agent there may hand out bundles",
      cause,
    });
  let bundles: X509Bundles["bundles"];
  try {
    bundles = (await fetchX509Bundles({ socket, deadlineMs: WORKLOAD_API_MS, signal })).bundles;
  } catch (error) {
    signal.throwIfAborted();
    throw refuse(`handed out no trust bundle: ${messageOf(error)}`, error);
  }
  const authorities = bundles.get(trustDomain)?.authorities ?? [];
  if (authorities.length === 0) throw refuse(`did not provide a trust bundle for trust domain "${trustDomain}"`);
  return {
    kind: "bundle",
    bundle: bundleOf(
      trustDomain,
      authorities.map(({ raw }) => raw),
    ),
  };
}

/** spire-contract 2.8. */
function withAttempt(text: string, attempt: BootstrapAttempt, trustDomain: TrustDomain): string {
  const url = new URL(text);
  const { mode, count, startedAt, serverAddress, serverPort } = attempt;
  url.searchParams.set("spire-attest-mode", mode);
  url.searchParams.set("spire-connection-attempts", String(count));
  url.searchParams.set("spire-attest-start-time", startedAt.toISOString().replace(/\.\d+Z$/, "Z"));
  url.searchParams.set("spire-server-address", serverAddress);
  url.searchParams.set("spire-server-port", String(serverPort));
  url.searchParams.set("spiffe-trust-domain", trustDomain);
  return url.href;
}

/** A bundle of X.509 authorities alone, such as a PEM file or a former run leaves behind. */
export function bundleOf(trustDomain: TrustDomain, ders: readonly Uint8Array[]): Bundle {
  return {
    trustDomain,
    x509Authorities: ders.map((asn1) => ({ asn1, tainted: false })),
    jwtAuthorities: [],
    witAuthorities: [],
    refreshHint: 0,
    sequenceNumber: 0n,
  };
}

/** What an agent keeps of its trust domain's bundle between runs. */
export function keptOf({ x509Authorities, sequenceNumber }: Bundle): KeptBundle {
  const tainted = x509Authorities.filter((authority) => authority.tainted);
  return {
    bundle: x509Authorities.map(({ asn1 }) => asn1),
    bundleSequence: sequenceNumber,
    tainted: tainted.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId),
  };
}

/** The other way round. */
export function keptBundle(
  trustDomain: TrustDomain,
  { bundle, bundleSequence = 0n, tainted = [] }: KeptBundle,
): Bundle {
  const isTainted = (der: Uint8Array): boolean =>
    tainted.length > 0 && tainted.includes(parseCertificate(der).subjectKeyId);
  return {
    ...bundleOf(trustDomain, bundle),
    x509Authorities: bundle.map((asn1) => ({ asn1, tainted: isTainted(asn1) })),
    sequenceNumber: bundleSequence,
  };
}

function read(text: string, format: BundleFormat, trustDomain: TrustDomain): Trust {
  const bundle =
    format === "pem" ? bundleOf(trustDomain, pemAuthorities(text)) : parseBundleDocument(trustDomain, text);
  if (bundle.x509Authorities.length === 0) {
    throw new Fault("invalid", "no certificates found in trust bundle", {
      code: "trust-bundle-empty",
      hint: `check that the bundle is in the format "${format}", or set trust_bundle_format`,
    });
  }
  return { kind: "bundle", bundle };
}

function pemAuthorities(text: string): readonly Uint8Array[] {
  return decodePem(text, "CERTIFICATE").map((der) => parseCertificate(der).raw);
}

async function readFileCapped(path: string): Promise<string> {
  try {
    await using file = await open(path, "r");
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_BUNDLE_BYTES + 1), 0, MAX_BUNDLE_BYTES + 1, 0);
    if (bytesRead > MAX_BUNDLE_BYTES) throw new Fault("invalid", "larger than 4 MiB");
    return buffer.toString("utf8", 0, bytesRead);
  } catch (error) {
    throw new Fault("invalid", `could not parse trust bundle: ${path}: ${messageOf(error)}`, {
      code: "trust-bundle-unreadable",
      hint: 'write it with "steeple-server bundle show"',
      cause: error,
    });
  }
}
