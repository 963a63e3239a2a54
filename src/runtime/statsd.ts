import { createSocket, type Socket } from "node:dgram";
import { isIP } from "node:net";
import type { Clock } from "./clock.ts";
import type { LabelPair, MetricLabels, MetricNaming, Metrics } from "./metrics.ts";
import { every, type Task } from "./task.ts";

/** How a place writes labels: as further parts of the name, or as Datadog's tags. */
export type StatsdDialect = "statsd" | "dogstatsd";

export interface StatsdOptions {
  readonly dialect: StatsdDialect;
  /** `host:port`. */
  readonly address: string;
  readonly naming: MetricNaming;
  readonly clock: Clock;
}

type Type = "c" | "g" | "ms";

/** Fits a packet of every network. */
const PACKET_BYTES = 1400;
const FLUSH_MS = 100;
/** More than a flush can hold is dropped: numbers never hold up the program. */
const MOST_PACKETS = 256;

/** Sends every number at once, by UDP: what gets lost is lost. */
export class StatsdSink implements Metrics, AsyncDisposable {
  readonly #options: StatsdOptions;
  readonly #socket: Socket;
  readonly #host: string;
  readonly #port: number;
  #packets: string[] = [];

  constructor(options: StatsdOptions) {
    this.#options = options;
    const colon = options.address.lastIndexOf(":");
    this.#host = options.address.slice(0, colon).replace(/^\[(.*)\]$/, "$1");
    this.#port = Number(options.address.slice(colon + 1));
    this.#socket = createSocket(isIP(this.#host) === 6 ? "udp6" : "udp4");
    this.#socket.on("error", () => {}).unref();
  }

  increment(key: string, labels?: MetricLabels, by = 1): void {
    this.#add(key, "c", by, labels);
  }

  set(key: string, value: number, labels?: MetricLabels): void {
    this.#add(key, "g", value, labels);
  }

  observe(key: string, value: number, labels?: MetricLabels): void {
    this.#add(key, "ms", value, labels);
  }

  /** Sends what has come together ten times a second. */
  readonly run: Task = (signal) =>
    every(
      this.#options.clock,
      () => FLUSH_MS,
      async () => void this.#flush(),
      signal,
    );

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#flush();
    this.#socket.close();
  }

  #add(key: string, type: Type, value: number, labels: MetricLabels | undefined): void {
    const { naming, dialect } = this.#options;
    const name = naming.nameOf(key);
    if (name === undefined) return;
    const line = LINES[dialect](name, `${numberText(value, type, dialect)}|${type}`, naming.labelsOf(labels));
    const last = this.#packets.at(-1);
    if (last !== undefined && last.length + line.length <= PACKET_BYTES)
      this.#packets[this.#packets.length - 1] = last + line;
    else if (this.#packets.length < MOST_PACKETS) this.#packets.push(line);
  }

  async #flush(): Promise<void> {
    const packets = this.#packets;
    this.#packets = [];
    const send = (packet: string) =>
      new Promise<void>((done) => this.#socket.send(packet, this.#port, this.#host, () => done()));
    await Promise.all(packets.map(send));
  }
}

const LINES: Readonly<Record<StatsdDialect, (name: string, value: string, labels: readonly LabelPair[]) => string>> = {
  statsd: (name, value, labels) =>
    `${[name, ...labels.map(([, text]) => text)].join(".").replace(/[: |\n]/g, "_")}:${value}\n`,
  dogstatsd: (name, value, labels) =>
    `${name.replace(/[: ]/g, "_")}:${value}${labels.length === 0 ? "" : `|#${labels.map(tag).join(",")}`}\n`,
};

/** Names are plain already; a host name is what the machine says. */
function tag([name, value]: LabelPair): string {
  return value === "" ? name : `${name}:${value.replace(/[:,| \n]/g, "_")}`;
}

function numberText(value: number, type: Type, dialect: StatsdDialect): string {
  if (dialect === "statsd") return value.toFixed(6);
  return type === "c" ? String(Math.trunc(value)) : String(value);
}
