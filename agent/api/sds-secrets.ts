import { createHash } from "node:crypto";
import { encodePem } from "../../src/crypto/pem.ts";
import type { CertificateValidationContext } from "../../src/rpc/gen/envoy/extensions/transport_sockets/tls/v3/CertificateValidationContext.ts";
import type { Secret } from "../../src/rpc/gen/envoy/extensions/transport_sockets/tls/v3/Secret.ts";
import { envoySecret, spiffeCertValidatorConfig } from "../../src/rpc/protos.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { trustDomainId } from "../../src/spiffe/id.ts";
import type { WorkloadUpdate, X509Identity } from "../cache/update.ts";

export const SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
const VALIDATOR = "envoy.tls.cert_validator.spiffe";

/** Names that stand for a secret whose own name the client need not know. */
export interface SecretNames {
  /** The default identity. */
  readonly svid: string;
  /** The roots of the own trust domain. */
  readonly bundle: string;
  /** The roots of every trust domain that the caller may have. */
  readonly allBundles: string;
}

/** One secret, encoded. Immutable. */
export interface SecretResource {
  readonly name: string;
  /** Tells two states of the secret apart; the same for the same state in every stream. */
  readonly version: string;
  readonly resource: { readonly type_url: string; readonly value: Buffer };
}

/** The secrets that one state of a workload consists of, each made when it is first asked for. */
export class Secrets {
  readonly #update: WorkloadUpdate;
  readonly #names: SecretNames;
  readonly #made = new Map<string, SecretResource>();

  constructor(update: WorkloadUpdate, names: SecretNames) {
    this.#update = update;
    this.#names = names;
  }

  /** Names of all that the caller may have: of roots by trust domain ID, of certificates by SPIFFE ID. */
  allNames(): ReadonlySet<string> {
    const { identities } = this.#update;
    return new Set<string>([...this.#bundles().keys(), ...identities.map(({ entry }) => entry.spiffeId)]);
  }

  /**
   * Undefined for what the caller may not have. With `spiffeValidator`, roots come in a form in which Envoy checks
   * SPIFFE IDs by itself; the roots of several trust domains are told apart only then, and `internal` is thrown
   * without.
   */
  find(name: string, spiffeValidator: boolean): SecretResource | undefined {
    const key = `${spiffeValidator} ${name}`;
    const made = this.#made.get(key) ?? this.#make(name, spiffeValidator);
    // Names of nothing are the client's to make up, without end.
    if (made !== undefined) this.#made.set(key, made);
    return made;
  }

  #make(name: string, spiffeValidator: boolean): SecretResource | undefined {
    const { identities, bundle } = this.#update;
    const named = this.#bundles().get(name) ?? (name === this.#names.bundle ? bundle : undefined);
    if (named !== undefined) return this.#roots(name, [named], spiffeValidator);
    if (name === this.#names.allBundles) return this.#roots(name, [...this.#bundles().values()], spiffeValidator);
    const identity =
      identities.find(({ entry }) => entry.spiffeId === name) ??
      (name === this.#names.svid ? identities[0] : undefined);
    return identity === undefined ? undefined : certificate(name, identity);
  }

  #bundles(): ReadonlyMap<string, Bundle> {
    const { bundle, federatedBundles } = this.#update;
    return new Map([bundle, ...federatedBundles.values()].map((each) => [trustDomainId(each.trustDomain), each]));
  }

  #roots(name: string, bundles: readonly Bundle[], spiffeValidator: boolean): SecretResource {
    if (spiffeValidator) return encoded(name, { validation_context: spiffeContext(bundles) });
    const [only, ...more] = bundles;
    if (name === this.#names.allBundles || only === undefined || more.length > 0)
      throw new Fault("internal", 'unable to use "SPIFFE validator" on Envoy below 1.17', {
        code: "sds-validator-needed",
        hint: `ask for the trust domains by name instead of ${JSON.stringify(name)}, or turn the SPIFFE validator on`,
      });
    return encoded(name, { validation_context: { trusted_ca: { inline_bytes: rootsPem(only) } } });
  }
}

function spiffeContext(bundles: readonly Bundle[]): CertificateValidationContext {
  const trustDomains = bundles
    .map((bundle) => ({ name: bundle.trustDomain, trust_bundle: { inline_bytes: rootsPem(bundle) } }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const value = spiffeCertValidatorConfig().serialize({ trust_domains: trustDomains });
  return { custom_validator_config: { name: VALIDATOR, typed_config: { type_url: VALIDATOR_TYPE, value } } };
}

function certificate(name: string, { chain, privateKey }: X509Identity): SecretResource {
  const pem = Buffer.from(chain.map((der) => encodePem("CERTIFICATE", der)).join(""));
  const key = Buffer.from(encodePem("PRIVATE KEY", privateKey));
  const secret = { tls_certificate: { certificate_chain: { inline_bytes: pem }, private_key: { inline_bytes: key } } };
  return encoded(name, secret, pem);
}

/** The version is made of what is public in it. */
function encoded(name: string, secret: Secret, state?: Buffer): SecretResource {
  const value = envoySecret().serialize({ name, ...secret });
  const version = createHash("sha256")
    .update(state ?? value)
    .digest("hex")
    .slice(0, 16);
  return Object.freeze({ name, version, resource: { type_url: SECRET_TYPE, value } });
}

function rootsPem({ x509Authorities }: Bundle): Buffer {
  return Buffer.from(x509Authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join(""));
}
