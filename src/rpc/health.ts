import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { Call } from "./caller.ts";
import type { HealthCheckResponse } from "./gen/grpc/health/v1/HealthCheckResponse.ts";
import { HealthApi } from "./protos.ts";
import { type ServiceImplementation, serverStream, service, unary } from "./service.ts";

export interface HealthOptions<Auth> {
  /** Whether the process can do its work now. A rejection counts as no. */
  isReady(call: Call<Auth>): Promise<boolean>;
  readonly clock: Clock;
}

const WATCH_EVERY_MS = 5_000;

/** `grpc.health.v1.Health` for the whole process; single services are not told apart. */
export function healthService<Auth>({ isReady, clock }: HealthOptions<Auth>): ServiceImplementation<Auth> {
  const status = async (call: Call<Auth>): Promise<HealthCheckResponse> => {
    const ready = await isReady(call).catch(() => false);
    return { status: ready ? "SERVING" : "NOT_SERVING" };
  };
  return service(HealthApi, {
    Check: unary(async ({ service: name }, call) => {
      if (name !== "") throw new Fault("invalid", "per-service health is not supported");
      return status(call);
    }),
    List: unary(async (_, call) => ({ statuses: { "": await status(call) } })),
    Watch: serverStream(async function* ({ service: name }, call) {
      let last: HealthCheckResponse["status"];
      for (;;) {
        const now: HealthCheckResponse = name === "" ? await status(call) : { status: "SERVICE_UNKNOWN" };
        if (now.status !== last) yield now;
        last = now.status;
        await clock.sleep(WATCH_EVERY_MS, call.signal);
      }
    }),
  });
}
