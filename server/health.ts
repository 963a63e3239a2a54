import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Clock } from "../src/runtime/clock.ts";
import { Fault, messageOf } from "../src/runtime/fault.ts";
import type { Log } from "../src/runtime/log.ts";

/** One subsystem. `check` throws, or returns when all is well. */
export interface HealthCheck {
  readonly name: string;
  /** The JSON field that names what went wrong, such as `get_bundle_err`. */
  readonly field: string;
  readonly check: () => Promise<void>;
  /**
   * True when a failure means that the server cannot do its work. A dependency that is away while what is held is still
   * served is reported without making the server unready, so that no orchestrator restarts it for that.
   */
  readonly essential: boolean;
}

export interface HealthOptions {
  readonly bindAddress: string;
  readonly bindPort: number;
  readonly livePath: string;
  readonly readyPath: string;
  readonly checks: readonly HealthCheck[];
  readonly clock: Clock;
  readonly log: Log;
}

export interface HealthListener extends AsyncDisposable {
  readonly address: string;
  readonly port: number;
}

type Details = Readonly<Record<string, Readonly<Record<string, string>>>>;

interface Report {
  readonly well: boolean;
  readonly details: Details;
}

/** Reports are this old at most; a flood of probes costs one signature per second. */
const FRESH_MS = 1000;

/** Serves SPIRE's `/live` and `/ready`: 200 or 500, with a JSON object of details by subsystem. */
export async function serveHealth(options: HealthOptions): Promise<HealthListener> {
  const report = cached(options);
  const paths = new Set([options.livePath, options.readyPath]);
  const server = createServer(
    { headersTimeout: 10_000, requestTimeout: 10_000, maxHeaderSize: 8192 },
    (request, response) => {
      const path = (request.url ?? "").split("?", 1)[0] ?? "";
      if (!paths.has(path)) return answer(response, 404, {});
      report().then(
        ({ well, details }) => answer(response, well ? 200 : 500, details),
        (error: unknown) => answer(response, 500, { health: { error: messageOf(error) } }),
      );
    },
  );
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.bindPort, options.bindAddress, resolve);
  }).catch((cause: NodeJS.ErrnoException) => {
    throw cannotListen(options, cause);
  });
  const { address, port } = server.address() as AddressInfo;
  options.log.info("Serving health checks", { address: `${address}:${port}` });
  return {
    address,
    port,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

function cannotListen({ bindAddress, bindPort }: HealthOptions, cause: NodeJS.ErrnoException): Fault {
  return new Fault("unavailable", `cannot serve health checks on ${bindAddress}:${bindPort}: ${cause.message}`, {
    code: cause.code === "EADDRINUSE" ? "address-in-use" : "listen-failed",
    hint: "change bind_address or bind_port in health_checks",
    cause,
  });
}

function answer(response: ServerResponse, status: number, details: Details): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(`${JSON.stringify(details)}\n`);
}

function cached({ checks, clock }: HealthOptions): () => Promise<Report> {
  let held: { readonly at: number; readonly report: Promise<Report> } | undefined;
  return () => {
    const now = clock.monotonic();
    if (held === undefined || now - held.at > FRESH_MS) held = { at: now, report: runChecks(checks) };
    return held.report;
  };
}

async function runChecks(checks: readonly HealthCheck[]): Promise<Report> {
  const results = await Promise.all(
    checks.map(async (check) => ({ check, error: await check.check().then(() => undefined, messageOf) })),
  );
  const details = Object.fromEntries(
    results.map(({ check, error }) => [check.name, error === undefined ? {} : { [check.field]: error }]),
  );
  return { well: results.every(({ check, error }) => error === undefined || !check.essential), details };
}
