import { Fault } from "../../src/runtime/fault.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AuthorityKind } from "../store/store.ts";
import type { AnyAuthority, Authorities } from "./authorities.ts";
import {
  type BundleAccess,
  type NamedAuthority,
  revokeAuthority,
  TOKEN_FIELD,
  taintAuthority,
} from "./bundle-edits.ts";
import type { BundleLinks } from "./continuity.ts";
import type { Slots, TokenSigningAuthority, X509SigningAuthority } from "./slots.ts";
import type { AuthorityUsage, InUse } from "./usage.ts";

export interface LocalAuthorityOptions {
  readonly trustDomain: TrustDomain;
  readonly x509: Authorities<X509SigningAuthority>;
  readonly jwt: Authorities<TokenSigningAuthority> | undefined;
  readonly wit: Authorities<TokenSigningAuthority> | undefined;
  readonly bundles: BundleAccess;
  readonly hasUpstream: boolean;
  readonly links: Pick<BundleLinks, "withdraw">;
  readonly usage: Pick<AuthorityUsage, "of">;
  /** Whose SVIDs matter still: not those of agents and entries that are gone. */
  readonly counts: Parameters<AuthorityUsage["of"]>[1];
}

type SlotsOf = Slots<X509SigningAuthority | TokenSigningAuthority>;

/** What an administrator does to the authorities of this server, with SPIRE's rules and words. */
export class LocalAuthority {
  readonly #options: LocalAuthorityOptions;

  constructor(options: LocalAuthorityOptions) {
    this.#options = options;
  }

  /** Throws `unavailable` before an authority is active, `unimplemented` for a kind that is disabled. */
  slots(kind: AuthorityKind): SlotsOf {
    const { slots } = this.#authorities(kind);
    if (slots.current.state === "active") return slots;
    throw new Fault("unavailable", "server is initializing", { code: "server-initializing" });
  }

  async prepare(kind: AuthorityKind): Promise<AnyAuthority> {
    this.slots(kind);
    return this.#authorities(kind).prepare();
  }

  activate(kind: AuthorityKind, authorityId: string): Promise<AnyAuthority> {
    return this.#authorities(kind).activate(authorityId);
  }

  /** Agents and servers below this one replace what the authority signed as soon as they see the bundle. */
  async taint(kind: AuthorityKind, authorityId: string): Promise<AnyAuthority> {
    const authorities = this.#authorities(kind);
    if (kind === "x509") this.#mustBeRoot("local authority can't be tainted if there is an upstream authority");
    const { bundles, trustDomain, links } = this.#options;
    const authority = named(kind, authorityId);
    return authorities.taint(authorityId, async () => {
      if (kind === "x509") await links.withdraw(authorityId);
      return taintAuthority(bundles, { trustDomain, authority });
    });
  }

  /** Throws `precondition`, with what is in use, unless forced. */
  async revoke(kind: AuthorityKind, authorityId: string, force: boolean): Promise<void> {
    const { slots } = this.#authorities(kind);
    if (kind === "x509") this.#mustBeRoot("local authority can't be revoked if there is an upstream authority");
    if (authorityId === "") throw invalidId("no authority ID provided");
    if (kind === "x509") checkRevocable(slots, authorityId);
    else await this.#checkTokenRevocable(kind, slots, authorityId);
    await this.#revoke(named(kind, authorityId), force);
  }

  async taintUpstream(subjectKeyId: string): Promise<string> {
    const { bundles, trustDomain } = this.#options;
    const id = this.#upstreamId(subjectKeyId);
    await taintAuthority(bundles, { trustDomain, authority: { kind: "x509", subjectKeyId: id } });
    return id;
  }

  /** Throws `precondition`, with what is in use, unless forced. */
  async revokeUpstream(subjectKeyId: string, force: boolean): Promise<string> {
    const id = this.#upstreamId(subjectKeyId);
    const { next } = this.#options.x509.slots;
    await this.#revoke({ kind: "x509", subjectKeyId: id }, force, next.state === "empty" ? id : next.authority.id);
    return id;
  }

