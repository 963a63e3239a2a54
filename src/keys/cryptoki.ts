import koffi from "koffi";
import { Fault } from "../runtime/fault.ts";

/** One attribute of a PKCS#11 object: its number and its bytes. */
export type Attribute = readonly [type: number, value: Uint8Array];

/** A PKCS#11 module as far as keys that sign need it. Calls throw a `Fault`. 64-bit Linux. */
export interface Cryptoki extends Disposable {
  /** Slots that hold a token, with the token's label. */
  tokens(): readonly { readonly slot: bigint; readonly label: string }[];
  openSession(slot: bigint): bigint;
  closeSession(session: bigint): void;
  /** Counts for all sessions of the process with the token. */
  login(session: bigint, pin: string): void;
  /** Handles of the public and the private key. Takes long for RSA, and runs beside the event loop. */
  generateKeyPair(session: bigint, mechanism: number, templates: readonly [Attributes, Attributes]): Promise<void>;
  find(session: bigint, template: Attributes): readonly bigint[];
  read(session: bigint, object: bigint, type: number): Uint8Array;
  destroy(session: bigint, object: bigint): void;
  sign(session: bigint, request: SignRequest): Promise<Uint8Array>;
}

export type Attributes = readonly Attribute[];

export interface SignRequest {
  readonly key: bigint;
  readonly mechanism: number;
  readonly data: Uint8Array;
}

const OK = 0;
const USER_ALREADY_LOGGED_IN = 0x100;
const CRYPTOKI_ALREADY_INITIALIZED = 0x191;
const OS_LOCKING_OK = 2n;
/** Serial, as all sessions are, and able to write. */
const SESSION_FLAGS = 6;
const USER = 1;
const ATTRIBUTE_BYTES = 24;
const MOST_VALUE_BYTES = 4096;
const MOST_OBJECTS = 1024;
const LABEL_BYTES = 32;
const TOKEN_INFO_BYTES = 208;

/** Throws `invalid` when the library can't be loaded. */
export function loadCryptoki(path: string): Cryptoki {
  const call = functionsOf(path);
  const initialization = Buffer.alloc(48);
  initialization.writeBigUInt64LE(OS_LOCKING_OK, 32);
  check("C_Initialize", call.initialize(initialization), CRYPTOKI_ALREADY_INITIALIZED);
  return {
    tokens() {
      const count = [BigInt(MOST_OBJECTS)];
      const slots = Buffer.alloc(8 * MOST_OBJECTS);
      check("C_GetSlotList", call.slotList(1, slots, count));
      return handlesIn(slots, count[0]).map((slot) => {
        const info = Buffer.alloc(TOKEN_INFO_BYTES);
        check("C_GetTokenInfo", call.tokenInfo(slot, info));
        return { slot, label: info.toString("utf8", 0, LABEL_BYTES).trimEnd() };
      });
    },
    openSession(slot) {
      const session = [0n];
      check("C_OpenSession", call.openSession(slot, SESSION_FLAGS, null, null, session));
      return BigInt(session[0] ?? 0);
    },
    closeSession: (session) => void call.closeSession(session),
    login(session, pin) {
      const bytes = Buffer.from(pin);
      check("C_Login", call.login(session, USER, bytes, bytes.length), USER_ALREADY_LOGGED_IN);
    },
    async generateKeyPair(session, mechanism, [forPublic, forPrivate]) {
      using own = packed(forPublic);
      using secret = packed(forPrivate);
      const handles = [[0n], [0n]];
      const code = await inBackground(call.generateKeyPair, [
        ...[session, mechanismOf(mechanism), own.bytes, forPublic.length],
        ...[secret.bytes, forPrivate.length, handles[0], handles[1]],
      ]);
      check("C_GenerateKeyPair", code);
    },
    find(session, template) {
      using attributes = packed(template);
      check("C_FindObjectsInit", call.findInit(session, attributes.bytes, template.length));
      const found = Buffer.alloc(8 * MOST_OBJECTS);
      const count = [0n];
      const code = call.findObjects(session, found, MOST_OBJECTS, count);
      call.findFinal(session);
      check("C_FindObjects", code);
      return handlesIn(found, count[0]);
    },
    read(session, object, type) {
      using attribute = packed([[type, new Uint8Array(MOST_VALUE_BYTES)]]);
      check("C_GetAttributeValue", call.attributeValue(session, object, attribute.bytes, 1));
      return attribute.value(Number(attribute.bytes.readBigUInt64LE(16)));
    },
    destroy: (session, object) => check("C_DestroyObject", call.destroy(session, object)),
    async sign(session, { key, mechanism, data }) {
      check("C_SignInit", call.signInit(session, mechanismOf(mechanism), key));
      const signature = Buffer.alloc(MOST_VALUE_BYTES);
      const length = [BigInt(signature.length)];
      const code = await inBackground(call.sign, [session, Buffer.from(data), data.length, signature, length]);
      check("C_Sign", code);
      return Uint8Array.from(signature.subarray(0, Number(length[0])));
    },
    [Symbol.dispose]: () => void call.finalize(null),
  };
}

type Foreign = ((...args: unknown[]) => number) & { async(...args: unknown[]): void };

