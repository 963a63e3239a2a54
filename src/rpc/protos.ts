import type { MethodDefinition } from "@grpc/proto-loader";
import { type MessageCodec, messageCodec, methodsOf, type WireMethod } from "./codecs.ts";
import type { Secret, Secret__Output } from "./gen/envoy/extensions/transport_sockets/tls/v3/Secret.ts";
import type {
  SPIFFECertValidatorConfig,
  SPIFFECertValidatorConfig__Output,
} from "./gen/envoy/extensions/transport_sockets/tls/v3/SPIFFECertValidatorConfig.ts";
import type {
  SecretDiscoveryServiceDefinition,
  SecretDiscoveryServiceHandlers,
} from "./gen/envoy/service/secret/v3/SecretDiscoveryService.ts";
import type { ErrorInfo, ErrorInfo__Output } from "./gen/google/rpc/ErrorInfo.ts";
import type { RetryInfo, RetryInfo__Output } from "./gen/google/rpc/RetryInfo.ts";
import type { Status, Status__Output } from "./gen/google/rpc/Status.ts";
import type { HealthDefinition, HealthHandlers } from "./gen/grpc/health/v1/Health.ts";
import type * as v1 from "./gen/grpc/reflection/v1/ServerReflection.ts";
import type * as v1alpha from "./gen/grpc/reflection/v1alpha/ServerReflection.ts";
import type { SpiffeWorkloadAPIDefinition, SpiffeWorkloadAPIHandlers } from "./gen/SpiffeWorkloadAPI.ts";
import type { APIDefinition, APIHandlers } from "./gen/spiffe/broker/API.ts";
import type {
  KubernetesObjectReference,
  KubernetesObjectReference__Output,
} from "./gen/spiffe/broker/KubernetesObjectReference.ts";
import type { WorkloadPIDReference, WorkloadPIDReference__Output } from "./gen/spiffe/broker/WorkloadPIDReference.ts";
import type * as agentDebug from "./gen/spire/agent/debug/v1/Debug.ts";
import type {
  DelegatedIdentityDefinition,
  DelegatedIdentityHandlers,
} from "./gen/spire/api/agent/delegatedidentity/v1/DelegatedIdentity.ts";
import type * as agentLogger from "./gen/spire/api/agent/logger/v1/Logger.ts";
import type { AgentDefinition, AgentHandlers } from "./gen/spire/api/server/agent/v1/Agent.ts";
import type { BundleDefinition, BundleHandlers } from "./gen/spire/api/server/bundle/v1/Bundle.ts";
import type * as serverDebug from "./gen/spire/api/server/debug/v1/Debug.ts";
import type { EntryDefinition, EntryHandlers } from "./gen/spire/api/server/entry/v1/Entry.ts";
import type {
  LocalAuthorityDefinition,
  LocalAuthorityHandlers,
} from "./gen/spire/api/server/localauthority/v1/LocalAuthority.ts";
import type * as serverLogger from "./gen/spire/api/server/logger/v1/Logger.ts";
import type { SVIDDefinition, SVIDHandlers } from "./gen/spire/api/server/svid/v1/SVID.ts";
import type { TrustDomainDefinition, TrustDomainHandlers } from "./gen/spire/api/server/trustdomain/v1/TrustDomain.ts";
import type {
  PermissionDeniedDetails,
  PermissionDeniedDetails__Output,
} from "./gen/spire/api/types/PermissionDeniedDetails.ts";
import type { AttestationDefinition, AttestationHandlers } from "./gen/steeple/api/agent/attestation/v1/Attestation.ts";
import type * as delegatedParts from "./gen/steeple/api/agent/delegatedidentity/v1/DelegatedIdentity.ts";
import type { ContinuityDefinition, ContinuityHandlers } from "./gen/steeple/api/server/continuity/v1/Continuity.ts";
import type { PushDefinition, PushHandlers } from "./gen/steeple/api/server/push/v1/Push.ts";
import type { QuarantineDefinition, QuarantineHandlers } from "./gen/steeple/api/server/quarantine/v1/Quarantine.ts";
import { once } from "./once.ts";

