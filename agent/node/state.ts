import { open } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { decodePem, encodePem } from "../../src/crypto/pem.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { writePrivateFile } from "../../src/runtime/files.ts";

/** What an agent keeps between runs, apart from its keys. Certificates are DER; empty lists mean there is none. */
export interface AgentData {
  /** Leaf first. */
  readonly svid: readonly Uint8Array[];
  /** X.509 authorities of the own trust domain. */
  readonly bundle: readonly Uint8Array[];
  /** Of that bundle; agents of SPIRE do not keep it. */
  readonly bundleSequence?: bigint | undefined;
  /** Subject key identifiers of the authorities in it that are tainted, hex; as above. */
  readonly tainted?: readonly string[] | undefined;
  readonly reattestable: boolean;
  /** Fingerprint of the key that an attestation under way is for; a token may be bound to it. Not in SPIRE's file. */
  readonly attestingKey?: string | undefined;
}

/** Members of the file that are kept for SPIRE's agent: how it came to trust the server. */
interface BootstrapState {
  readonly bootstrap_use: number;
  readonly bootstrap_start_time: string;
  readonly connection_attempts: number;
}

const MAX_FILE_BYTES = 4 * 1024 * 1024;
const LABEL = "CERTIFICATE";
/** Go's zero time. */
const NEVER = "0001-01-01T00:00:00Z";
const FRESH: BootstrapState = { bootstrap_use: 0, bootstrap_start_time: NEVER, connection_attempts: 0 };
/** As SPIRE numbers it: the bundle came from the server and replaces the bootstrap one. */
const BOOTSTRAPPED: BootstrapState = { bootstrap_use: 2, bootstrap_start_time: NEVER, connection_attempts: 0 };

const certificates = v.pipe(
  v.nullable(v.array(v.string())),
  v.transform((texts) => (texts ?? []).map(decodeCertificate)),
);
const AgentFile = v.object({
  svid: certificates,
  bundle: certificates,
  reattestable: v.optional(v.boolean(), false),
  attesting_key: v.optional(v.string()),
  bundle_sequence: v.optional(
    v.pipe(
      v.string(),
      v.regex(/^\d{1,20}$/),
      v.transform((text) => BigInt(text)),
    ),
  ),
  tainted: v.optional(v.array(v.string())),
  bootstrap_use: v.optional(v.number(), 0),
  bootstrap_start_time: v.optional(v.string(), NEVER),
  connection_attempts: v.optional(v.number(), 0),
});

/**
 * `agent-data.json` in the data directory, byte for byte of SPIRE's form, so that either agent can take over the
 * other's directory. Replaced atomically; a reader never sees half of it.
 */
export class AgentState {
  readonly #path: string;
  #data: AgentData;
  #bootstrap: BootstrapState;
  #writes: Promise<void> = Promise.resolve();

  private constructor(path: string, data: AgentData, bootstrap: BootstrapState) {
    this.#path = path;
    this.#data = data;
    this.#bootstrap = bootstrap;
  }

  /** Throws `precondition` when the file is damaged: an SVID is not thrown away unasked. */
  static async load(dataDir: string): Promise<AgentState> {
    const path = join(dataDir, "agent-data.json");
    const text = await readCapped(path);
    if (text === undefined) return new AgentState(path, { svid: [], bundle: [], reattestable: false }, FRESH);
    try {
      const { svid, bundle, reattestable, ...rest } = v.parse(AgentFile, JSON.parse(text));
      const { attesting_key: attestingKey, bundle_sequence: bundleSequence, tainted, ...bootstrap } = rest;
      return new AgentState(path, { svid, bundle, reattestable, attestingKey, bundleSequence, tainted }, bootstrap);
    } catch (error) {
      throw new Fault("precondition", `agent data file ${path} is damaged: ${messageOf(error)}`, {
        code: "agent-data-damaged",
        hint: "restore it from a backup, or remove it so that the agent attests anew (a join token is good for one attestation only)",
        cause: error,
      });
    }
  }

  get data(): AgentData {
    return this.#data;
  }

  /** Resolves when the change is on disk. Changes are written in the order in which they are made. */
  update(change: Partial<AgentData>): Promise<void> {
    this.#data = { ...this.#data, ...change };
    if (this.#data.bundle.length > 0) this.#bootstrap = BOOTSTRAPPED;
    const content = encode(this.#data, this.#bootstrap);
    this.#writes = this.#writes.catch(() => undefined).then(() => writePrivateFile(this.#path, content));
    return this.#writes;
  }

  deleteSvid(): Promise<void> {
    return this.update({ svid: [], reattestable: false, attestingKey: undefined });
  }
}

function encode(data: AgentData, bootstrap: BootstrapState): string {
  const { svid, bundle, reattestable, attestingKey, bundleSequence, tainted } = data;
  const { bootstrap_use, bootstrap_start_time, connection_attempts } = bootstrap;
  const file = {
    svid: encodeAll(svid),
    bundle: encodeAll(bundle),
    reattestable,
    bootstrap_use,
    bootstrap_start_time,
    connection_attempts,
    attesting_key: attestingKey,
    bundle_sequence: bundleSequence?.toString(),
    tainted: tainted?.length === 0 ? undefined : tainted,
  };
  return JSON.stringify(file);
}

/** Base64 of PEM: that is how SPIRE's file has it. */
function encodeAll(ders: readonly Uint8Array[]): readonly string[] | null {
  return ders.length === 0 ? null : ders.map((der) => Buffer.from(encodePem(LABEL, der)).toString("base64"));
}

function decodeCertificate(text: string): Uint8Array {
  const found = decodePem(Buffer.from(text, "base64").toString("latin1"), LABEL);
  const der = found[0];
  if (der === undefined || found.length > 1) throw new Fault("invalid", "expected one PEM certificate for each item");
  return parseCertificate(der).raw;
}

async function readCapped(path: string): Promise<string | undefined> {
  try {
    await using file = await open(path, "r");
    const { size } = await file.stat();
    if (size > MAX_FILE_BYTES)
      throw new Fault("precondition", `agent data file ${path} is larger than 4 MiB`, { code: "agent-data-damaged" });
    return await file.readFile("utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    if (error instanceof Fault) throw error;
    throw new Fault("unavailable", `unable to read ${path}: ${messageOf(error)}`, { code: "file-error", cause: error });
  }
}
