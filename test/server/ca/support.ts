import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Issuer, issueSelfSigned } from "../../../server/ca/issue.ts";
import type { X509SigningAuthority } from "../../../server/ca/slots.ts";
import { openStore } from "../../../server/store/database.ts";
import type { Store } from "../../../server/store/store.ts";
import type { KeyType } from "../../../src/crypto/key.ts";
import type { DistinguishedName } from "../../../src/crypto/name.ts";
import { encodePem } from "../../../src/crypto/pem.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { type Clock, systemClock } from "../../../src/runtime/clock.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { parseSpiffeId, parseTrustDomain, type SpiffeId } from "../../../src/spiffe/id.ts";
import { parseSelector } from "../../../src/spiffe/selector.ts";
import { openssl } from "../../support/openssl.ts";
import { type LogLine, RecordingLog } from "../../support/recording-log.ts";

export const TD = parseTrustDomain("example.org");
export const START = new Date("2030-01-02T03:04:05.678Z");

export function id(path: string): SpiffeId {
  return parseSpiffeId(`spiffe://example.org${path}`);
}

/** Stands still until it is moved; sleepers wake when their time has come. */
export class ManualClock implements Clock {
  #now: number;
  readonly #sleepers = new Set<{ readonly at: number; readonly wake: () => void }>();

  constructor(start: Date = START) {
    this.#now = start.getTime();
  }

  now(): Date {
    return new Date(this.#now);
  }

  monotonic(): number {
    return this.#now;
  }

  random(): number {
    return 0.5;
  }

  get sleepers(): number {
    return this.#sleepers.size;
  }

  /** Backwards too. */
  move(seconds: number): void {
    this.#now += seconds * 1000;
    for (const sleeper of [...this.#sleepers]) if (sleeper.at <= this.#now) sleeper.wake();
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = (): void => {
        this.#sleepers.delete(sleeper);
        signal?.removeEventListener("abort", abort);
      };
      const abort = (): void => {
        end();
        reject(signal?.reason);
      };
      const wake = (): void => {
        end();
        resolve();
      };
      const sleeper = { at: this.#now + ms, wake };
      if (signal?.aborted === true) return reject(signal.reason);
      signal?.addEventListener("abort", abort);
      if (ms <= 0) resolve();
      else this.#sleepers.add(sleeper);
    });
  }
}

export interface TestStore extends AsyncDisposable {
  readonly store: Store;
  /** Removed with the store; has room for more files. */
  readonly folder: string;
}

/** The embedded store in a folder of its own. */
export async function openTestStore(): Promise<TestStore> {
  const folder = await mkdtemp(join(tmpdir(), "steeple-store-"));
  const config = { kind: "embedded", directory: join(folder, "db") } as const;
  const store = await openStore(config, { log: new RecordingLog(), clock: systemClock });
  return {
    store,
    folder,
    async [Symbol.asyncDispose]() {
      await store[Symbol.asyncDispose]();
      await rm(folder, { recursive: true });
    },
  };
}

/** The messages of one level, or of all. */
export function messagesOf(log: RecordingLog, level?: LogLine["level"]): readonly string[] {
  return log.lines.filter((line) => level === undefined || line.level === level).map(({ message }) => message);
}

export interface AuthorityOptions {
  readonly keyType?: KeyType;
  readonly ttlSeconds?: number;
  readonly subject?: DistinguishedName;
  readonly now?: Date;
}

/** A self-signed authority with a key in memory. */
export async function makeAuthority(options: AuthorityOptions = {}): Promise<X509SigningAuthority> {
  const { keyType = "ec-p256", ttlSeconds = 86_400, subject = {}, now = START } = options;
  const key = await openMemoryKeys().generate("x509-CA-A", keyType);
  const certificate = await issueSelfSigned({ trustDomain: TD, key, ttlSeconds, subject, now });
  const { subjectKeyId, notBefore, notAfter } = certificate;
  return {
    kind: "x509",
    id: subjectKeyId,
    key,
    certificate,
    issuedAt: now,
    notBefore,
    notAfter,
    intermediates: [],
    upstreamAuthorityId: "",
  };
}

export function makeIssuer(authority: X509SigningAuthority, clock: Clock = new ManualClock()): Issuer {
  return new Issuer({
    trustDomain: TD,
    authorities: { signing: () => authority },
    defaultTtlSeconds: 3600,
    agentTtlSeconds: 1800,
    caTtlSeconds: 86_400,
    clock,
  });
}

export function makeEntry(fields: Partial<Entry> = {}): Entry {
  return {
    id: "entry-1",
    spiffeId: id("/web"),
    parentId: id("/spire/agent/join_token/t"),
    selectors: [parseSelector("unix:uid:1000")],
    x509SvidTtl: 0,
    jwtSvidTtl: 0,
    federatesWith: [],
    admin: false,
    downstream: false,
    storeSvid: false,
    expiresAt: 0,
    dnsNames: [],
    hint: "",
    disableX509SvidPrefetch: false,
    jwtSvidIncludeJti: false,
    revisionNumber: 0,
    createdAt: 0,
    ...fields,
  };
}

/** What the openssl program prints of a certificate. */
export async function opensslText(der: Uint8Array): Promise<string> {
  await using program = await openssl();
  await program.write("leaf.der", der);
  return (await program.run("x509", "-inform", "DER", "-in", "leaf.der", "-noout", "-text")).toString();
}

/** What the openssl program says of a leaf under a root at a time, in its strict mode. Rejects when it does not verify. */
export async function opensslVerify(leaf: Uint8Array, root: Uint8Array, at: Date): Promise<string> {
  await using program = await openssl();
  await program.write("leaf.pem", encodePem("CERTIFICATE", leaf));
  await program.write("root.pem", encodePem("CERTIFICATE", root));
  const time = String(Math.floor(at.getTime() / 1000));
  return (await program.run("verify", "-x509_strict", "-attime", time, "-CAfile", "root.pem", "leaf.pem")).toString();
}
