import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { fetchX509Bundles } from "../src/client/workload-api.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { Fault, isFault } from "../src/runtime/fault.ts";
import type { Log } from "../src/runtime/log.ts";
import { every } from "../src/runtime/task.ts";

/** Between checks until the first success, and from then on. */
const FIRST_INTERVAL_MS = 1_000;
const INTERVAL_MS = 60_000;
/** A call that was let in and still waits after this long waits for an SVID: the endpoint works. */
const PROBE_DEADLINE_MS = 5_000;
const HEADERS_TIMEOUT_MS = 10_000;

/** Resolves when the Workload API answers; throws the reason when it does not. */
export type HealthProbe = (signal: AbortSignal) => Promise<void>;

/**
 * Calls the agent's own Workload API over its socket. Only an endpoint that is not reachable or not able to attest
 * its caller is unhealthy; a refusal for want of an identity is an answer.
 */
export function workloadApiProbe(socketPath: string): HealthProbe {
  const socket = { transport: "unix", path: socketPath } as const;
  return async (signal) => {
    try {
      await fetchX509Bundles({ socket, signal, deadlineMs: PROBE_DEADLINE_MS });
    } catch (error) {
      if (!isFault(error, "unavailable")) return;
      throw new Fault("unavailable", "workload api is unavailable", { cause: error });
    }
  };
}

export interface AgentHealthOptions {
  readonly probe: HealthProbe;
  /** True once every listener of the agent is up. */
  readonly started: () => boolean;
  readonly clock: Clock;
  readonly log: Log;
}

export interface HealthListenerOptions {
  readonly bindAddress: string;
  readonly bindPort: number;
  readonly livePath: string;
  readonly readyPath: string;
}

interface Checked {
  readonly started: boolean;
  readonly problem: string | undefined;
}

/** The agent's health as last checked, and the HTTP listener that tells it: 200 or 500 with a JSON body. */
export class AgentHealth implements AsyncDisposable {
  readonly #options: AgentHealthOptions;
  #server: Server | undefined;
  #checked: Checked | undefined;
  #everReady = false;
  #failures = 0;
  #failingSince = 0;
  #startupProblem: string | undefined;

  constructor(options: AgentHealthOptions) {
    this.#options = options;
  }

  get ready(): boolean {
    return this.#checked !== undefined && this.#checked.problem === undefined;
  }

  /** An agent that is still starting is alive: it may need minutes to be let in by its server. */
  get live(): boolean {
    return this.#checked !== undefined && (!this.#checked.started || this.#checked.problem === undefined);
  }

  /** Checks at once and then again and again, until the signal ends it by throwing. */
  run(signal: AbortSignal): Promise<never> {
    const interval = () => (this.#everReady ? INTERVAL_MS : FIRST_INTERVAL_MS);
    return every(this.#options.clock, interval, () => this.#check(signal), signal);
  }

  async listen(options: HealthListenerOptions): Promise<AddressInfo> {
    const server = createServer({ headersTimeout: HEADERS_TIMEOUT_MS }, (request, response) => {
      this.#answer(options, request, response);
    });
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(options.bindPort, options.bindAddress, resolve);
    });
    const address = server.address() as AddressInfo;
    this.#options.log.info("Serving health checks", { address: `${address.address}:${address.port}` });
    return address;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const server = this.#server;
    if (server?.listening !== true) return;
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    server.closeAllConnections();
    await closed;
  }

  #answer(options: HealthListenerOptions, request: IncomingMessage, response: ServerResponse): void {
    const path = request.url?.split("?", 1)[0];
    if (path === options.readyPath) respond(response, this.ready, this.#checked?.problem);
    else if (path === options.livePath) respond(response, this.live, this.live ? undefined : this.#checked?.problem);
    else response.writeHead(404).end();
  }

  async #check(signal: AbortSignal): Promise<void> {
    const started = this.#options.started();
    const problem = await this.#probe(signal);
    signal.throwIfAborted();
    this.#report(started, problem);
    this.#checked = { started, problem };
    this.#everReady ||= problem === undefined;
  }

  async #probe(signal: AbortSignal): Promise<string | undefined> {
    try {
      await this.#options.probe(signal);
      return undefined;
    } catch (error) {
      return Fault.from(error).message;
    }
  }

  #report(started: boolean, problem: string | undefined): void {
    const { log, clock } = this.#options;
    if (problem === undefined) {
      if (this.#failures > 0) {
        const duration = (clock.monotonic() - this.#failingSince) / 1000;
        log.info("Health check recovered", { check: "agent", failures: this.#failures, duration });
      }
      this.#failures = 0;
      return;
    }
    if (this.#failures === 0) this.#failingSince = clock.monotonic();
    this.#failures += 1;
    if (started) log.error("Health check has failed", { check: "agent", error: problem });
    else if (problem !== this.#startupProblem) {
      log.warn("Health check has failed. Starting up still.", { check: "agent", error: problem });
      this.#startupProblem = problem;
    }
  }
}

function respond(response: ServerResponse, healthy: boolean, problem: string | undefined): void {
  const details = { agent: problem === undefined ? {} : { make_new_x509_err: problem } };
  response.writeHead(healthy ? 200 : 500, { "content-type": "application/json" });
  response.end(`${JSON.stringify(details)}\n`);
}
