import {
  AgentApi,
  BundleApi,
  ContinuityApi,
  EntryApi,
  HealthApi,
  LocalAuthorityApi,
  type MethodsOf,
  PushApi,
  QuarantineApi,
  ServerDebugApi,
  ServerLoggerApi,
  type Service,
  SvidApi,
  TrustDomainApi,
} from "../../src/rpc/protos.ts";
import { reflectionServices } from "../../src/rpc/reflection.ts";
import {
  type AnyHandler,
  bidi,
  clientStream,
  type Handlers,
  type ServiceImplementation,
  serverStream,
  service,
  unary,
} from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import {
  agentRules,
  bundleRules,
  continuityRules,
  debugRules,
  entryRules,
  healthRules,
  localAuthorityRules,
  loggerRules,
  pushRules,
  quarantineRules,
  type Rule,
  reflectionRules,
  svidRules,
  trustDomainRules,
} from "./access.ts";
import type { Authorization, Route } from "./admission.ts";
import { type AgentServiceParts, agentService } from "./agent.ts";
import { type Facts, factsOf } from "./audit-fields.ts";
import { type BundleServiceParts, bundleService } from "./bundle.ts";
import { type ContinuityServiceParts, continuityService } from "./continuity.ts";
import { type DebugServiceParts, debugService } from "./debug.ts";
import { type EntryServiceParts, entryService } from "./entry.ts";
import { type FederatedBundleParts, federatedBundles } from "./federated-bundles.ts";
import { type HealthServiceParts, healthService } from "./health.ts";
import { type LocalAuthorityServiceParts, localAuthorityService } from "./local-authority.ts";
import { type LoggerServiceParts, loggerService } from "./logger.ts";
import { type PushServiceParts, pushService } from "./push.ts";
import { type QuarantineServiceParts, quarantineService } from "./quarantine.ts";
import { type SvidServiceParts, svidService } from "./svid.ts";
import { type TokenServiceParts, tokenSvids } from "./svid-tokens.ts";
import { type TrustDomainServiceParts, trustDomainService } from "./trust-domain.ts";

export type ServiceParts = AgentServiceParts &
  BundleServiceParts &
  ContinuityServiceParts &
  DebugServiceParts &
  FederatedBundleParts &
  EntryServiceParts &
  HealthServiceParts &
  LocalAuthorityServiceParts &
  LoggerServiceParts &
  PushServiceParts &
  QuarantineServiceParts &
  SvidServiceParts &
  TokenServiceParts &
  TrustDomainServiceParts;

/** A service as it is served: with a row of the access table for each of its methods. */
export interface ServedService {
  readonly implementation: ServiceImplementation<Authorization>;
  readonly routes: ReadonlyMap<string, Route>;
}

/** Every service of the server. `local` ones exist on the admin socket only. */
export function servedServices(parts: ServiceParts): {
  readonly everywhere: readonly ServedService[];
  readonly local: readonly ServedService[];
} {
  const everywhere = [
    served(AgentApi, agentRules, agentService(parts)),
    served(BundleApi, bundleRules, { ...bundleService(parts), ...federatedBundles(parts) }),
    served(ContinuityApi, continuityRules, continuityService(parts)),
    served(EntryApi, entryRules, entryService(parts)),
    served(PushApi, pushRules, pushService(parts)),
    served(QuarantineApi, quarantineRules, quarantineService(parts)),
    served(SvidApi, svidRules, { ...svidService(parts), ...tokenSvids(parts) }),
    served(LocalAuthorityApi, localAuthorityRules, localAuthorityService(parts)),
    served(TrustDomainApi, trustDomainRules, trustDomainService(parts)),
  ];
  const local = [
    served(HealthApi, healthRules, healthService(parts)),
    served(ServerLoggerApi, loggerRules, loggerService(parts)),
    served(ServerDebugApi, debugRules, debugService(parts)),
  ];
  return { everywhere, local: [...local, ...reflected([...everywhere, ...local])] };
}

/** Lets grpcurl and its like do without proto files. */
function reflected(services: readonly ServedService[]): readonly ServedService[] {
  return reflectionServices<Authorization>(services.map(({ implementation }) => implementation.service)).map(
    (implementation) => ({ implementation, routes: routesOf(implementation.service, reflectionRules) }),
  );
}

function routesOf(api: Service<object>, rules: Readonly<Record<string, Rule>>): ReadonlyMap<string, Route> {
  return new Map(
    Object.entries(api.methods()).map(([name, { path, requestStream, responseStream }]) => {
      const rule = rules[name];
      if (rule === undefined) throw new Fault("internal", `${api.name}/${name} has no row in the access table`);
      return [path, { rule, streams: requestStream || responseStream }];
    }),
  );
}

interface Shape {
  readonly requestStream: boolean;
  readonly responseStream: boolean;
}

/** Methods without a handler answer UNIMPLEMENTED, after the access table has spoken. */
export function served<M extends object>(
  api: Service<M>,
  rules: Readonly<Record<MethodsOf<Service<M>>, Rule>>,
  handlers: Partial<Handlers<M, Authorization>>,
): ServedService {
  const routes = routesOf(api, rules);
  const all: Record<string, AnyHandler<Authorization>> = {};
  for (const [name, method] of Object.entries(api.methods())) {
    const handler = (handlers as Readonly<Record<string, AnyHandler<Authorization>>>)[name];
    const served = noting(method.path, handler ?? unimplemented(name, method));
    all[name] = routes.get(method.path)?.rule.signs === true ? confirming(served) : served;
  }
  return { implementation: service(api, all as unknown as Handlers<M, Authorization>), routes };
}

/**
 * Gives nothing out that was signed for a caller which has lost its right meanwhile: signatures wait for their turn, and
 * calls for their rate, for up to a minute (T-C5).
 */
function confirming(handler: AnyHandler<Authorization>): AnyHandler<Authorization> {
  if (handler.kind !== "unary") return handler;
  const { run } = handler;
  return unary(async (request: object, call) => {
    const response = await run(request, call);
    await call.auth.again();
    return response;
  });
}

/** Has the audit record of a unary call say what was asked and answered. */
function noting(path: string, handler: AnyHandler<Authorization>): AnyHandler<Authorization> {
  const facts: Facts | undefined = factsOf(path);
  if (facts === undefined || handler.kind !== "unary") return handler;
  const { run } = handler;
  return unary(async (request: object, call) => {
    call.auth.note(() => facts.request?.(request as never) ?? {});
    const response = await run(request, call);
    call.auth.note(() => facts.response?.(response as never) ?? {});
    return response;
  });
}

function unimplemented(name: string, { requestStream, responseStream }: Shape): AnyHandler<Authorization> {
  const refuse = (): never => {
    throw new Fault("unimplemented", `method ${name} not implemented`);
  };
  const refuseLater = async (): Promise<object> => refuse();
  if (requestStream) return responseStream ? bidi(refuse) : clientStream(refuseLater);
  return responseStream
    ? serverStream<object, object, Authorization>(refuse)
    : unary<object, object, Authorization>(refuseLater);
}
