import type { AgentPathTemplate } from "../../src/evidence/agent-path.ts";
import { readAuthorities } from "../../src/evidence/ssh-key.ts";
import {
  makeChallenge,
  parseSshCertificate,
  readEvidence,
  SSHPOP,
  sshFingerprint,
  verifyResponse,
  verifySshCertificate,
} from "../../src/evidence/sshpop.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Reloaded } from "../../src/runtime/reloaded.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";

export interface SshPopConfig {
  /** Public keys as in authorized_keys. */
  readonly certAuthorities: readonly string[];
  readonly certAuthoritiesPath: string | undefined;
  readonly canonicalDomain: string | undefined;
  readonly agentPath: AgentPathTemplate;
}

export interface SshPopOptions extends SshPopConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly log: Log;
}

/** The node shows its host's SSH certificate and that it holds the key. */
export class SshPopAttestor implements NodeAttestor {
  readonly type = SSHPOP;
  readonly ownPath = true;
  readonly #options: SshPopOptions;
  readonly #authorities: Reloaded<readonly Uint8Array[]>;

  private constructor(options: SshPopOptions, authorities: Reloaded<readonly Uint8Array[]>) {
    this.#options = options;
    this.#authorities = authorities;
  }

  /** Throws `invalid` when an authority can't be read. */
  static async open(options: SshPopOptions): Promise<SshPopAttestor> {
    const { certAuthorities, certAuthoritiesPath: path, log } = options;
    const authorities = new Reloaded({
      paths: path === undefined ? [] : [path],
      read: (contents) => [...certAuthorities, ...contents].flatMap(readAuthorities),
      rejected: (error) => log.warn("Changed SSH authorities cannot be used; the earlier ones stay in use", { error }),
    });
    await authorities.value();
    return new SshPopAttestor(options, authorities);
  }

  async attest(payload: Uint8Array, challenge: Challenge): Promise<NodeClaim> {
    const { trustDomain, agentPath, canonicalDomain, clock } = this.#options;
    const certificate = parseSshCertificate(readEvidence(payload));
    const authorities = await this.#authorities.value();
    const principal = verifySshCertificate(certificate, { authorities, at: clock.now() });
    const hostname = withoutDomain(principal, canonicalDomain);
    const asked = makeChallenge();
    verifyResponse(certificate.key, asked, await challenge(asked.message));
    const id = agentPath.render(trustDomain, {
      fields: {
        PluginName: SSHPOP,
        Fingerprint: sshFingerprint(certificate),
        Hostname: hostname,
        ValidPrincipals: certificate.principals,
        KeyId: certificate.keyId,
        Serial: certificate.serial.toString(),
      },
    });
    return { id, selectors: [], canReattest: true };
  }
}

function withoutDomain(principal: string, domain: string | undefined): string {
  if (domain === undefined) return principal;
  const suffix = `.${domain}`;
  if (principal.endsWith(suffix) && principal.length > suffix.length) return principal.slice(0, -suffix.length);
  throw new Fault("denied", `failed to decanonicalize hostname: cert principal is not in domain "${suffix}"`, {
    code: "sshpop-refused",
  });
}