  async #revoke(authority: NamedAuthority, force: boolean, signer = idOf(authority)): Promise<void> {
    const { bundles, trustDomain, usage, counts } = this.#options;
    await revokeAuthority(bundles, { trustDomain, authority }, () => {
      const inUse = force ? undefined : usage.of(signer, counts);
      if (inUse !== undefined) throw stillInUse(inUse);
    });
  }

  #authorities(kind: AuthorityKind): Authorities<X509SigningAuthority> | Authorities<TokenSigningAuthority> {
    const authorities = this.#options[kind];
    if (authorities !== undefined) return authorities;
    const name = kind.toUpperCase();
    throw new Fault("unimplemented", `${name} functionality is disabled`, { code: `${kind}-disabled` });
  }

  #mustBeRoot(message: string): void {
    if (this.#options.hasUpstream) throw new Fault("precondition", message, { code: "upstream-authority" });
  }

  /** Of an upstream root that signed the old authority and not the current one. */
  #upstreamId(subjectKeyId: string): string {
    if (!this.#options.hasUpstream)
      throw new Fault("precondition", "upstream authority is not configured", { code: "no-upstream-authority" });
    const id = subjectKeyId.toLowerCase();
    const { current, next } = this.#options.x509.slots;
    if (id === "") throw invalidId("no subject key ID provided");
    if (current.state !== "empty" && current.authority.upstreamAuthorityId === id)
      throw invalidId("unable to use upstream authority singing current authority");
    if (next.state === "empty" || next.authority.upstreamAuthorityId !== id)
      throw invalidId("upstream authority didn't sign the old local authority");
    if (next.state === "prepared") throw invalidId("only upstream authorities signing an old authority can be used");
    return id;
  }

  async #checkTokenRevocable(kind: "jwt" | "wit", { current, next }: SlotsOf, keyId: string): Promise<void> {
    if (next.state !== "empty" && next.authority.id === keyId) {
      if (next.state === "prepared") throw invalidId("unable to use a prepared key");
      return;
    }
    if (current.state !== "empty" && current.authority.id === keyId) throw invalidId("unable to use current authority");
    const bundle = await this.#options.bundles.find(this.#options.trustDomain);
    if (bundle?.[TOKEN_FIELD[kind]].some((key) => key.keyId === keyId) !== true)
      throw invalidId(`no ${kind.toUpperCase()} authority found with provided authority ID`);
  }
}

function checkRevocable({ current, next }: SlotsOf, authorityId: string): void {
  if (current.state !== "empty" && current.authority.id === authorityId)
    throw invalidId("unable to use current authority");
  const isOld = (next.state === "old" || next.state === "tainted") && next.authority.id === authorityId;
  if (!isOld) throw invalidId("only Old local authority can be revoked");
}

/** A mistake of the caller about which authority is meant; the service says of what. */
function invalidId(message: string): Fault {
  return new Fault("invalid", message, { code: "authority-id" });
}

function named(kind: AuthorityKind, id: string): NamedAuthority {
  return kind === "x509" ? { kind, subjectKeyId: id } : { kind, keyId: id };
}

function idOf(authority: NamedAuthority): string {
  return authority.kind === "x509" ? authority.subjectKeyId : authority.keyId;
}

function stillInUse({ agents, downstreamServers, workloadSvids, until }: InUse): Fault {
  const parts = [
    counted(agents, "agent"),
    counted(downstreamServers, "downstream server"),
    counted(workloadSvids, "workload SVID"),
  ].filter((part) => part !== "");
  const what = parts.length === 0 ? "tokens or replacements under way" : parts.join(", ");
  const end = until.toISOString().replace(/\.\d+Z$/, "Z");
  return new Fault("precondition", `the authority is still in use by ${what}, until ${end} at the latest`, {
    code: "authority-still-in-use",
    hint: "wait until everything is replaced, or force the revocation, after which what is left no longer verifies",
  });
}

function counted(count: number, noun: string): string {
  return count === 0 ? "" : `${count} ${noun}${count === 1 ? "" : "s"}`;
}