/** The `send` types are what a sender may leave incomplete; the others are what a receiver gets, with every default. */
export interface MethodTypes {
  readonly sendRequest: object;
  readonly request: object;
  readonly sendResponse: object;
  readonly response: object;
  readonly kind: MethodKind;
}

export type MethodKind = "unary" | "serverStream" | "clientStream" | "bidi";

/** A service of /proto. */
export interface Service<M extends object> {
  /** Full name, such as `spire.api.server.entry.v1.Entry`. */
  readonly name: string;
  /** Below `protoRoot`. */
  readonly file: string;
  /** Its methods by name; the file is read at the first call. */
  methods(): Readonly<Record<string, WireMethod>>;
  /** Never present: carries the types. */
  readonly types?: M;
}

/** Names of all methods, so that a `Record<MethodsOf<typeof EntryApi>, Rule>` lacks none. */
export type MethodsOf<S> = S extends Service<infer M> ? Extract<keyof M, string> : never;

/** Without the index signature that generated interfaces inherit. */
type Named<T> = { [K in keyof T as string extends K ? never : number extends K ? never : K]: T[K] };

/** Joins a generated definition (message types) with its handlers (streaming). */
type Methods<D, H> = {
  readonly [K in keyof Named<D>]: D[K] extends MethodDefinition<infer Q, infer R, infer QO, infer RO>
    ? {
        readonly sendRequest: Q;
        readonly request: QO;
        readonly sendResponse: R;
        readonly response: RO;
        readonly kind: KindOf<H[K & keyof H]>;
      }
    : never;
};

/** A second parameter is the callback of a single response; `read` means a stream of requests. */
type KindOf<H> = H extends (...args: infer A) => void
  ? A extends readonly [infer Call, unknown]
    ? Call extends { read(): unknown }
      ? "clientStream"
      : "unary"
    : A extends readonly [infer Call]
      ? Call extends { read(): unknown }
        ? "bidi"
        : "serverStream"
      : never
  : never;

const server = (name: string) => `spire/api/server/${name}/v1/${name}.proto`;

export const AgentApi = define<Methods<AgentDefinition, AgentHandlers>>(
  "spire.api.server.agent.v1.Agent",
  server("agent"),
);
export const BundleApi = define<Methods<BundleDefinition, BundleHandlers>>(
  "spire.api.server.bundle.v1.Bundle",
  server("bundle"),
);
export const EntryApi = define<Methods<EntryDefinition, EntryHandlers>>(
  "spire.api.server.entry.v1.Entry",
  server("entry"),
);
export const SvidApi = define<Methods<SVIDDefinition, SVIDHandlers>>("spire.api.server.svid.v1.SVID", server("svid"));
export const TrustDomainApi = define<Methods<TrustDomainDefinition, TrustDomainHandlers>>(
  "spire.api.server.trustdomain.v1.TrustDomain",
  server("trustdomain"),
);
export const LocalAuthorityApi = define<Methods<LocalAuthorityDefinition, LocalAuthorityHandlers>>(
  "spire.api.server.localauthority.v1.LocalAuthority",
  server("localauthority"),
);
export const ServerLoggerApi = define<Methods<serverLogger.LoggerDefinition, serverLogger.LoggerHandlers>>(
  "spire.api.server.logger.v1.Logger",
  server("logger"),
);
export const ServerDebugApi = define<Methods<serverDebug.DebugDefinition, serverDebug.DebugHandlers>>(
  "spire.api.server.debug.v1.Debug",
  server("debug"),
);
export const ContinuityApi = define<Methods<ContinuityDefinition, ContinuityHandlers>>(
  "steeple.api.server.continuity.v1.Continuity",
  "steeple/api/server/continuity/v1/continuity.proto",
);
export const PushApi = define<Methods<PushDefinition, PushHandlers>>(
  "steeple.api.server.push.v1.Push",
  "steeple/api/server/push/v1/push.proto",
);
export const QuarantineApi = define<Methods<QuarantineDefinition, QuarantineHandlers>>(
  "steeple.api.server.quarantine.v1.Quarantine",
  "steeple/api/server/quarantine/v1/quarantine.proto",
);
export const AttestationApi = define<Methods<AttestationDefinition, AttestationHandlers>>(
  "steeple.api.agent.attestation.v1.Attestation",
  "steeple/api/agent/attestation/v1/attestation.proto",
);
export const WorkloadApi = define<Methods<SpiffeWorkloadAPIDefinition, SpiffeWorkloadAPIHandlers>>(
  "SpiffeWorkloadAPI",
  "spiffe/workloadapi.proto",
);
export const SecretDiscoveryApi = define<Methods<SecretDiscoveryServiceDefinition, SecretDiscoveryServiceHandlers>>(
  "envoy.service.secret.v3.SecretDiscoveryService",
  "envoy/service/secret/v3/sds.proto",
);
export const BrokerApi = define<Methods<APIDefinition, APIHandlers>>("spiffe.broker.API", "spiffe/brokerapi.proto");
export const DelegatedIdentityApi = define<Methods<DelegatedIdentityDefinition, DelegatedIdentityHandlers>>(
  "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
  "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto",
);
export const DelegatedIdentityPartsApi = define<
  Methods<delegatedParts.DelegatedIdentityDefinition, delegatedParts.DelegatedIdentityHandlers>
