import { createHash, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { systemClock } from "../../src/runtime/clock.ts";

const ROLES = ["root", "timestamp", "snapshot", "targets"] as const;
type Role = (typeof ROLES)[number];
type Json = Readonly<Record<string, unknown>>;
const DAY_MS = 86_400_000;

/** A repository by The Update Framework (1.0) with consistent snapshots, as Sigstore publishes its trusted root. */
export class TufDouble implements AsyncDisposable {
  /** Paths of every request. */
  readonly requests: string[] = [];
  /** Answers nothing but 503. */
  isAway = false;
  readonly #server: Server;
  readonly #files = new Map<string, Buffer>();
  readonly #keys = new Map<Role, { readonly id: string; readonly key: KeyObject; readonly value: Json }>();
  #version = 0;

  private constructor() {
    for (const role of ROLES) {
      const { publicKey, privateKey } = generateKeyPairSync("ed25519");
      const hex = publicKey.export({ format: "der", type: "spki" }).subarray(-32).toString("hex");
      const value = { keytype: "ed25519", scheme: "ed25519", keyval: { public: hex } };
      this.#keys.set(role, { id: sha256(canonical(value)), key: privateKey, value });
    }
    this.#server = createServer(({ url = "" }, response) => {
      this.requests.push(url);
      const found = this.#files.get(url);
      if (this.isAway) response.writeHead(503).end();
      else if (found === undefined) response.writeHead(404).end();
      else response.writeHead(200).end(found);
    });
  }

  static async open(): Promise<TufDouble> {
    const tuf = new TufDouble();
    tuf.#server.listen(0, "127.0.0.1");
    await once(tuf.#server, "listening");
    return tuf;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/tuf`;
  }

  /** `root.json`, which clients begin with. */
  get root(): Buffer {
    const keys = Object.fromEntries([...this.#keys.values()].map(({ id, value }) => [id, value]));
    const roles = Object.fromEntries([...this.#keys].map(([role, { id }]) => [role, { keyids: [id], threshold: 1 }]));
    return this.#signed("root", { version: 1, consistent_snapshot: true, keys, roles });
  }

  /** Publishes the next version of one target. */
  publish(name: string, content: Buffer, { expiresInMs = DAY_MS }: { readonly expiresInMs?: number } = {}): void {
    this.#version += 1;
    const version = this.#version;
    const hash = sha256(content);
    const rest = { version, expiresInMs };
    const targets = this.#signed("targets", {
      ...rest,
      targets: { [name]: { length: content.length, hashes: { sha256: hash } } },
    });
    const snapshot = this.#signed("snapshot", { ...rest, meta: { "targets.json": { version } } });
    const timestamp = this.#signed("timestamp", { ...rest, meta: { "snapshot.json": { version } } });
    this.put(`/${version}.targets.json`, targets);
    this.put(`/${version}.snapshot.json`, snapshot);
    this.put("/timestamp.json", timestamp);
    this.put(`/targets/${hash}.${name}`, content);
  }

  /** Puts a file there, whatever it is. */
  put(path: string, content: Buffer): void {
    this.#files.set(`/tuf${path}`, content);
  }

  fileAt(path: string): Buffer {
    return this.#files.get(`/tuf${path}`) ?? Buffer.alloc(0);
  }

  /** Where the target's bytes are. */
  targetPath(name: string): string {
    const found = [...this.#files.keys()].find((path) => path.endsWith(`.${name}`) && path.startsWith("/tuf/targets/"));
    return found?.slice("/tuf".length) ?? "";
  }

  #signed(role: Role, { expiresInMs = DAY_MS, ...fields }: Json & { readonly expiresInMs?: number }): Buffer {
    const { id, key } = this.#keys.get(role) ?? {};
    if (id === undefined || key === undefined) throw new Error(`no key for ${role}`);
    const expires = new Date(systemClock.now().getTime() + expiresInMs).toISOString().replace(/\.\d+Z$/, "Z");
    const signed = { _type: role, spec_version: "1.0.31", expires, ...fields };
    const sig = sign(null, Buffer.from(canonical(signed)), key).toString("hex");
    return Buffer.from(JSON.stringify({ signed, signatures: [{ keyid: id, sig }] }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}

/** OLPC's canonical JSON, of what has no sign to escape. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonical(item)}`).join(",")}}`;
}

function sha256(content: Buffer | string): string {
  return createHash("sha256").update(content).digest("hex");
}
