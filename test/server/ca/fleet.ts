import { join } from "node:path";
import { expect } from "vitest";
import { Authorities, type AuthoritiesOptions } from "../../../server/ca/authorities.ts";
import type { BundleAccess, TokenKind } from "../../../server/ca/bundle-edits.ts";
import { BundleHistory } from "../../../server/ca/bundle-history.ts";
import { Issuer } from "../../../server/ca/issue.ts";
import { selfSignedKind, tokenKind } from "../../../server/ca/kinds.ts";
import { TokenPublisher } from "../../../server/ca/publish.ts";
import type { TokenSigningAuthority, X509SigningAuthority } from "../../../server/ca/slots.ts";
import type { Store } from "../../../server/store/store.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import type { DistinguishedName } from "../../../src/crypto/name.ts";
import { openDiskKeys } from "../../../src/keys/disk.ts";
import { parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { ManualClock, opensslVerify, openTestStore } from "./support.ts";

export const HOUR = 3600;
export const DAY = 24 * HOUR;

type X509Authorities = Authorities<X509SigningAuthority>;

export interface TestServer extends Omit<AuthoritiesOptions<X509SigningAuthority>, "type" | "bundles"> {
  readonly bundles: BundleAccess;
  readonly subject: DistinguishedName;
  readonly clock: ManualClock;
  readonly log: RecordingLog;
}

export function openTokens(kind: TokenKind, options: TestServer): Promise<Authorities<TokenSigningAuthority>> {
  return Authorities.open({
    ...options,
    type: tokenKind(kind, { ...options, publisher: new TokenPublisher({ ...options, upstream: undefined }) }),
  });
}

export function openX509(options: TestServer): Promise<X509Authorities> {
  return Authorities.open({ ...options, type: selfSignedKind(options) });
}

/** Servers of one trust domain on one database; each test takes a trust domain of its own. */
export class Fleet implements AsyncDisposable {
  readonly store: Store;
  /** How often an older copy of the database took its place. */
  replaced = 0;
  readonly #folder: string;
  readonly #close: () => Promise<void>;
  #trustDomain = parseTrustDomain("td-0.test");
  #count = 0;

  private constructor(store: Store, folder: string, close: () => Promise<void>) {
    this.store = store;
    this.#folder = folder;
    this.#close = close;
  }

  static async open(): Promise<Fleet> {
    const opened = await openTestStore();
    return new Fleet(opened.store, opened.folder, async () => opened[Symbol.asyncDispose]());
  }

  get trustDomain(): TrustDomain {
    return this.#trustDomain;
  }

  nextTrustDomain(): void {
    this.#count += 1;
    this.#trustDomain = parseTrustDomain(`td-${this.#count}.test`);
  }

  /** A server that keeps its keys on disk; called again, the same server after a restart. */
  async server(options: Partial<TestServer> & { readonly keysFile?: string } = {}): Promise<TestServer> {
    const { keysFile = "keys.json", bundles = this.store.bundles, ...given } = options;
    return {
      trustDomain: this.#trustDomain,
      keys: await openDiskKeys(join(this.#folder, this.#trustDomain, keysFile)),
      keyType: "ec-p256",
      ttlSeconds: DAY,
      subject: {},
      bundles,
      history: new BundleHistory({ bundles, trustDomain: this.#trustDomain, replaced: async () => this.replaced }),
      journal: this.store.authorities,
      clock: new ManualClock(),
      log: new RecordingLog(),
      ...given,
    };
  }

  /** Ids of the published authorities. */
  async roots(): Promise<readonly string[]> {
    const bundle = await this.store.bundles.find(this.#trustDomain);
    return bundle?.x509Authorities.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId) ?? [];
  }

  /** The journal's status of each published authority. */
  async journal(): Promise<Readonly<Record<string, string>>> {
    const ours = await this.roots();
    const records = await this.store.authorities.list("x509");
    const found = records.filter((row) => ours.includes(row.authorityId));
    return Object.fromEntries(found.map((row) => [row.authorityId, row.status]));
  }

  async emptyBundle(): Promise<void> {
    const empty = { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 0 };
    await this.store.bundles.change(this.#trustDomain, () => empty);
  }

  /** Issues through the only door, and has openssl verify the result under a root of the stored bundle. */
  async expectIssues(authorities: X509Authorities, { clock }: TestServer): Promise<void> {
    const lifetimes = { defaultTtlSeconds: HOUR, agentTtlSeconds: HOUR, caTtlSeconds: DAY };
    const issuer = new Issuer({ trustDomain: this.#trustDomain, authorities, clock, ...lifetimes });
    const { publicKey } = await generateKey("ec-p256");
    const { chain } = await issuer.issueServer({ publicKey });
    const signer = authorities.signing();
    expect(await this.roots()).toContain(signer.id);
    expect(await opensslVerify(chain[0] ?? new Uint8Array(), signer.certificate.raw, clock.now())).toContain("OK");
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#close();
  }
}

/** Runs the ticks of a server while the test goes on. */
export function ticking(authorities: Pick<X509Authorities, "run">): AsyncDisposable {
  const stop = new AbortController();
  const ended = authorities.run(stop.signal).catch(() => undefined);
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended;
    },
  };
}

/** Moves the clock, lets the tick that falls due run, and waits for the next one to be set. */
export async function pass({ clock }: TestServer, seconds: number): Promise<void> {
  await eventually("the tick sleeps", () => clock.sleepers > 0);
  clock.move(seconds);
  await eventually("the tick has run", () => clock.sleepers > 0);
}
