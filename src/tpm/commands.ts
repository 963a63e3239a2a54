import { Fault } from "../runtime/fault.ts";
import { ALG, encodeSelection, type PcrSelection, readSelections } from "./structures.ts";
import { sized, TpmReader, u8, u16, u32 } from "./wire.ts";

/** Sends one command and resolves with the reply. Never two at a time. */
export type Exchange = (command: Uint8Array) => Promise<Uint8Array>;

export const HANDLE = {
  owner: 0x40000001,
  null: 0x40000007,
  password: 0x40000009,
  endorsement: 0x4000000b,
  platform: 0x4000000c,
} as const;

const COMMAND = {
  startup: 0x144,
  getCapability: 0x17a,
  createPrimary: 0x131,
  create: 0x153,
  load: 0x157,
  readPublic: 0x173,
  flushContext: 0x165,
  startAuthSession: 0x176,
  policySecret: 0x151,
  activateCredential: 0x147,
  certify: 0x148,
  certifyCreation: 0x14a,
  quote: 0x158,
  sign: 0x15d,
  pcrRead: 0x17e,
  pcrExtend: 0x182,
  nvReadPublic: 0x169,
  nvRead: 0x14e,
  nvDefineSpace: 0x12a,
  nvWrite: 0x137,
} as const;

const NO_SESSIONS = 0x8001;
const SESSIONS = 0x8002;
/** "Try again": the first command that needs a slow self test. */
const RETRY = 0x922;
const MOST_TRIES = 20;
const NV_CHUNK = 512;
/** TPM2_PCR_Read answers at most so many. */
const PCR_CHUNK = 8;
const NULL_SCHEME = u16(ALG.null);

interface Call {
  readonly code: number;
  readonly handles?: readonly number[];
  /** One password per handle that needs authorization, or a policy session. */
  readonly auths?: readonly (string | Uint8Array | { readonly session: number })[];
  readonly parameters?: readonly Uint8Array[];
  /** The reply has a handle before its parameters. */
  readonly returnsHandle?: boolean;
}

interface Reply {
  readonly handle: number;
  readonly reader: TpmReader;
}

export interface CreatedKey {
  readonly privateBlob: Uint8Array;
  /** TPMT_PUBLIC. */
  readonly publicArea: Uint8Array;
  readonly creationData: Uint8Array;
  readonly creationHash: Uint8Array;
  readonly ticket: Uint8Array;
}

export interface Signed {
  /** TPMS_ATTEST. */
  readonly attested: Uint8Array;
  /** TPMT_SIGNATURE. */
  readonly signature: Uint8Array;
}

/** The commands that attestation needs, as functions. What a TPM refuses is `precondition`, with its code. */
export class Tpm {
  readonly #exchange: Exchange;

  constructor(exchange: Exchange) {
    this.#exchange = exchange;
  }

  /** Handles of this type: 0x80 transient objects, 0x81 persistent ones, 0x02 loaded sessions. */
  async handles(type: number): Promise<readonly number[]> {
    const parameters = [u32(1), u32((type << 24) >>> 0), u32(64)];
    const { reader } = await this.#call({ code: COMMAND.getCapability, parameters });
    reader.take(5);
    return Array.from({ length: reader.u32() }, () => reader.u32());
  }

  /** A property of the fixed group, such as 0x105, the manufacturer. */
  async property(property: number): Promise<Uint8Array> {
    const { reader } = await this.#call({ code: COMMAND.getCapability, parameters: [u32(6), u32(property), u32(1)] });
    reader.take(5);
    return reader.u32() === 0 || reader.u32() !== property ? Buffer.alloc(0) : reader.take(4);
  }

