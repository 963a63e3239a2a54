import type { HealthApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { messageOf } from "../../src/runtime/fault.ts";
import * as events from "../events.ts";
import { failure } from "./fail.ts";
import type { HandlersOf } from "./shapes.ts";

export interface HealthServiceParts {
  /** Throws when the server cannot do its work. */
  readonly checkReady: () => void;
}

/** For `healthcheck` on the admin socket. */
export function healthService({ checkReady }: HealthServiceParts): Pick<HandlersOf<typeof HealthApi>, "Check"> {
  return {
    Check: unary(async ({ service }, { auth: { log } }) => {
      if (service !== "") throw failure(log, "invalid", "per-service health is not supported");
      try {
        checkReady();
        return { status: "SERVING" };
      } catch (error) {
        events.healthCheckFailed(log, messageOf(error));
        return { status: "NOT_SERVING" };
      }
    }),
  };
}