>(
  "steeple.api.agent.delegatedidentity.v1.DelegatedIdentity",
  "steeple/api/agent/delegatedidentity/v1/delegatedidentity.proto",
);
export const AgentLoggerApi = define<Methods<agentLogger.LoggerDefinition, agentLogger.LoggerHandlers>>(
  "spire.api.agent.logger.v1.Logger",
  "spire/api/agent/logger/v1/logger.proto",
);
export const AgentDebugApi = define<Methods<agentDebug.DebugDefinition, agentDebug.DebugHandlers>>(
  "spire.agent.debug.v1.Debug",
  "spire/api/agent/debug/v1/debug.proto",
);
export const HealthApi = define<Methods<HealthDefinition, HealthHandlers>>(
  "grpc.health.v1.Health",
  "grpc/health/v1/health.proto",
);
export const ReflectionApi = define<Methods<v1.ServerReflectionDefinition, v1.ServerReflectionHandlers>>(
  "grpc.reflection.v1.ServerReflection",
  "grpc/reflection/v1/reflection.proto",
);
export const ReflectionAlphaApi = define<Methods<v1alpha.ServerReflectionDefinition, v1alpha.ServerReflectionHandlers>>(
  "grpc.reflection.v1alpha.ServerReflection",
  "grpc/reflection/v1alpha/reflection.proto",
);

export const richStatus = message<Status, Status__Output>("google.rpc.Status", "google/rpc/status.proto");
export const errorInfo = message<ErrorInfo, ErrorInfo__Output>(
  "google.rpc.ErrorInfo",
  "google/rpc/error_details.proto",
);
export const retryInfo = message<RetryInfo, RetryInfo__Output>(
  "google.rpc.RetryInfo",
  "google/rpc/error_details.proto",
);
export const permissionDenied = message<PermissionDeniedDetails, PermissionDeniedDetails__Output>(
  "spire.api.types.PermissionDeniedDetails",
  "spire/api/types/status.proto",
);

const envoyTls = "envoy.extensions.transport_sockets.tls.v3";
export const envoySecret = message<Secret, Secret__Output>(
  `${envoyTls}.Secret`,
  "envoy/extensions/transport_sockets/tls/v3/secret.proto",
);
export const spiffeCertValidatorConfig = message<SPIFFECertValidatorConfig, SPIFFECertValidatorConfig__Output>(
  `${envoyTls}.SPIFFECertValidatorConfig`,
  "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
);

export const workloadPidReference = message<WorkloadPIDReference, WorkloadPIDReference__Output>(
  "spiffe.broker.WorkloadPIDReference",
  "spiffe/brokerapi.proto",
);
export const kubernetesObjectReference = message<KubernetesObjectReference, KubernetesObjectReference__Output>(
  "spiffe.broker.KubernetesObjectReference",
  "spiffe/brokerapi.proto",
);

function define<M extends object>(name: string, file: string): Service<M> {
  return { name, file, methods: once(() => methodsOf(name, file)) };
}

/** Encoder and decoder of one message, read at the first call. */
function message<I, O>(name: string, file: string): () => MessageCodec<I, O> {
  return once(() => messageCodec(name, file) as MessageCodec<I, O>);
}
