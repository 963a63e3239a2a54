import type { KeyManager, ManagedKey } from "../src/keys/keys.ts";
import { boundMember, type Meter, measured } from "../src/rpc/counted.ts";
import type { Store } from "./store/store.ts";

/*
 * Call counters around what the server stands on, under SPIRE's names. What is measured is a row of a table; everything
 * else passes through.
 */

type MethodKeys<T> = { readonly [K in keyof T]?: string };

const STORE = {
  entries: {
    create: "datastore.registration_entry.create",
    createMany: "datastore.registration_entry.create",
    find: "datastore.registration_entry.fetch",
    list: "datastore.registration_entry.list",
    count: "datastore.registration_entry.count",
    update: "datastore.registration_entry.update",
    delete: "datastore.registration_entry.delete",
    deleteMany: "datastore.registration_entry.delete",
    prune: "datastore.registration_entry.prune",
  },
  nodes: {
    attest: "datastore.node.create",
    find: "datastore.node.fetch",
    list: "datastore.node.list",
    count: "datastore.node.count",
    renew: "datastore.node.update",
    activate: "datastore.node.update",
    setAgentVersion: "datastore.node.update",
    ban: "datastore.node.update",
    quarantine: "datastore.node.update",
    release: "datastore.node.update",
    delete: "datastore.node.delete",
  },
  tokens: {
    create: "datastore.join_token.create",
    consume: "datastore.join_token.delete",
    prune: "datastore.join_token.prune",
  },
  bundles: {
    find: "datastore.bundle.fetch",
    list: "datastore.bundle.list",
    count: "datastore.bundle.count",
    change: "datastore.bundle.update",
    changeForeign: "datastore.bundle.set",
    delete: "datastore.bundle.delete",
  },
  federation: {
    create: "datastore.federation_relationship.create",
    find: "datastore.federation_relationship.fetch",
    list: "datastore.federation_relationship.list",
    update: "datastore.federation_relationship.update",
    changeBundle: "datastore.bundle.set",
    delete: "datastore.federation_relationship.delete",
  },
  authorities: {
    list: "datastore.ca_journal.fetch",
    save: "datastore.ca_journal.set",
    prune: "datastore.ca_journal.prune",
  },
  changes: {
    load: "datastore.registration_entry.list",
    since: "datastore.registration_entry_event.list",
    prune: "datastore.registration_entry_event.prune",
  },
} as const satisfies { readonly [A in keyof Store]?: MethodKeys<Store[A]> };

/** The owner of `store` disposes of it as before. */
export function measuredStore<S extends Store>(store: S, meter: Meter): S {
  const aggregates = new Map<string | symbol, object>(
    Object.entries(STORE).map(([name, keys]) => [name, measured(store[name as keyof typeof STORE], keys, meter)]),
  );
  return new Proxy(store, { get: (target, name) => aggregates.get(name) ?? boundMember(target, name) });
}

const KEYS: MethodKeys<KeyManager> = {
  generate: "server_key_manager.generate_key",
  find: "server_key_manager.get_public_key",
  list: "server_key_manager.get_public_keys",
};

const KEY: MethodKeys<ManagedKey> = { sign: "server_key_manager.sign_data" };

/** The keys that it gives count their signatures. */
export function measuredKeys<K extends KeyManager>(keys: K, meter: Meter): K {
  const counted = measured(keys, KEYS, meter);
  const key = (held: ManagedKey): ManagedKey => measured(held, KEY, meter);
  const giving: Pick<KeyManager, "generate" | "find" | "list"> = {
    generate: async (id, type) => key(await counted.generate(id, type)),
    async find(id) {
      const held = await counted.find(id);
      return held && key(held);
    },
    list: async () => (await counted.list()).map(key),
  };
  return new Proxy(counted, {
    get: (target, name) => Reflect.get(Object.hasOwn(giving, name) ? giving : target, name),
  });
}
