import type { KeyType } from "../../src/crypto/key.ts";
import type { DistinguishedName } from "../../src/crypto/name.ts";
import type { KeyManager } from "../../src/keys/keys.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { type RetryOptions, retry, type Task } from "../../src/runtime/task.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import * as events from "../events.ts";
import type { Store } from "../store/store.ts";
import { type AnyAuthority, Authorities, type AuthoritiesOptions } from "./authorities.ts";
import type { TokenKind } from "./bundle-edits.ts";
import { BundleHistory, type BundleHistoryOptions } from "./bundle-history.ts";
import { BundleLinks } from "./continuity.ts";
import { followUpstream } from "./follow-upstream.ts";
import { Issuer } from "./issue.ts";
import { selfSignedKind, tokenKind } from "./kinds.ts";
import { LocalAuthority, type LocalAuthorityOptions } from "./local-authority.ts";
import { TokenPublisher } from "./publish.ts";
import type { TokenSigningAuthority, X509SigningAuthority } from "./slots.ts";
import { TokenIssuer, type TokenSource } from "./tokens.ts";
import { Turns } from "./turns.ts";
import { type UpstreamAuthority, upstreamKind } from "./upstream.ts";
import { AuthorityUsage } from "./usage.ts";

/** Of the server's configuration, what signing needs. A kind of token without a key type is disabled. */
export interface SigningConfig {
  readonly trustDomain: TrustDomain;
  readonly caKeyType: KeyType;
  readonly caTtlSeconds: number;
  readonly caSubject: DistinguishedName;
  readonly jwtKeyType: KeyType | undefined;
  readonly jwtIssuer: string;
  readonly witKeyType: KeyType | undefined;
  readonly witIssuer: string;
  readonly defaultX509SvidTtlSeconds: number;
  readonly defaultJwtSvidTtlSeconds: number;
  readonly agentTtlSeconds: number;
}

export interface SigningOptions {
  readonly config: SigningConfig;
  readonly keys: Pick<KeyManager, "find" | "generate">;
  readonly store: Pick<Store, "bundles" | "authorities" | "links">;
  readonly upstream: UpstreamAuthority | undefined;
  readonly counts: LocalAuthorityOptions["counts"];
  readonly replaced: BundleHistoryOptions["replaced"];
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** The signing authorities of this server, each kind in its own pair of slots. Tokens may be disabled. */
export interface SigningAuthorities {
  readonly x509: Authorities<X509SigningAuthority>;
  readonly jwt: Authorities<TokenSigningAuthority> | undefined;
  readonly wit: Authorities<TokenSigningAuthority> | undefined;
}

/** All that signs, and what it signs with. */
export interface Signing {
  readonly authorities: SigningAuthorities;
  readonly issuer: Issuer;
  readonly tokenIssuer: TokenIssuer;
  readonly publisher: TokenPublisher;
  readonly usage: AuthorityUsage;
  readonly localAuthority: LocalAuthority;
  readonly links: BundleLinks;
  /** Rotation. */
  readonly tasks: readonly Task[];
}

/** SPIRE's lifetime of WIT-SVIDs whose entry names none. */
const WIT_TTL_SECONDS = 3600;

/** Resolves when an authority of each kind may sign. Throws what hinders it. */
export async function openSigning(options: SigningOptions): Promise<Signing> {
  const { config, store, clock, log, upstream } = options;
  const { trustDomain } = config;
  const { bundles } = store;
  const publisher = new TokenPublisher({ trustDomain, bundles, upstream, log });
  const links = new BundleLinks(store.links, clock);
  const authorities = await openAuthorities(options, publisher, links);
  const turns = new Turns(clock);
  const signed = (what: Parameters<typeof events.signed>[1]): void => events.signed(options.log, what);
  const issuer = new Issuer({
    trustDomain,
    authorities: authorities.x509,
    defaultTtlSeconds: config.defaultX509SvidTtlSeconds,
    agentTtlSeconds: config.agentTtlSeconds,
    caTtlSeconds: config.caTtlSeconds,
    turns,
    signed,
    clock,
  });
  const tokenIssuer = new TokenIssuer({
    trustDomain,
    jwt: sourceOf(authorities.jwt, config.jwtIssuer, config.defaultJwtSvidTtlSeconds),
    wit: sourceOf(authorities.wit, config.witIssuer, WIT_TTL_SECONDS),
    turns,
    signed,
    clock,
  });
  const all = [authorities.x509, authorities.jwt, authorities.wit].filter((kind) => kind !== undefined);
  const usage = new AuthorityUsage(clock);
  const { counts } = options;
  const local = { ...authorities, trustDomain, bundles, hasUpstream: upstream !== undefined, links, usage, counts };
  const localAuthority = new LocalAuthority(local);
  const tasks: Task[] = all.map((kind) => (stop) => kind.run(stop));
  if (upstream !== undefined) {
    const followed = { trustDomain, upstream, x509: authorities.x509, bundles, clock, log };
    tasks.push((stop) => followUpstream(followed, stop));
  }
  return { authorities, issuer, tokenIssuer, publisher, usage, localAuthority, links, tasks };
}

async function openAuthorities(
  { config, keys, store, clock, log, upstream, replaced, signal }: SigningOptions,
  publisher: TokenPublisher,
  links: BundleLinks,
): Promise<SigningAuthorities> {
  const { trustDomain, caTtlSeconds: ttlSeconds, caKeyType: keyType, caSubject: subject } = config;
  const { bundles, authorities: journal } = store;
  const history = new BundleHistory({ bundles, trustDomain, replaced });
  const common = { trustDomain, history, keys, ttlSeconds, bundles, journal, clock, log };
  const open = <A extends AnyAuthority>(options: AuthoritiesOptions<A>): Promise<Authorities<A>> =>
    retry(clock, waiting(log, options.type.words.noun), () => Authorities.open(options), signal);
  const openToken = async (kind: TokenKind): Promise<Authorities<TokenSigningAuthority> | undefined> => {
    const tokenKeyType = kind === "jwt" ? config.jwtKeyType : config.witKeyType;
    if (tokenKeyType === undefined) return undefined;
    return open({ ...common, keyType: tokenKeyType, type: tokenKind(kind, { ...common, publisher }) });
  };
  const type =
    upstream === undefined
      ? selfSignedKind({ ...common, subject, links })
      : upstreamKind({ ...common, subject, upstream });
  const x509 = await open({ ...common, keyType, type });
  return { x509, jwt: await openToken("jwt"), wit: await openToken("wit") };
}

/** A key manager or an upstream authority that is away is waited for: nothing could be signed without it. */
function waiting(log: Log, noun: string): RetryOptions {
  return {
    firstMs: 1000,
    maxMs: 10_000,
    retryable: (error) => isFault(error, "unavailable") || isFault(error, "timeout"),
    onRetry: (error, delayMs) => {
      const delay = `${Math.round(delayMs)} ms`;
      log.error(`No ${noun} can be had yet; trying again`, { error: Fault.from(error), retry_in: delay });
    },
  };
}

function sourceOf(
  authorities: SigningAuthorities["jwt"],
  issuer: string,
  defaultTtlSeconds: number,
): TokenSource | undefined {
  return authorities === undefined ? undefined : { authorities, issuer, defaultTtlSeconds };
}