  async createPrimary(
    hierarchy: number,
    template: Uint8Array,
    passwords: { hierarchy?: string; key?: Uint8Array } = {},
  ) {
    const { handle, reader } = await this.#call({
      code: COMMAND.createPrimary,
      handles: [hierarchy],
      auths: [passwords.hierarchy ?? ""],
      parameters: creation(template, passwords.key),
      returnsHandle: true,
    });
    return { handle, publicArea: reader.sized() };
  }

  async create(
    parent: number,
    template: Uint8Array,
    passwords: { parent?: Uint8Array; key?: Uint8Array } = {},
  ): Promise<CreatedKey> {
    const { reader } = await this.#call({
      code: COMMAND.create,
      handles: [parent],
      auths: [passwords.parent ?? ""],
      parameters: creation(template, passwords.key),
    });
    const [privateBlob, publicArea, creationData, creationHash] = [1, 2, 3, 4].map(() => reader.sized()) as [
      Buffer,
      Buffer,
      Buffer,
      Buffer,
    ];
    const ticket = Buffer.concat([reader.take(6), sized(reader.sized())]);
    return { privateBlob, publicArea, creationData, creationHash, ticket };
  }

  async load(
    parent: number,
    key: Pick<CreatedKey, "privateBlob" | "publicArea">,
    password: string | Uint8Array = "",
  ): Promise<number> {
    const parameters = [sized(key.privateBlob), sized(key.publicArea)];
    const call = { code: COMMAND.load, handles: [parent], auths: [password], parameters, returnsHandle: true };
    return (await this.#call(call)).handle;
  }

  async readPublic(handle: number): Promise<Uint8Array> {
    return (await this.#call({ code: COMMAND.readPublic, handles: [handle] })).reader.sized();
  }

  async flush(handle: number): Promise<void> {
    await this.#call({ code: COMMAND.flushContext, parameters: [u32(handle)] });
  }

  certify(
    object: number,
    key: number,
    passwords: { object?: string | Uint8Array; key?: Uint8Array } = {},
  ): Promise<Signed> {
    const auths = [passwords.object ?? "", passwords.key ?? ""];
    const parameters = [sized(), NULL_SCHEME];
    return this.#attest({ code: COMMAND.certify, handles: [object, key], auths, parameters });
  }

  certifyCreation(object: number, { creationHash, ticket }: CreatedKey): Promise<Signed> {
    const parameters = [sized(), sized(creationHash), NULL_SCHEME, ticket];
    return this.#attest({ code: COMMAND.certifyCreation, handles: [object, object], auths: [""], parameters });
  }

  quote(key: number, nonce: Uint8Array, selection: PcrSelection): Promise<Signed> {
    const parameters = [sized(nonce), NULL_SCHEME, encodeSelection(selection)];
    return this.#attest({ code: COMMAND.quote, handles: [key], auths: [""], parameters });
  }

  /** TPMT_SIGNATURE over a digest, by an unrestricted key's own scheme. */
  async sign(key: number, digest: Uint8Array, password: string | Uint8Array = ""): Promise<Uint8Array> {
    const ticket = Buffer.concat([u16(0x8024), u32(HANDLE.null), sized()]);
    const parameters = [sized(digest), NULL_SCHEME, ticket];
    return (await this.#call({ code: COMMAND.sign, handles: [key], auths: [password], parameters })).reader.rest();
  }

  /** What MakeCredential wrapped for this endorsement key and this attestation key. */
  async activateCredential(
    keys: { readonly attestation: number; readonly endorsement: number },
    challenge: { readonly blob: Uint8Array; readonly secret: Uint8Array },
    passwords: { readonly attestation?: Uint8Array; readonly endorsementHierarchy?: string } = {},
  ): Promise<Uint8Array> {
    const session = await this.#endorsementSession(passwords.endorsementHierarchy ?? "");
    try {
      const { reader } = await this.#call({
        code: COMMAND.activateCredential,
        handles: [keys.attestation, keys.endorsement],
        auths: [passwords.attestation ?? "", { session }],
        parameters: [sized(challenge.blob), sized(challenge.secret)],
      });
      return reader.sized();
    } catch (error) {
      // A session that was used is gone by itself.
      await this.flush(session).catch(() => undefined);
      throw error;
    }
  }

  async #endorsementSession(password: string): Promise<number> {
    const parameters = [sized(Buffer.alloc(16)), sized(), u8(1), u16(ALG.null), u16(ALG.sha256)];
    const handles = [HANDLE.null, HANDLE.null];
    const { handle } = await this.#call({ code: COMMAND.startAuthSession, handles, parameters, returnsHandle: true });
    await this.#call({
      code: COMMAND.policySecret,
      handles: [HANDLE.endorsement, handle],
      auths: [password],
      parameters: [sized(), sized(), sized(), u32(0)],
    });
    return handle;
  }

  /** Undefined when the TPM does not have the bank. */
  async pcrRead({ hash, pcrs }: PcrSelection): Promise<readonly Uint8Array[] | undefined> {
    const values: Uint8Array[] = [];
    for (let at = 0; at < pcrs.length; at += PCR_CHUNK) {
      const wanted = pcrs.slice(at, at + PCR_CHUNK);
      const parameters = [encodeSelection({ hash, pcrs: wanted })];
      const { reader } = await this.#call({ code: COMMAND.pcrRead, parameters });
      reader.u32();
      if (readSelections(reader)[0]?.pcrs.join() !== wanted.join()) return undefined;
      const count = reader.u32();
      values.push(...Array.from({ length: count }, () => Buffer.from(reader.sized())));
    }
    return values;
  }

  async pcrExtend(pcr: number, digest: Uint8Array): Promise<void> {
    const parameters = [u32(1), u16(ALG.sha256), digest];
    await this.#call({ code: COMMAND.pcrExtend, handles: [pcr], auths: [""], parameters });
  }

  /** Undefined when there is nothing at the index. */
  async nvRead(index: number): Promise<Uint8Array | undefined> {
    if (!(await this.handles(0x01)).includes(index)) return undefined;
    const { reader } = await this.#call({ code: COMMAND.nvReadPublic, handles: [index] });
    const area = new TpmReader(reader.sized());
    area.take(10);
    area.sized();
    const size = area.u16();
    const parts: Buffer[] = [];
    for (let at = 0; at < size; at += NV_CHUNK) {
      const parameters = [u16(Math.min(NV_CHUNK, size - at)), u16(at)];
      const call = { code: COMMAND.nvRead, handles: [index, index], auths: [""], parameters };
      parts.push((await this.#call(call)).reader.sized());
    }
    return Buffer.concat(parts);
  }

  /** As a maker does: readable by everyone, writable by the platform. For simulators. */
  async nvProvision(index: number, data: Uint8Array): Promise<void> {
    const area = [u32(index), u16(ALG.sha256), u32(0x42070001), sized(), u16(data.length)];
    const define = [sized(), sized(...area)];
    await this.#call({ code: COMMAND.nvDefineSpace, handles: [HANDLE.platform], auths: [""], parameters: define });
    for (let at = 0; at < data.length; at += NV_CHUNK) {
      const parameters = [sized(data.subarray(at, at + NV_CHUNK)), u16(at)];
      await this.#call({ code: COMMAND.nvWrite, handles: [HANDLE.platform, index], auths: [""], parameters });
    }
  }

  async #attest(call: Call): Promise<Signed> {
    const { reader } = await this.#call(call);
    return { attested: reader.sized(), signature: reader.rest() };
  }

  async #call(call: Call): Promise<Reply> {
    const command = encode(call);
    for (let tries = 1; ; tries += 1) {
      const reader = new TpmReader(await this.#exchange(command));
      const tag = reader.u16();
      reader.u32();
      const code = reader.u32();
      if (code === RETRY && tries < MOST_TRIES) continue;
      if (code !== 0) throw refusedBy(call.code, code);
      const handle = call.returnsHandle === true ? reader.u32() : 0;
      return { handle, reader: tag === SESSIONS ? new TpmReader(reader.take(reader.u32())) : reader };
    }
  }
}

