import { dirname } from "node:path";
import { type Key, objectsOf, type Spot } from "../../src/runtime/config.ts";
import { block, flag, text } from "../../src/runtime/config-keys.ts";
import { messageOf } from "../../src/runtime/fault.ts";
import { socketPath, withoutBrackets } from "../../src/runtime/program-config.ts";
import { parseSpiffeId, type SpiffeId } from "../../src/spiffe/id.ts";

export interface BrokerConfig {
  readonly socketPath: string | undefined;
  readonly bind: { readonly address: string; readonly port: number } | undefined;
  readonly brokers: readonly BrokerEntry[];
}

export interface BrokerEntry {
  readonly id: SpiffeId;
  readonly allowed: readonly { readonly typeUrl: string; readonly overTcp: boolean }[];
}

const referenceKeys = {
  type_url: text({ doc: "Type URL of a reference, or * for every type.", default: "" }),
  allow_over_tcp: flag({ doc: "Allows it over TCP too.", default: false }),
};

/** A list of objects with the same keys. */
export function objects<T>(
  doc: string,
  read: (object: Parameters<typeof objectsOf>[0], spot: Spot) => T,
): Key<readonly T[]> {
  return {
    type: "list of objects",
    doc,
    status: "works",
    read: (value, spot) => {
      const found = value === undefined ? [] : objectsOf(value);
      if (found === undefined) spot.reader.fault(spot.at, `${spot.path}: expected a list of objects such as [{ … }]`);
      return (found ?? []).map((object, at) => read(object, { ...spot, path: `${spot.path}[${at}]`, at: object.at }));
    },
  };
}

const brokerKeys = {
  id: text({ doc: "SPIFFE ID of the broker, of any trust domain.", default: "" }),
  allowed_reference_types: objects("References that it may use.", (object, spot) =>
    block("", referenceKeys).read(object, spot),
  ),
};

const keys = {
  socket_path: socketPath({ doc: "Unix socket, in a directory of its own." }),
  bind_address: text({ doc: "TCP address and port." }),
  brokers: objects(
    "Who may ask: objects with id and allowed_reference_types, a list of objects with type_url and allow_over_tcp.",
    (object, spot) => ({ at: spot.at, ...block("", brokerKeys).read(object, spot) }),
  ),
};

/** `experimental.broker`; undefined when it is not there. */
export const brokerKey: Key<BrokerConfig | undefined> = {
  ...block("Endpoint of the SPIFFE Broker API, with mutual TLS on both kinds of socket.", keys),
  read: (value, spot) => {
    if (value === undefined) return undefined;
    const { socket_path, bind_address, brokers } = block("", keys).read(value, spot);
    const fault = (message: string): void => spot.reader.fault(spot.at, message);
    if (socket_path === undefined && bind_address === undefined)
      fault("experimental.broker requires socket_path, bind_address, or both");
    if (brokers.length === 0) fault("experimental.broker.brokers: at least one broker is required");
    const bind = bind_address === undefined ? undefined : bindOf(bind_address);
    if (bind_address !== undefined && bind === undefined)
      fault(`invalid experimental.broker.bind_address ${JSON.stringify(bind_address)}: write it as host:port`);
    return { socketPath: socket_path, bind, brokers: brokersOf(brokers, spot) };
  },
};

type BrokerValues = ReturnType<(typeof keys.brokers)["read"]>;

function brokersOf(brokers: BrokerValues, { reader }: Spot): readonly BrokerEntry[] {
  const seen = new Set<string>();
  return brokers.flatMap(({ id, allowed_reference_types: types, at }, index): BrokerEntry[] => {
    const fault = (message: string): void => reader.fault(at, `experimental.broker.brokers[${id || index}].${message}`);
    if (id === "") fault("id: must be specified");
    else if (seen.has(id)) fault("id: duplicate broker id");
    seen.add(id);
    if (types.length === 0) fault("allowed_reference_types: must list at least one reference type URL");
    for (const [position, { type_url }] of types.entries())
      if (type_url === "") fault(`allowed_reference_types[${position}].type_url: must be specified`);
    if (types.length > 1 && types.some(({ type_url }) => type_url === "*"))
      fault('allowed_reference_types: wildcard "*" must be the only allowed reference type');
    const allowed = types.map(({ type_url, allow_over_tcp }) => ({ typeUrl: type_url, overTcp: allow_over_tcp }));
    try {
      return id === "" ? [] : [{ id: parseSpiffeId(id), allowed }];
    } catch (error) {
      fault(`id: ${messageOf(error)}`);
      return [];
    }
  });
}

function bindOf(spelling: string): BrokerConfig["bind"] {
  const found = /^(\[[0-9a-fA-F:.]+\]|[^:[\]]+):(\d{1,5})$/.exec(spelling);
  const port = Number(found?.[2]);
  if (found === null || port > 65_535) return undefined;
  return { address: withoutBrackets(found[1] ?? ""), port };
}

/** True when everyone who may look into the other socket's directory could reach this one. */
export function sharesDirectory(path: string | undefined, publicSocket: string): boolean {
  return path?.startsWith(`${dirname(publicSocket)}/`) === true;
}
