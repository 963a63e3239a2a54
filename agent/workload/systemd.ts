import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault, messageOf } from "../../src/runtime/fault.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import { type Attestor, atOnce, type Remote } from "./attest.ts";
import { DbusConnection, systemBusAddress } from "./dbus.ts";
import { withDeadline } from "./deadline.ts";

export interface SystemdAttestorOptions {
  readonly clock: Clock;
  /** The attestor's own life. */
  readonly signal: AbortSignal;
  /** D-Bus server address. Default: the system's bus. */
  readonly address?: string;
  /** A bus, or a manager, that answers nobody for so long hangs. */
  readonly patienceMs?: number;
}

const PATIENCE_MS = 10_000;
/** Between two looks whether one that hangs answers again. */
const LOOK_MS = 1_000;
const SYSTEMD = "org.freedesktop.systemd1";
const MANAGER = { destination: SYSTEMD, path: "/org/freedesktop/systemd1", interface: `${SYSTEMD}.Manager` };
const PROPERTIES = "org.freedesktop.DBus.Properties";
const PEER = "org.freedesktop.DBus.Peer";
const UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod";

/**
 * Selectors of type `systemd`: the unit of the caller, as the system's manager has it. Every caller has to ask, so that
 * one who hangs is asked once: until an answer comes to a question of our own, callers are told at once that none does.
 */
export class SystemdAttestor implements Attestor {
  readonly name = "systemd";
  readonly #options: SystemdAttestorOptions;
  #bus: Promise<DbusConnection> | undefined;
  /** Of the connection. */
  #life = new AbortController();
  #answers = 0;
  /** False once the manager has said that it knows no pidfds; systemd before 253. */
  #knowsPidfds = true;
  #silence: Fault | undefined;

  constructor(options: SystemdAttestorOptions) {
    this.#options = options;
    options.signal.addEventListener("abort", () => this.#drop(), { once: true });
  }

  /** Throws when the manager cannot be asked, or the caller is in no unit. */
  async attest(peer: PeerProcess, signal: AbortSignal, remote: Remote = atOnce): Promise<readonly Selector[]> {
    if (this.#silence !== undefined) throw this.#silence;
    const values = await remote("D-Bus", () => this.#patiently(() => this.#valuesOf(peer), signal));
    return values.map((value) => ({ type: this.name, value }));
  }

  async #valuesOf(peer: PeerProcess): Promise<readonly string[]> {
    const bus = await this.#connect();
    const unit = await this.#unitOf(bus, peer).catch((error: unknown) => {
      throw failed(`failed to get unit by pid ${peer.pid}`, error);
    });
    const [id, fragment] = await Promise.all(["Id", "FragmentPath"].map((name) => property(bus, unit, name)));
    // As in SPIRE, a unit that was made without a file has the empty path.
    return [`id:${id}`, `fragment_path:${fragment}`];
  }

  /** An answer to anybody meanwhile shows that it was not silent. */
  async #patiently<T>(ask: () => Promise<T>, signal: AbortSignal): Promise<T> {
    const { clock, patienceMs: ms = PATIENCE_MS } = this.#options;
    const before = this.#answers;
    try {
      return await withDeadline({ ms, clock, signal }, ask);
    } catch (error) {
      const isSilent = !signal.aborted && isFault(error, "timeout") && this.#answers === before;
      if (isSilent && this.#silence === undefined) void this.#hangs(error).catch(() => undefined);
      throw error;
    }
  }

  async #hangs(error: Fault): Promise<void> {
    const { clock, signal, patienceMs: ms = PATIENCE_MS } = this.#options;
    this.#silence = failed("the system's manager does not answer", error);
    do {
      this.#drop();
      await clock.sleep(LOOK_MS, signal);
    } while (!(await withDeadline({ ms, clock, signal }, () => this.#ping()).then(() => true, isAnswer)));
    this.#silence = undefined;
  }

  async #ping(): Promise<void> {
    const bus = await this.#connect();
    await bus.call({ ...MANAGER, interface: PEER, member: "Ping" });
  }

  #drop(): void {
    this.#life.abort();
    this.#life = new AbortController();
    void this.#bus?.then(
      (bus) => bus[Symbol.dispose](),
      () => undefined,
    );
    this.#bus = undefined;
  }

  /** One connection for all, and a new one once it is lost. */
  async #connect(): Promise<DbusConnection> {
    const { address = systemBusAddress() } = this.#options;
    const before = this.#bus;
    const held = await before?.catch(() => undefined);
    if (held?.isOpen === true) return held;
    if (this.#bus !== before) return this.#connect();
    const heard = (): void => {
      this.#answers += 1;
    };
    const opening = DbusConnection.open(address, { signal: this.#life.signal, heard });
    this.#bus = opening;
    return opening.catch((error: unknown) => {
      throw failed("failed to open dbus connection", error);
    });
  }

  /** Object path of the unit. By pidfd the manager itself sees that it is still the same process. */
  async #unitOf(bus: DbusConnection, peer: PeerProcess): Promise<string> {
    const { pidfd } = peer;
    if (pidfd !== undefined && bus.passesDescriptors && this.#knowsPidfds) {
      try {
        const call = { ...MANAGER, member: "GetUnitByPIDFD", signature: "h", body: [0], descriptor: pidfd };
        return String((await bus.call(call))[0]);
      } catch (error) {
        if (!(isFault(error) && error.code === UNKNOWN_METHOD)) throw error;
        this.#knowsPidfds = false;
      }
    }
    return String((await bus.call({ ...MANAGER, member: "GetUnitByPID", signature: "u", body: [peer.pid] }))[0]);
  }
}

async function property(bus: DbusConnection, path: string, name: string): Promise<string> {
  const call = { destination: SYSTEMD, path, interface: PROPERTIES, member: "Get", signature: "ss" };
  const [value] = await bus.call({ ...call, body: [`${SYSTEMD}.Unit`, name] }).catch((error: unknown) => {
    throw failed(`error getting value for ${name}`, error);
  });
  if (typeof value === "string") return value;
  throw failed(`returned value for ${name} was not a string`, typeof value);
}

function failed(what: string, cause: unknown): Fault {
  return new Fault("unavailable", `${what}: ${messageOf(cause)}`, { code: "systemd-unit", cause });
}

/** Whatever is said, and that it cannot be asked at all, is no silence. */
function isAnswer(error: unknown): boolean {
  return !isFault(error, "timeout");
}