function creation(template: Uint8Array, password: Uint8Array = new Uint8Array()): readonly Uint8Array[] {
  return [sized(sized(password), sized()), sized(template), sized(), u32(0)];
}

function encode({ code, handles = [], auths = [], parameters = [] }: Call): Buffer {
  const area = Buffer.concat(auths.map(authorization));
  const body = Buffer.concat([
    ...handles.map(u32),
    ...(auths.length === 0 ? [] : [u32(area.length), area]),
    ...parameters,
  ]);
  return Buffer.concat([u16(auths.length === 0 ? NO_SESSIONS : SESSIONS), u32(10 + body.length), u32(code), body]);
}

function authorization(auth: string | Uint8Array | { readonly session: number }): Buffer {
  if (typeof auth === "object" && "session" in auth) return Buffer.concat([u32(auth.session), sized(), u8(0), sized()]);
  return Buffer.concat([u32(HANDLE.password), sized(), u8(1), sized(Buffer.from(auth as string | Buffer))]);
}

function refusedBy(command: number, code: number): Fault {
  const name = Object.entries(COMMAND).find(([, number]) => number === command)?.[0] ?? "command";
  return new Fault("precondition", `the TPM refused ${name}: code 0x${code.toString(16)}`, {
    code: "tpm-refused-command",
  });
}
