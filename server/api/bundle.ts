import { bundleToProto, x509AuthoritiesFromProto } from "../../src/rpc/convert.ts";
import type { AppendBundleRequest__Output } from "../../src/rpc/gen/spire/api/server/bundle/v1/AppendBundleRequest.ts";
import type { JWTKey__Output } from "../../src/rpc/gen/spire/api/types/JWTKey.ts";
import type { BundleApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Bundle, TokenAuthority, X509Authority } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { TokenPublisher } from "../ca/publish.ts";
import type { Directory } from "../directory/authorized.ts";
import type { BundleStore } from "../store/store.ts";
import { givenTokens, untainted } from "./bundle-input.ts";
import { attempt, checked, failure } from "./fail.ts";
import { MAX_ANSWER_BYTES, messageBytes } from "./pages.ts";
import type { HandlersOf } from "./shapes.ts";

export interface BundleServiceParts {
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "bundle">;
  readonly bundles: Pick<BundleStore, "count" | "change">;
  readonly publisher: Pick<TokenPublisher, "publish">;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
}

type Served = "CountBundles" | "GetBundle" | "AppendBundle" | "PublishJWTAuthority" | "PublishWITAuthority";

/** The server's own bundle; read from memory, since agents ask for it with every sync. */
export function bundleService(parts: BundleServiceParts): Pick<HandlersOf<typeof BundleApi>, Served> {
  const { trustDomain, directory, bundles, caughtUp } = parts;
  return {
    CountBundles: unary(async (_, { auth: { log } }) => ({
      count: await attempt(log, "failed to count bundles", () => bundles.count()),
    })),
    GetBundle: unary(async ({ output_mask }, { auth: { log } }) => {
      const bundle = directory.bundle(trustDomain);
      if (bundle === undefined) throw failure(log, "not_found", "bundle not found");
      return bundleToProto(bundle, output_mask);
    }),
    AppendBundle: unary(async (request, { auth: { log } }) => {
      const added = readAuthorities(log, request);
      const bundle = await attempt(log, "failed to append bundle", () =>
        bundles.change(trustDomain, (current) => appended(current, added)),
      );
      await caughtUp(log);
      return bundleToProto(bundle, request.output_mask);
    }),
    PublishJWTAuthority: unary(async ({ jwt_authority }, { auth: { log } }) => {
      const bundle = await publish(parts, "jwt", jwt_authority, log);
      return { jwt_authorities: bundleToProto(bundle).jwt_authorities ?? [] };
    }),
    PublishWITAuthority: unary(async ({ wit_authority }, { auth: { log } }) => {
      const bundle = await publish(parts, "wit", wit_authority, log);
      return { wit_authorities: bundleToProto(bundle).wit_authorities ?? [] };
    }),
  };
}

/** Of a bundle with keys of servers below; a reader looks at a thousand. */
const MOST_KEYS = 900;

/** A key of a server below this one. Resolves when agents that ask are told of it. */
async function publish(
  { publisher, caughtUp }: BundleServiceParts,
  kind: "jwt" | "wit",
  message: JWTKey__Output | null,
  log: Log,
): Promise<Bundle> {
  const name = kind.toUpperCase();
  if (message === null) throw failure(log, "invalid", `missing ${name} authority`);
  const [authority] = checked(log, `invalid ${name} authority`, () => givenTokens([message]));
  if (authority === undefined) throw failure(log, "invalid", `missing ${name} authority`);
  const bundle = await attempt(log, `failed to publish ${name} key`, () =>
    publisher.publish(kind, authority, checkRoom),
  );
  await caughtUp(log);
  return bundle;
}

type Authorities = Pick<Bundle, "x509Authorities" | "jwtAuthorities" | "witAuthorities">;

/**
 * A server below, or whoever has its SVID, must not make the bundle one that nobody takes any more: of more keys than
 * readers look at, or larger than a message. This server's own keys are to find room at all times. Throws `exhausted`.
 */
function checkRoom(next: Authorities): void {
  const { x509Authorities, jwtAuthorities, witAuthorities } = next;
  const keys = x509Authorities.length + jwtAuthorities.length + witAuthorities.length;
  if (keys <= MOST_KEYS && messageBytes(next) <= MAX_ANSWER_BYTES / 2) return;
  throw new Fault("exhausted", "the bundle has no room for another key", { code: "bundle-too-large" });
}

/** A caller names authorities; that one is tainted is for the server to say. */
function readAuthorities(log: Log, request: AppendBundleRequest__Output): Authorities {
  const { x509_authorities, jwt_authorities, wit_authorities } = request;
  if (x509_authorities.length + jwt_authorities.length + wit_authorities.length === 0)
    throw failure(log, "invalid", "no authorities to append");
  const tokens = (kind: string, messages: typeof jwt_authorities): readonly TokenAuthority[] =>
    checked(log, `failed to convert ${kind} authority`, () => givenTokens(messages));
  return {
    jwtAuthorities: tokens("JWT", jwt_authorities),
    x509Authorities: untainted(
      checked(log, "failed to convert X.509 authority", () => x509AuthoritiesFromProto(x509_authorities)),
    ),
    witAuthorities: tokens("WIT", wit_authorities),
  };
}

const EMPTY = { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 0 };

/** What is there stays as it is. Throws `exhausted` when agents could not receive the bundle any more (T-F4). */
function appended(current: Bundle | undefined, added: Authorities): Omit<Bundle, "trustDomain" | "sequenceNumber"> {
  const held = current ?? EMPTY;
  const next = {
    ...held,
    x509Authorities: withX509(held.x509Authorities, added.x509Authorities),
    jwtAuthorities: withTokens(held.jwtAuthorities, added.jwtAuthorities),
    witAuthorities: withTokens(held.witAuthorities, added.witAuthorities),
  };
  if (messageBytes(next) <= MAX_ANSWER_BYTES) return next;
  throw new Fault("exhausted", "the bundle would be larger than a message may be", { code: "bundle-too-large" });
}

/** Each certificate once. */
function withX509(held: readonly X509Authority[], added: readonly X509Authority[]): readonly X509Authority[] {
  const byBytes = new Map<string, X509Authority>();
  for (const authority of [...held, ...added]) {
    const key = Buffer.from(authority.asn1).toString("base64");
    byBytes.set(key, byBytes.get(key) ?? authority);
  }
  return [...byBytes.values()];
}

/**
 * A key ID names one key, for as long as anybody said. Throws `already_exists` when it would name another. WIT-SVID,
 * section 6.1.
 */
function withTokens(held: readonly TokenAuthority[], added: readonly TokenAuthority[]): readonly TokenAuthority[] {
  const byId = new Map(held.map((authority) => [authority.keyId, authority]));
  for (const authority of added) {
    const known = byId.get(authority.keyId) ?? authority;
    if (Buffer.compare(known.publicKey, authority.publicKey) !== 0)
      throw new Fault("already_exists", `key ID ${JSON.stringify(authority.keyId)} is the name of another key`);
    byId.set(authority.keyId, lastsLonger(authority, known) ? { ...known, expiresAt: authority.expiresAt } : known);
  }
  return [...byId.values()];
}

/** Zero is for ever. */
function lastsLonger({ expiresAt }: TokenAuthority, than: TokenAuthority): boolean {
  return than.expiresAt !== 0 && (expiresAt === 0 || expiresAt > than.expiresAt);
}
