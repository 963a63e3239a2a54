import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Call } from "../../src/rpc/caller.ts";
import type { Outcome } from "../../src/rpc/pipeline.ts";
import { type HealthApi, HealthApi as health, type Service } from "../../src/rpc/protos.ts";
import { RpcServer, type RpcServerOptions } from "../../src/rpc/serve.ts";
import { type Handlers, type ServiceImplementation, serverStream, service, unary } from "../../src/rpc/service.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { RecordingLog } from "./recording-log.ts";

export type HealthHandlers = typeof HealthApi extends Service<infer M> ? Partial<Handlers<M, undefined>> : never;

interface Observed extends Outcome {
  readonly method: string;
}

export interface TestRpcServer extends AsyncDisposable {
  readonly rpc: RpcServer<undefined>;
  readonly log: RecordingLog;
  /** Of the Unix socket. */
  readonly path: string;
  /** Admitted or not, in the order of their start. */
  readonly calls: Call[];
  /** In the order of their end. */
  readonly outcomes: Observed[];
}

export type TestRpcOptions = Partial<Omit<RpcServerOptions<undefined>, "services">> & {
  readonly services?: readonly ServiceImplementation<undefined>[];
  readonly health?: HealthHandlers;
};

/** A server on a Unix socket of its own; by default the health service, which says SERVING. */
export async function startRpc(options: TestRpcOptions = {}): Promise<TestRpcServer> {
  const folder = await mkdtemp(join(tmpdir(), "rpc-"));
  const log = new RecordingLog();
  const calls: Call[] = [];
  const outcomes: Observed[] = [];
  const { services = [healthWith(options.health ?? {})], admit, ...others } = options;
  const rpc = new RpcServer<undefined>({
    log,
    clock: systemClock,
    observe: (call, outcome) => outcomes.push({ method: call.method, ...outcome }),
    ...others,
    services,
    async admit(call) {
      calls.push(call);
      return admit?.(call);
    },
  });
  const path = join(folder, "api.sock");
  await rpc.listenUnix({ path, mode: 0o777 });
  return {
    rpc,
    log,
    path,
    calls,
    outcomes,
    async [Symbol.asyncDispose]() {
      await rpc[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export function healthWith(handlers: HealthHandlers): ServiceImplementation<undefined> {
  return service(health, {
    Check: unary(async () => ({ status: "SERVING" })),
    List: unary(async () => ({ statuses: {} })),
    Watch: serverStream(async function* () {
      yield { status: "SERVING" };
    }),
    ...handlers,
  });
}

/** Descriptors that this process has open. */
export async function openDescriptors(): Promise<number> {
  return (await readdir("/proc/self/fd")).length;
}