const HANDLE = "uint64_t";
const IN = "uint8_t *";
const OUT = "_Inout_ uint8_t *";
const COUNT = "_Inout_ uint64_t *";

function functionsOf(path: string) {
  const library = opened(path);
  const define = (name: string, ...args: readonly string[]): Foreign =>
    library.func(`uint64_t ${name}(${args.join(", ")})`) as unknown as Foreign;
  return {
    initialize: define("C_Initialize", OUT),
    finalize: define("C_Finalize", "void *"),
    slotList: define("C_GetSlotList", "uint8_t", OUT, COUNT),
    tokenInfo: define("C_GetTokenInfo", HANDLE, OUT),
    openSession: define("C_OpenSession", HANDLE, HANDLE, "void *", "void *", COUNT),
    closeSession: define("C_CloseSession", HANDLE),
    login: define("C_Login", HANDLE, HANDLE, IN, HANDLE),
    generateKeyPair: define("C_GenerateKeyPair", HANDLE, IN, IN, HANDLE, IN, HANDLE, COUNT, COUNT),
    findInit: define("C_FindObjectsInit", HANDLE, IN, HANDLE),
    findObjects: define("C_FindObjects", HANDLE, OUT, HANDLE, COUNT),
    findFinal: define("C_FindObjectsFinal", HANDLE),
    attributeValue: define("C_GetAttributeValue", HANDLE, HANDLE, OUT, HANDLE),
    destroy: define("C_DestroyObject", HANDLE, HANDLE),
    signInit: define("C_SignInit", HANDLE, IN, HANDLE),
    sign: define("C_Sign", HANDLE, IN, HANDLE, OUT, COUNT),
  };
}

function opened(path: string): ReturnType<typeof koffi.load> {
  try {
    return koffi.load(path);
  } catch (cause) {
    throw new Fault("invalid", `cannot load the PKCS#11 module ${path}`, {
      code: "pkcs11-module",
      hint: "name the module's shared library, such as /usr/lib/softhsm/libsofthsm2.so",
      cause,
    });
  }
}

/** A CK_MECHANISM without parameter. */
function mechanismOf(mechanism: number): Buffer {
  const bytes = Buffer.alloc(24);
  bytes.writeBigUInt64LE(BigInt(mechanism), 0);
  return bytes;
}

interface Packed extends Disposable {
  /** CK_ATTRIBUTE after CK_ATTRIBUTE. */
  readonly bytes: Buffer;
  /** So many bytes of the first value, as they are now. */
  value(length: number): Uint8Array;
}

/** The structures hold addresses, so the values stand in memory that does not move. */
function packed(attributes: Attributes): Packed {
  const size = attributes.reduce((sum, [, value]) => sum + value.length, 0);
  const memory = koffi.alloc("uint8_t", Math.max(1, size));
  const bytes = Buffer.alloc(ATTRIBUTE_BYTES * attributes.length);
  const all = Buffer.concat(attributes.map(([, value]) => value));
  if (size > 0) koffi.encode(memory, koffi.array("uint8_t", size), all);
  let address = koffi.address(memory);
  for (const [index, [type, value]] of attributes.entries()) {
    bytes.writeBigUInt64LE(BigInt(type), ATTRIBUTE_BYTES * index);
    bytes.writeBigUInt64LE(address, ATTRIBUTE_BYTES * index + 8);
    bytes.writeBigUInt64LE(BigInt(value.length), ATTRIBUTE_BYTES * index + 16);
    address += BigInt(value.length);
  }
  return {
    bytes,
    value: (length) => Uint8Array.from(koffi.decode(memory, koffi.array("uint8_t", length)) as Uint8Array),
    [Symbol.dispose]: () => koffi.free(memory),
  };
}

function handlesIn(bytes: Buffer, count: bigint | number | undefined): readonly bigint[] {
  return Array.from({ length: Number(count ?? 0) }, (_, index) => bytes.readBigUInt64LE(8 * index));
}

/** Koffi's worker threads; the event loop goes on. */
function inBackground(call: Foreign, args: readonly unknown[]): Promise<number> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error: Error | null, code: number) => (error === null ? resolve(code) : reject(error)));
  });
}

/** The names of those that people meet. */
const CODES: Readonly<Record<number, string>> = {
  [0x30]: "CKR_DEVICE_ERROR",
  [0x31]: "CKR_DEVICE_MEMORY",
  [0x32]: "CKR_DEVICE_REMOVED",
  [0xa0]: "CKR_PIN_INCORRECT",
  [0xa4]: "CKR_PIN_LOCKED",
  [0xb3]: "CKR_SESSION_HANDLE_INVALID",
  [0xe0]: "CKR_TOKEN_NOT_PRESENT",
  [0x101]: "CKR_USER_NOT_LOGGED_IN",
};
const PIN_CODES: ReadonlySet<number> = new Set([0xa0, 0xa1, 0xa2, 0xa4]);

function check(name: string, result: number | bigint, allowed = OK): void {
  const code = Number(result);
  if (code === OK || code === allowed) return;
  const shown = CODES[code] ?? `0x${code.toString(16)}`;
  throw new Fault(PIN_CODES.has(code) ? "invalid" : "unavailable", `${name} failed: ${shown}`, {
    code: "pkcs11",
    hint: "see the token, its PIN and the module's own log",
  });
}
