import type { Call } from "../../src/rpc/caller.ts";
import { healthService } from "../../src/rpc/health.ts";
import { BrokerApi } from "../../src/rpc/protos.ts";
import { reflectionServices } from "../../src/rpc/reflection.ts";
import type { ServiceImplementation } from "../../src/rpc/service.ts";
import { type AdminApiOptions, debugApi, loggerApi } from "./admin.ts";
import { type AttestationApiOptions, attestationApi } from "./attestations.ts";
import { type BrokerApiOptions, brokerApi } from "./broker.ts";
import { type BrokerCaller, type BrokerRule, brokerAdmission } from "./broker-caller.ts";
import { admitAdministrator, admitLocalCaller, type LocalCaller } from "./caller.ts";
import type { DelegatedIdentityOptions } from "./delegate.ts";
import { delegatedIdentityApi } from "./delegated-identity.ts";
import { delegatedPartsApi } from "./delegated-parts.ts";
import { type SdsApiOptions, sdsApi } from "./sds.ts";
import { sharedProbe } from "./shared-probe.ts";
import { type WorkloadApiOptions, workloadApi } from "./workload.ts";

export interface WorkloadServicesOptions extends WorkloadApiOptions, Pick<SdsApiOptions, "sds"> {
  readonly disableWorkloadApi: boolean;
  readonly disableSdsApi: boolean;
  /** Resolves when the agent's own Workload API answers; for `grpc.health.v1`. */
  readonly probe: (signal: AbortSignal) => Promise<void>;
}

/** What the agent serves on a socket, and who is let in. */
export interface LocalServices {
  readonly services: readonly ServiceImplementation<LocalCaller>[];
  admit(call: Call): Promise<LocalCaller>;
}

export function workloadServices(options: WorkloadServicesOptions): LocalServices {
  const probe = sharedProbe(options.probe, options.clock);
  const isReady = async (call: Call<LocalCaller>): Promise<boolean> => {
    await probe(call.signal);
    return true;
  };
  const health = healthService<LocalCaller>({ isReady, clock: options.clock });
  const offered = [
    ...(options.disableWorkloadApi ? [] : [workloadApi(options)]),
    ...(options.disableSdsApi ? [] : [sdsApi(options)]),
    health,
  ];
  const reflection = reflectionServices<LocalCaller>(offered.map(({ service }) => service));
  return { services: [...offered, ...reflection], admit: admitLocalCaller };
}

/** What the agent serves on its admin socket. */
export function adminServices(
  options: AdminApiOptions & DelegatedIdentityOptions & AttestationApiOptions,
): LocalServices {
  const offered = [
    debugApi(options),
    loggerApi(options),
    delegatedIdentityApi(options),
    delegatedPartsApi(options),
    attestationApi(options),
  ];
  const reflection = reflectionServices<LocalCaller>(offered.map(({ service }) => service));
  return { services: [...offered, ...reflection], admit: admitAdministrator };
}

/** What the agent serves to brokers, and who of them is let in. */
export function brokerServices(options: BrokerApiOptions & { readonly rules: readonly BrokerRule[] }): {
  readonly services: readonly ServiceImplementation<BrokerCaller>[];
  admit(call: Call): Promise<BrokerCaller>;
} {
  const reflection = reflectionServices<BrokerCaller>([BrokerApi]);
  return { services: [brokerApi(options), ...reflection], admit: brokerAdmission(options.rules) };
}
