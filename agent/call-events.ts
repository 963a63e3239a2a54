import type { Call } from "../src/rpc/caller.ts";
import { rpcNames } from "../src/rpc/names.ts";
import { once } from "../src/rpc/once.ts";
import type { Outcome } from "../src/rpc/pipeline.ts";
import {
  BrokerApi,
  DelegatedIdentityApi,
  DelegatedIdentityPartsApi,
  SecretDiscoveryApi,
  WorkloadApi,
} from "../src/rpc/protos.ts";
import type { Log } from "../src/runtime/log.ts";
import { recordCall } from "../src/runtime/metrics.ts";

const APIS: ReadonlyMap<string, string> = new Map([
  ["SpiffeWorkloadAPI", "workload_api"],
  ["envoy.service.secret.v3.SecretDiscoveryService", "sds_api"],
  ["spire.agent.debug.v1.Debug", "debug_api"],
  ["spire.api.agent.logger.v1.Logger", "logger_api"],
  ["spire.api.agent.delegatedidentity.v1.DelegatedIdentity", "delegated_identity_api"],
  ["steeple.api.agent.delegatedidentity.v1.DelegatedIdentity", "delegated_identity_api"],
  ["spiffe.broker.API", "broker_api"],
]);

/** How many calls of each service are open, which SPIRE calls connections. */
class OpenCalls {
  readonly #log: Log;
  readonly #open = new Map<string, number>();

  constructor(log: Log) {
    this.#log = log;
  }

  began(call: Call): void {
    const api = apiOf(call);
    if (api !== undefined) this.#log.metrics.increment(`${api}.connection`);
    this.#change(api, 1);
  }

  ended(call: Call): void {
    this.#change(apiOf(call), -1);
  }

  #change(api: string | undefined, by: number): void {
    if (api === undefined) return;
    const open = (this.#open.get(api) ?? 0) + by;
    this.#open.set(api, open);
    this.#log.metrics.set(`${api}.connections`, open);
  }
}

function apiOf({ method, caller }: Call): string | undefined {
  return caller.process?.pid === process.pid ? undefined : APIS.get(method.slice(1, method.lastIndexOf("/")));
}

/** What a server of calls tells of each, from its beginning to its end. */
export function callEvents<Auth>(
  log: Log,
  admit: (call: Call) => Promise<Auth>,
): { readonly admit: (call: Call) => Promise<Auth>; readonly observe: (call: Call, outcome: Outcome) => void } {
  const calls = new OpenCalls(log);
  return {
    admit: (call) => {
      calls.began(call);
      return admit(call);
    },
    observe: (call, outcome) => {
      calls.ended(call);
      callEnded(log, call, outcome);
    },
  };
}

/** Once for each call of another process; the agent's own look at its health is none. */
function callEnded({ metrics }: Log, { method, caller }: Call, { code, ms }: Outcome): void {
  if (caller.process?.pid === process.pid) return;
  const status = code === "Canceled" && streams().has(method) ? "OK" : code;
  recordCall(metrics, `rpc.${rpcNames(method).metricKey}`, { status, ms });
}

/** Their clients leave when they have seen enough, which SPIRE counts as success. */
const streams = once((): ReadonlySet<string> => {
  const services = [WorkloadApi, SecretDiscoveryApi, DelegatedIdentityApi, DelegatedIdentityPartsApi, BrokerApi];
  const methods = services.flatMap((service) => Object.values(service.methods()));
  return new Set(methods.filter(({ responseStream }) => responseStream).map(({ path }) => path));
});
