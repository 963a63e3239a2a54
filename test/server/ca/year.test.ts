import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openSigning, type Signing } from "../../../server/ca/signing.ts";
import { tidy } from "../../../server/janitor.ts";
import type { Store } from "../../../server/store/store.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { generateKey, type LocalSigner } from "../../../src/crypto/key.ts";
import { openDiskKeys } from "../../../src/keys/disk.ts";
import type { KeyManager } from "../../../src/keys/keys.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { validateJwtSvid } from "../../../src/spiffe/jwt-svid.ts";
import { validateWitSvid } from "../../../src/spiffe/wit-svid.ts";
import { validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { FakeClock } from "../../support/clock.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { id, makeEntry, openTestStore, TD, type TestStore } from "./support.ts";

const HOUR_MS = 3_600_000;
const STEP_MS = 24 * HOUR_MS;
const STEPS = 365;
const CA_TTL = 10 * 24 * 3600;
/** As long as the lifetime of the authorities guarantees. */
const SVID_TTL = CA_TTL / 6;

let opened: TestStore;
beforeAll(async () => {
  opened = await openTestStore();
});
afterAll(() => opened[Symbol.asyncDispose]());

/** The same numbers with every run. */
function chance(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

interface Held {
  readonly what: string;
  readonly ends: number;
  readonly verify: (bundle: Bundle, at: Date) => Promise<unknown>;
}

/** A server that loses its power now and then, in the middle of whatever it does. */
class Server {
  signing!: Signing;
  crashes = 0;
  readonly #name: string;
  readonly #clock: FakeClock;
  readonly #random: () => number;
  #fuse = Number.POSITIVE_INFINITY;

  constructor(name: string, clock: FakeClock, random: () => number) {
    this.#name = name;
    this.#clock = clock;
    this.#random = random;
  }

  /** Everything due, with a crash after at most three steps to the outside when `mayCrash`; then it starts again. */
  async live(mayCrash: boolean): Promise<void> {
    if (mayCrash) this.#fuse = 1 + Math.floor(this.#random() * 6);
    const { x509, jwt, wit } = this.signing.authorities;
    try {
      for (const kind of [x509, jwt, wit]) await kind?.catchUp();
    } catch (error) {
      expect(String(error)).toContain("power cut");
    }
    if (this.#fuse <= 0) {
      this.crashes += 1;
      await this.start();
    }
    this.#fuse = Number.POSITIVE_INFINITY;
  }

  async start(): Promise<void> {
    this.#fuse = Number.POSITIVE_INFINITY;
    const keys = await openDiskKeys(join(opened.folder, this.#name));
    const { bundles, authorities, links } = opened.store;
    const store = {
      bundles: this.#fragile(bundles, ["change"]),
      authorities: this.#fragile(authorities, ["save"]),
      links: this.#fragile(links, ["save"]),
    } as Pick<Store, "bundles" | "authorities" | "links">;
    this.signing = await openSigning({
      config: {
        trustDomain: TD,
        ...{ caKeyType: "ec-p256", caTtlSeconds: CA_TTL, caSubject: {}, agentTtlSeconds: SVID_TTL },
        ...{ jwtKeyType: "ec-p256", jwtIssuer: "", witKeyType: "ec-p256", witIssuer: "" },
        ...{ defaultX509SvidTtlSeconds: SVID_TTL, defaultJwtSvidTtlSeconds: SVID_TTL },
      },
      keys: this.#fragile<KeyManager>(keys, ["generate"]),
      store,
      ...{ upstream: undefined, signal: new AbortController().signal },
      counts: () => true,
      replaced: async () => 0,
      clock: this.#clock,
      log: new RecordingLog(),
    });
  }

  /** The real thing; once the fuse has burnt, some calls fail before they are made, and some after. */
  #fragile<T extends object>(real: T, methods: readonly (keyof T)[]): T {
    return new Proxy(real, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function") return value;
        if (!methods.includes(name as keyof T)) return value.bind(target);
        return async (...args: unknown[]) => {
          if (this.#burns()) throw new Error("power cut");
          const result: unknown = await value.apply(target, args);
          if (this.#burns()) throw new Error("power cut");
          return result;
        };
      },
    });
  }

  #burns(): boolean {
    this.#fuse -= 1;
    return this.#fuse <= 0;
  }

  async sign(key: LocalSigner): Promise<readonly Held[]> {
    const { issuer, tokenIssuer } = this.signing;
    const entry = makeEntry({ x509SvidTtl: SVID_TTL });
    const { publicKey } = key;
    const x509 = await issuer.issueWorkload({ entry, publicKey });
    const chain = x509.chain.map(parseCertificate);
    const jwt = await tokenIssuer.issueJwt({ id: id("/web"), audience: ["a"], ttlSeconds: SVID_TTL, withJti: false });
    const bound = { id: id("/web"), publicKey, algorithm: "ES256", ttlSeconds: SVID_TTL } as const;
    const wit = await tokenIssuer.issueWit(bound);
    expect([+x509.notAfter, +jwt.expiresAt, +wit.expiresAt].every((end) => end > +this.#clock.now())).toBe(true);
    return [
      {
        what: `X509-SVID of ${this.#name}`,
        ends: +x509.notAfter,
        verify: async ({ x509Authorities }, at) => {
          const roots = x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
          return validateX509Svid({ chain, authorities: () => roots, at });
        },
      },
      {
        what: `JWT-SVID of ${this.#name}`,
        ends: +jwt.expiresAt,
        verify: ({ jwtAuthorities }, at) =>
          validateJwtSvid({ token: jwt.token, audience: ["a"], authorities: () => jwtAuthorities, at }),
      },
      {
        what: `WIT-SVID of ${this.#name}`,
        ends: +wit.expiresAt,
        verify: ({ witAuthorities }, at) =>
          validateWitSvid({ token: wit.token, authorities: () => witAuthorities, at }),
      },
    ];
  }
}

test("T-F7 TDB-07 TDB-08 X509-30 a year of two servers with crashes at random points: every SVID verifies until its end, against the bundle of its moment and the one that agents held when it was signed", async () => {
  const clock = new FakeClock("2030-01-01T00:00:00Z");
  const random = chance(7);
  const servers = [new Server("one.json", clock, random), new Server("two.json", clock, random)];
  const bundleNow = async (): Promise<Bundle> => (await opened.store.bundles.find(TD)) as Bundle;
  for (const server of servers) await server.start();
  const key = await generateKey("ec-p256");
  let held: Held[] = [];
  let before = await bundleNow();
  let sequence = before.sequenceNumber;
  const signers = { x509: new Set<string>(), jwt: new Set<string>(), wit: new Set<string>() };
  for (let step = 0; step < STEPS; step += 1) {
    clock.step(STEP_MS);
    const lag = await bundleNow();
    for (const server of servers) await server.live(random() < 0.35);
    if (random() < 0.05) await servers[0]?.start();
    if (step % 2 === 0)
      await tidy({ store: opened.store, trustDomain: TD, clock, log: new RecordingLog() }, async () => true);
    const bundle = await bundleNow();
    const fresh = (await Promise.all(servers.map((server) => server.sign(key)))).flat();
    const at = clock.now();
    for (const { what, verify } of fresh)
      await verify(lag, at).catch((error: unknown) => expect.fail(`step ${step}: agents refuse ${what}: ${error}`));
    held = [...held.filter(({ ends }) => ends >= at.getTime()), ...fresh];
    for (const { what, verify } of held)
      await verify(bundle, at).catch((error: unknown) => expect.fail(`step ${step}: ${what}: ${error}`));
    const changed = contentOf(bundle) !== contentOf(before);
    expect(bundle.sequenceNumber > sequence).toBe(changed);
    for (const { signing } of servers)
      for (const kind of ["x509", "jwt", "wit"] as const)
        signers[kind].add(signing.authorities[kind]?.signing().id ?? "");
    [before, sequence] = [bundle, bundle.sequenceNumber];
  }
  expect(servers.every(({ crashes }) => crashes > 5)).toBe(true);
  for (const ids of Object.values(signers)) expect(ids.size).toBeGreaterThan(60);
  // What ended long ago has left: each server has three authorities of a kind at most, and a few from crashes.
  expect(before.x509Authorities.length).toBeLessThan(16);
  expect(before.jwtAuthorities.length).toBeLessThan(16);
}, 300_000);

function contentOf({ sequenceNumber: _, ...content }: Bundle): string {
  return JSON.stringify(content);
}
