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
/** A start that takes longer is worth a warning; what keeps it waiting stands in the log before. */
const START_MS = 60_000;
/** A server that is away for this long, or refuses for this long, makes the agent unready; what it holds it still serves. */
const PATIENCE_MS = 10 * 60_000;

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

/** How the agent stands with its server. */
export interface AgentCondition {
  /** End of the agent's own SVID; undefined while it is not attested. */
  readonly attestedUntil: Date | undefined;
  readonly lastSync: Date | undefined;
  /** The server gives it nothing until it is released. */
  readonly quarantined: boolean;
  /** Since when no SVID could be had from the server; undefined when the last attempt went well. */
  readonly signingFailsSince: Date | undefined;
  /** When the first SVID that is held for a workload ends. */
  readonly firstSvidEnds: Date | undefined;
}

export interface AgentHealthOptions {
  readonly probe: HealthProbe;
  readonly condition: () => AgentCondition;
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

  /** Attested, in touch with the server, able to have SVIDs signed, and answering workloads. */
  get ready(): boolean {
    return this.#checked !== undefined && this.#checked.problem === undefined && this.#unready().length === 0;
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
    const problem = this.#checked?.problem;
    if (path === options.readyPath) this.#respond(response, { healthy: this.ready, problem, unready: this.#unready() });
    else if (path === options.livePath)
      this.#respond(response, { healthy: this.live, problem: this.live ? undefined : problem, unready: [] });
    else response.writeHead(404).end();
  }

  #unready(): readonly string[] {
    return unreadyBecause(this.#options.condition(), this.#options.clock.now());
  }

  #respond(response: ServerResponse, { healthy, problem, unready }: Verdict): void {
    const details = {
      ...(problem === undefined ? {} : { make_new_x509_err: problem }),
      ...(unready.length === 0 ? {} : { not_ready: unready }),
      ...conditionDetails(this.#options.condition(), this.#options.clock.now()),
    };
    response.writeHead(healthy ? 200 : 500, { "content-type": "application/json" });
    response.end(`${JSON.stringify({ agent: details })}\n`);
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
    else if (problem !== this.#startupProblem && clock.monotonic() - this.#failingSince >= START_MS) {
      log.warn("Health check has failed. Starting up still.", { check: "agent", error: problem });
      this.#startupProblem = problem;
    }
  }
}

interface Verdict {
  readonly healthy: boolean;
  readonly problem: string | undefined;
  readonly unready: readonly string[];
}

function unreadyBecause(condition: AgentCondition, now: Date): readonly string[] {
  const { attestedUntil, lastSync, quarantined, signingFailsSince } = condition;
  const isOld = (time: Date): boolean => now.getTime() - time.getTime() > PATIENCE_MS;
  return [
    ...(attestedUntil === undefined ? ["the agent is not attested"] : []),
    ...(attestedUntil !== undefined && attestedUntil <= now ? ["the agent's own SVID has expired"] : []),
    ...(lastSync === undefined ? ["the agent has not synchronised yet"] : []),
    ...(lastSync !== undefined && isOld(lastSync) ? ["the agent cannot synchronise with its server"] : []),
    ...(quarantined ? ["the server has quarantined the agent"] : []),
    ...(signingFailsSince !== undefined && isOld(signingFailsSince) ? ["the server signs no SVIDs"] : []),
  ];
}

/** Times, and seconds from now for whoever cannot read times. */
function conditionDetails(condition: AgentCondition, now: Date): object {
  const { attestedUntil, lastSync, signingFailsSince, firstSvidEnds } = condition;
  const seconds = (time: Date): number => Math.round((time.getTime() - now.getTime()) / 1000);
  return {
    ...(attestedUntil && { attested_until: attestedUntil }),
    ...(lastSync && { last_sync: lastSync, seconds_since_sync: -seconds(lastSync) }),
    ...(signingFailsSince && { signing_fails_since: signingFailsSince }),
    ...(firstSvidEnds && { first_svid_ends: firstSvidEnds, seconds_to_first_svid_end: seconds(firstSvidEnds) }),
  };
}
