import type { ServerClient } from "../support/server.ts";
import type { Figure } from "./figures.ts";
import type { Limits } from "./limits.ts";

export type Store = "embedded" | "postgres";

/** Where figures go. */
export interface Report {
  figure(figure: Figure): void;
  /** One sentence that the figures need, such as why some are missing. */
  note(text: string): void;
}

/** Whoever opened it disposes of it. */
type OpenServer = Omit<ServerClient, typeof Symbol.dispose>;

/** A server to be measured: one of ours, started for this, or the peer that was given by address. */
export interface MeasuredServer extends OpenServer {
  /** Of the server's process on this machine; undefined when it runs elsewhere. */
  readonly pid: number | undefined;
  /** Its own API `steeple.*` is served. */
  readonly isOurs: boolean;
}

export interface ServersOptions {
  /** Keys of the `server` section for those that are started. */
  readonly server?: Readonly<Record<string, unknown>>;
  readonly nodeAttestors?: Readonly<Record<string, object>>;
  /** Added to their environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** The store makes no difference: one of our servers is enough. */
  readonly anyStore?: true;
  /** The work speaks nothing but SPIRE's wire, so that it measures any server. */
  readonly wireOnly?: true;
}

/** An agent to be measured, with the server that it belongs to. */
export interface MeasuredAgent {
  readonly socketPath: string;
  readonly id: string;
  readonly pid: number | undefined;
  readonly isOurs: boolean;
  readonly server: OpenServer;
}

export interface AgentsOptions {
  /** Keys of the `agent` section for the one that is started. */
  readonly agent?: Readonly<Record<string, unknown>>;
  /** The work speaks nothing but the Workload API, so that it measures any agent. */
  readonly wireOnly?: true;
}

/** What a scenario measures with. Figures are reported as they come, so that a failure does not lose earlier ones. */
export interface Bench<P> extends Report {
  /** On which our own servers are to run. */
  readonly stores: readonly Store[];
  readonly parameters: P;
  readonly limits: Limits;
  /** Aborted when the run is to end. */
  readonly signal: AbortSignal;
  /** One server after the other, each disposed of afterwards; figures get the server's name as their subject. */
  onServers(options: ServersOptions, work: (server: MeasuredServer, report: Report) => Promise<void>): Promise<void>;
  /** Our agent below a server of ours, then the peer's when one was given. */
  onAgents(options: AgentsOptions, work: (agent: MeasuredAgent, report: Report) => Promise<void>): Promise<void>;
  /** Reports under this subject. */
  of(subject: string): Report;
}

/** A whole number, or several of them in a row. */
interface ParameterSpec {
  readonly doc: string;
  readonly default: number | readonly number[];
}

type ParameterSpecs = Readonly<Record<string, ParameterSpec>>;

/** Values by parameter. */
export type Parameters = Readonly<Record<string, number | readonly number[]>>;

type ParameterValues<S extends ParameterSpecs> = {
  readonly [K in keyof S]: S[K]["default"] extends number ? number : readonly number[];
};

interface ScenarioSpec<S extends ParameterSpecs> {
  /** One line, as `--list` shows it. */
  readonly summary: string;
  /** Flags of the command line. Names are shared: the same word means the same in every scenario. */
  readonly parameters?: S;
  /** Takes long or much: runs only when it is named. */
  readonly onlyByName?: true;
  run(bench: Bench<ParameterValues<S>>): Promise<void>;
}

/** A scenario whose parameter types are checked and forgotten. */
export interface Scenario {
  readonly summary: string;
  readonly parameters: ParameterSpecs;
  readonly onlyByName: boolean;
  run(bench: Bench<Parameters>): Promise<void>;
}

/** Every scenario is one of these, and one row in `scenarios.ts`. */
export function scenario<const S extends ParameterSpecs = Record<never, never>>(spec: ScenarioSpec<S>): Scenario {
  const { summary, parameters = {}, onlyByName = false } = spec;
  // The command line builds the values from the same specs, which is what the type says.
  return { summary, parameters, onlyByName, run: (bench) => spec.run(bench as Bench<ParameterValues<S>>) };
}
