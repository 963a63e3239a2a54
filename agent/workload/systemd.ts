import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { Fault, isFault, messageOf } from "../../src/runtime/fault.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import type { Attestor } from "./attest.ts";
import { DbusConnection, systemBusAddress } from "./dbus.ts";

export interface SystemdAttestorOptions {
  /** The attestor's own life. */
  readonly signal: AbortSignal;
  /** D-Bus server address. Default: the system's bus. */
  readonly address?: string;
}

const SYSTEMD = "org.freedesktop.systemd1";
const MANAGER = { destination: SYSTEMD, path: "/org/freedesktop/systemd1", interface: `${SYSTEMD}.Manager` };
const PROPERTIES = "org.freedesktop.DBus.Properties";
const UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod";

/** Selectors of type `systemd`: the unit of the caller, as the system's manager has it. */
export class SystemdAttestor implements Attestor {
  readonly name = "systemd";
  readonly #address: string;
  #bus: Promise<DbusConnection> | undefined;
  /** False once the manager has said that it knows no pidfds; systemd before 253. */
  #knowsPidfds = true;

  constructor({ signal, address = systemBusAddress() }: SystemdAttestorOptions) {
    this.#address = address;
    signal.addEventListener(
      "abort",
      () =>
        void this.#bus?.then(
          (bus) => bus[Symbol.dispose](),
          () => undefined,
        ),
      {
        once: true,
      },
    );
  }

  /** Throws when the manager cannot be asked, or the caller is in no unit. */
  async attest(peer: PeerProcess): Promise<readonly Selector[]> {
    const bus = await this.#connect();
    const unit = await this.#unitOf(bus, peer).catch((error: unknown) => {
      throw failed(`failed to get unit by pid ${peer.pid}`, error);
    });
    const [id, fragment] = await Promise.all(["Id", "FragmentPath"].map((name) => property(bus, unit, name)));
    // As in SPIRE, a unit that was made without a file has the empty path.
    return [`id:${id}`, `fragment_path:${fragment}`].map((value) => ({ type: this.name, value }));
  }

  /** One connection for all, and a new one once it is lost. */
  async #connect(): Promise<DbusConnection> {
    const before = this.#bus;
    const held = await before?.catch(() => undefined);
    if (held?.isOpen === true) return held;
    if (this.#bus !== before) return this.#connect();
    const opening = DbusConnection.open(this.#address);
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
