import { dialUnix } from "../../src/rpc/dial.ts";
import type { Node } from "../../src/rpc/gen/envoy/config/core/v3/Node.ts";
import type { Secret__Output } from "../../src/rpc/gen/envoy/extensions/transport_sockets/tls/v3/Secret.ts";
import type { DeltaDiscoveryRequest } from "../../src/rpc/gen/envoy/service/discovery/v3/DeltaDiscoveryRequest.ts";
import type { DeltaDiscoveryResponse__Output } from "../../src/rpc/gen/envoy/service/discovery/v3/DeltaDiscoveryResponse.ts";
import type { DiscoveryRequest } from "../../src/rpc/gen/envoy/service/discovery/v3/DiscoveryRequest.ts";
import type { DiscoveryResponse__Output } from "../../src/rpc/gen/envoy/service/discovery/v3/DiscoveryResponse.ts";
import { envoySecret, SecretDiscoveryApi, spiffeCertValidatorConfig } from "../../src/rpc/protos.ts";
import type { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import { eventually } from "./eventually.ts";

export const SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/** One stream of SDS: requests as the test says, responses and the end as they come. */
class SdsStream<Q, R> implements Disposable {
  readonly responses: R[] = [];
  readonly ended: Promise<Fault | undefined>;
  readonly #requests = new Feed<{ readonly said: readonly Q[]; readonly isAll: boolean }>({ said: [], isAll: false });
  readonly #stop = new AbortController();

  constructor(open: (requests: AsyncIterable<Q>, options: { readonly signal: AbortSignal }) => AsyncIterable<R>) {
    this.ended = this.#run(open);
  }

  send(request: Q): void {
    this.#requests.set({ said: [...this.#requests.value.said, request], isAll: false });
  }

  /** Ends the requests, not the stream. */
  end(): void {
    this.#requests.set({ ...this.#requests.value, isAll: true });
  }

  /** Waits for this many responses, and gives the last of them. */
  response(count: number): Promise<R> {
    return eventually(`response ${count}`, () => this.responses[count - 1]);
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
  }

  async #run(
    open: (requests: AsyncIterable<Q>, options: { readonly signal: AbortSignal }) => AsyncIterable<R>,
  ): Promise<Fault | undefined> {
    try {
      for await (const response of open(this.#sending(), { signal: this.#stop.signal })) this.responses.push(response);
      return undefined;
    } catch (error) {
      return error as Fault;
    }
  }

  async *#sending(): AsyncGenerator<Q, void, undefined> {
    let sent = 0;
    for await (const { said, isAll } of this.#requests.watch(this.#stop.signal)) {
      yield* said.slice(sent);
      sent = said.length;
      if (isAll) return;
    }
  }
}

/** A proxy at the endpoint, without the security header, as Envoy is. */
export class SdsClient implements Disposable {
  readonly #channel;

  constructor(path: string) {
    this.#channel = dialUnix(path);
  }

  world(): SdsStream<DiscoveryRequest, DiscoveryResponse__Output> {
    return new SdsStream((requests, options) => this.#api.StreamSecrets(requests, options));
  }

  delta(): SdsStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse__Output> {
    return new SdsStream((requests, options) => this.#api.DeltaSecrets(requests, options));
  }

  fetch(names: readonly string[], node?: Node): Promise<DiscoveryResponse__Output> {
    return this.#api.FetchSecrets({ type_url: SECRET_TYPE, resource_names: [...names], ...(node && { node }) });
  }

  [Symbol.dispose](): void {
    this.#channel[Symbol.dispose]();
  }

  get #api() {
    return this.#channel.client(SecretDiscoveryApi);
  }
}

/** What a proxy would make of a secret. */
export interface ReadSecret {
  readonly chain?: string;
  readonly key?: string;
  readonly roots?: string;
  /** Roots by trust domain, for the SPIFFE validator. */
  readonly domains?: readonly (readonly [string, string])[];
}

/** The secrets of a response by name. */
export function secretsIn(resources: readonly { readonly type_url: string; readonly value: Buffer }[]) {
  return Object.fromEntries(
    resources.map(({ type_url, value }) => {
      if (type_url !== SECRET_TYPE) throw new Error(`a resource of type ${type_url}`);
      const secret = envoySecret().deserialize(value);
      return [secret.name, readSecret(secret)] as const;
    }),
  );
}

function readSecret({ tls_certificate: certificate, validation_context: context }: Secret__Output): ReadSecret {
  const inline = (source: { readonly inline_bytes?: Buffer } | null | undefined) => source?.inline_bytes?.toString();
  if (certificate)
    return defined({ chain: inline(certificate.certificate_chain), key: inline(certificate.private_key) });
  const validator = context?.custom_validator_config;
  if (!validator) return defined({ roots: inline(context?.trusted_ca) });
  const { name, typed_config } = validator;
  const { type_url, value } = typed_config as { type_url: string; value: Buffer };
  if (
    name !== "envoy.tls.cert_validator.spiffe" ||
    !type_url.endsWith("/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig")
  )
    throw new Error(`validator ${name} ${type_url}`);
  const config = spiffeCertValidatorConfig().deserialize(value);
  return { domains: config.trust_domains.map((domain) => [domain.name, inline(domain.trust_bundle) ?? ""]) };
}

function defined(fields: Record<string, string | undefined>): ReadSecret {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}
