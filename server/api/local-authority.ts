import type { AuthorityState } from "../../src/rpc/gen/spire/api/server/localauthority/v1/AuthorityState.ts";
import type { LocalAuthorityApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { AnyAuthority } from "../ca/authorities.ts";
import type { LocalAuthority } from "../ca/local-authority.ts";
import type { Slot } from "../ca/slots.ts";
import type { AuthorityKind } from "../store/store.ts";
import { failure } from "./fail.ts";
import type { HandlersOf } from "./shapes.ts";

export interface LocalAuthorityServiceParts {
  readonly localAuthority: LocalAuthority;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
}

const NAMES = { x509: "X.509", jwt: "JWT", wit: "WIT" } as const satisfies Record<AuthorityKind, string>;

/** Metadata with which a caller insists on a revocation while SVIDs under the authority are in use. */
const FORCE = "steeple-force";

type Handlers = HandlersOf<typeof LocalAuthorityApi>;

/** Prepare, activate, taint and revoke, for each kind of authority alike. */
export function localAuthorityService(parts: LocalAuthorityServiceParts): Handlers {
  const { localAuthority } = parts;
  const run = actions(parts);
  return {
    ...{ GetX509AuthorityState: run.state("x509"), PrepareX509Authority: run.prepare("x509") },
    ...{ ActivateX509Authority: run.activate("x509"), TaintX509Authority: run.taint("x509") },
    RevokeX509Authority: run.revoke("x509"),
    ...{ GetJWTAuthorityState: run.state("jwt"), PrepareJWTAuthority: run.prepare("jwt") },
    ...{ ActivateJWTAuthority: run.activate("jwt"), TaintJWTAuthority: run.taint("jwt") },
    RevokeJWTAuthority: run.revoke("jwt"),
    ...{ GetWITAuthorityState: run.state("wit"), PrepareWITAuthority: run.prepare("wit") },
    ...{ ActivateWITAuthority: run.activate("wit"), TaintWITAuthority: run.taint("wit") },
    RevokeWITAuthority: run.revoke("wit"),
    TaintX509UpstreamAuthority: unary(async ({ subject_key_id }, { auth: { log } }) => {
      const words = { refused: "provided subject key id is not valid", failed: "failed to taint upstream authority" };
      const id = await worded(log, words, () => localAuthority.taintUpstream(subject_key_id));
      log.info("X.509 upstream authority tainted successfully", { subject_key_id: id });
      await parts.caughtUp(log);
      return { upstream_authority_subject_key_id: id };
    }),
    RevokeX509UpstreamAuthority: unary(async ({ subject_key_id }, { auth: { log }, metadata }) => {
      const words = { refused: "invalid subject key ID", failed: "failed to revoke X.509 upstream authority" };
      const force = metadata.get(FORCE).includes("true");
      const id = await worded(log, words, () => localAuthority.revokeUpstream(subject_key_id, force));
      log.info("X.509 upstream authority successfully revoked", { subject_key_id: id });
      await parts.caughtUp(log);
      return { upstream_authority_subject_key_id: id };
    }),
  };
}

interface Named {
  readonly authority_id: string;
}

function actions({ localAuthority, caughtUp }: LocalAuthorityServiceParts) {
  return {
    state: (kind: AuthorityKind) =>
      unary(async (_: object, { auth: { log } }: { readonly auth: { readonly log: Log } }) => {
        const { current, next } = await worded(log, { failed: "" }, async () => localAuthority.slots(kind));
        return {
          active: stateIn(current, ["active"]),
          prepared: stateIn(next, ["prepared"]),
          old: stateIn(next, ["old", "tainted"]),
        };
      }),
    prepare: (kind: AuthorityKind) =>
      unary(async (_: object, { auth: { log } }: Authorized) => {
        const words = { failed: `failed to prepare ${NAMES[kind]} authority` };
        const authority = await worded(log, words, () => localAuthority.prepare(kind));
        await caughtUp(log);
        return { prepared_authority: stateOf(authority) };
      }),
    activate: (kind: AuthorityKind) =>
      unary(async ({ authority_id }: Named, { auth: { log } }: Authorized) => {
        const named = about(log, authority_id);
        const authority = await worded(named, { failed: "" }, () => localAuthority.activate(kind, authority_id));
        return { activated_authority: stateOf(authority) };
      }),
    taint: (kind: AuthorityKind) =>
      unary(async ({ authority_id }: Named, { auth: { log } }: Authorized) => {
        const named = about(log, authority_id);
        const words = { failed: `failed to taint ${NAMES[kind]} authority` };
        const authority = await worded(named, words, () => localAuthority.taint(kind, authority_id));
        named.info(`${NAMES[kind]} authority tainted successfully`);
        await caughtUp(log);
        return { tainted_authority: stateOf(authority) };
      }),
    revoke: (kind: AuthorityKind) =>
      unary(async ({ authority_id }: Named, { auth: { log }, metadata }: Authorized) => {
        const named = about(log, authority_id);
        const words = { refused: "invalid authority ID", failed: `failed to revoke ${NAMES[kind]} authority` };
        const force = metadata.get(FORCE).includes("true");
        await worded(named, words, () => localAuthority.revoke(kind, authority_id, force));
        named.info(`${NAMES[kind]} authority revoked successfully`);
        await caughtUp(log);
        return { revoked_authority: { authority_id } };
      }),
  };
}

interface Authorized {
  readonly auth: { readonly log: Log };
  readonly metadata: { get(key: string): readonly string[] };
}

function about(log: Log, authorityId: string): Log {
  return authorityId === "" ? log : log.child({ local_authority_id: authorityId.slice(0, 255) });
}

interface Words {
  /** Goes before what the rules about authority IDs say. */
  readonly refused?: string;
  /** Goes before what the store says; then the call fails with Internal, as SPIRE's does. */
  readonly failed: string;
}

const RULES: ReadonlySet<string> = new Set(["authority-not-found", "authority-state"]);

async function worded<T>(log: Log, { refused, failed }: Words, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (thrown) {
    const fault = Fault.from(thrown);
    if (fault.code === "authority-id" && refused !== undefined) throw failure(log, "invalid", refused, fault);
    if (failed !== "" && RULES.has(fault.code) && fault.kind !== "internal") {
      log.error(`${failed}: ${fault.message}`);
      throw new Fault("internal", `${failed}: ${fault.message}`, { code: fault.code, cause: fault });
    }
    throw failure(log, fault.kind, failed === "" || !PREFIXED.has(fault.kind) ? fault.message : failed, fault);
  }
}

/** Kinds whose message is told after what failed. The others are whole sentences of SPIRE. */
const PREFIXED: ReadonlySet<string> = new Set(["unavailable", "timeout", "exhausted", "aborted", "internal"]);

function stateIn(slot: Slot<AnyAuthority>, states: readonly string[]): AuthorityState | null {
  return slot.state !== "empty" && states.includes(slot.state) ? stateOf(slot.authority) : null;
}

function stateOf(authority: AnyAuthority): AuthorityState {
  return {
    authority_id: authority.id,
    expires_at: Math.floor(authority.notAfter.getTime() / 1000),
    ...(authority.kind === "x509" ? { upstream_authority_subject_key_id: authority.upstreamAuthorityId } : {}),
  };
}
