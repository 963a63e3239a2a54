import { createHash, createPublicKey, randomBytes } from "node:crypto";
import { DerReader, TAG } from "../crypto/der.ts";
import { encodeOid, encodeUnsigned, sequence } from "../crypto/der-writer.ts";
import { type KeyType, SIGNING_HASH } from "../crypto/key.ts";
import { Fault } from "../runtime/fault.ts";
import { type Attribute, type Attributes, type Cryptoki, loadCryptoki } from "./cryptoki.ts";
import type { KeyManager, ManagedKey } from "./keys.ts";

export interface Pkcs11Options {
  /** Path of the module's shared library. */
  readonly module: string;
  readonly tokenLabel: string;
  readonly pin: string;
  /** Goes before the names of keys, so that servers can share a token. */
  readonly keyPrefix: string;
}

/* Numbers of PKCS #11 v2.40. */
const CKA = {
  class: 0x00,
  token: 0x01,
  private: 0x02,
  label: 0x03,
  keyType: 0x100,
  id: 0x102,
  sensitive: 0x103,
  sign: 0x108,
  verify: 0x10a,
  modulus: 0x120,
  modulusBits: 0x121,
  publicExponent: 0x122,
  extractable: 0x162,
  ecParams: 0x180,
  ecPoint: 0x181,
} as const;
const PUBLIC_KEY = 2;
const PRIVATE_KEY = 3;

interface Mechanisms {
  readonly generate: number;
  readonly sign: number;
  /** Of the public key to be made. */
  readonly parameters: () => Attributes;
}

const EC = { generate: 0x1040, sign: 0x1041 } as const;
const RSA = { generate: 0x00, sign: 0x40 } as const;
const CURVES = { "ec-p256": "1.2.840.10045.3.1.7", "ec-p384": "1.3.132.0.34" } as const;
const COORDINATE_BYTES = { "ec-p256": 32, "ec-p384": 48 } as const;

const MECHANISMS: Readonly<Record<KeyType, Mechanisms>> = {
  "ec-p256": { ...EC, parameters: () => [[CKA.ecParams, encodeOid(CURVES["ec-p256"])]] },
  "ec-p384": { ...EC, parameters: () => [[CKA.ecParams, encodeOid(CURVES["ec-p384"])]] },
  "rsa-2048": { ...RSA, parameters: () => rsaParameters(2048) },
  "rsa-4096": { ...RSA, parameters: () => rsaParameters(4096) },
};

/** Sessions that sign side by side. */
const SESSIONS = 4;

/**
 * Keys in a token that they never leave: made there, not extractable. A token that is away makes calls fail with
 * `unavailable`; sessions are opened anew when it is back. Throws `invalid` for a module or PIN that is wrong.
 */
export async function openPkcs11Keys(options: Pkcs11Options): Promise<KeyManager> {
  const token = new Token(options);
  token.connect();
  // SoftHSM fails key pairs that are made side by side, and making one is rare.
  let made: Promise<unknown> = Promise.resolve();
  const make = (id: string, type: KeyType): Promise<void> => {
    const next = made.then(() => token.use((session) => token.make(session, labelOf(id), type)));
    made = next.catch(() => undefined);
    return next;
  };
  const labelOf = (id: string): string => `${options.keyPrefix}${id}`;
  const find = async (id: string): Promise<ManagedKey | undefined> => {
    const [newest] = await token.use(async (session) => token.keys(session, labelOf(id)));
    return newest === undefined ? undefined : managed(token, id, newest);
  };
  return {
    find,
    async generate(id, type) {
      await make(id, type);
      const key = await find(id);
      if (key === undefined) throw new Fault("unavailable", "the token has lost the key that it just made");
      return key;
    },
    async list() {
      const ids = await token.use(async (session) => token.labels(session, options.keyPrefix));
      const found = await Promise.all(ids.map(find));
      return found.filter((key) => key !== undefined);
    },
    async [Symbol.asyncDispose]() {
      token[Symbol.dispose]();
    },
  };
}

interface TokenKey {
  readonly id: Uint8Array;
  readonly keyType: KeyType;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
}

function managed(token: Token, id: string, { id: keyId, keyType, publicKey }: TokenKey): ManagedKey {
  return {
    id,
    keyType,
    publicKey,
    sign: (data) => token.use((session) => token.sign(session, { keyId, keyType, data })),
  };
}

/** One token with a few sessions, which callers take in turn. */
class Token implements Disposable {
  readonly #options: Pkcs11Options;
  readonly #cryptoki: Cryptoki;
  #free: bigint[] = [];
  #opened = 0;
  readonly #waiting: ((session: bigint | undefined) => void)[] = [];

  constructor(options: Pkcs11Options) {
    this.#options = options;
    this.#cryptoki = loadCryptoki(options.module);
  }

  /** Throws `unavailable` without the token. */
  connect(): void {
    this.#free.push(this.#open());
  }

  /** Lends a session. One that failed is not used again. */
  async use<T>(work: (session: bigint) => Promise<T>): Promise<T> {
    const session = await this.#take();
    try {
      const result = await work(session);
      this.#give(session);
      return result;
    } catch (error) {
      this.#drop(session);
      throw error;
    }
  }

  async make(session: bigint, label: string, type: KeyType): Promise<void> {
    const before = this.keys(session, label);
    const { generate, parameters } = MECHANISMS[type];
    const common: Attributes = [
      [CKA.token, TRUE],
      [CKA.label, Buffer.from(label)],
      [CKA.id, newId()],
    ];
    const forPublic: Attributes = [...common, [CKA.verify, TRUE], ...parameters()];
    const secret: Attributes = [
      [CKA.private, TRUE],
      [CKA.sensitive, TRUE],
      [CKA.extractable, FALSE],
      [CKA.sign, TRUE],
    ];
    await this.#cryptoki.generateKeyPair(session, generate, [forPublic, [...common, ...secret]]);
    // The one before may be about to sign still.
    for (const { id } of before.slice(1)) this.#destroy(session, id);
  }

  /** Public keys with the label, the newest first. */
  keys(session: bigint, label: string): readonly TokenKey[] {
    const template: Attributes = [
      [CKA.class, number(PUBLIC_KEY)],
      [CKA.label, Buffer.from(label)],
    ];
    return this.#cryptoki
      .find(session, template)
      .map((object) => this.#publicKey(session, object))
      .sort((a, b) => Buffer.compare(b.id, a.id));
  }

  labels(session: bigint, prefix: string): readonly string[] {
    const objects = this.#cryptoki.find(session, [[CKA.class, number(PUBLIC_KEY)]]);
    const labels = objects.map((object) => Buffer.from(this.#cryptoki.read(session, object, CKA.label)).toString());
    const ours = labels.filter((label) => label.startsWith(prefix)).map((label) => label.slice(prefix.length));
    return [...new Set(ours)].sort();
  }

  async sign(
    session: bigint,
    { keyId, keyType, data }: { readonly keyId: Uint8Array; readonly keyType: KeyType; readonly data: Uint8Array },
  ): Promise<Uint8Array> {
    const [key] = this.#cryptoki.find(session, [
      [CKA.class, number(PRIVATE_KEY)],
      [CKA.id, keyId],
    ]);
    if (key === undefined)
      throw new Fault("unavailable", "the token does not hold the private key any more", { code: "pkcs11-key-gone" });
    const isEc = keyType === "ec-p256" || keyType === "ec-p384";
    const input = isEc ? createHash(SIGNING_HASH[keyType]).update(data).digest() : data;
    const signature = await this.#cryptoki.sign(session, { key, mechanism: MECHANISMS[keyType].sign, data: input });
    return isEc ? derOf(signature) : signature;
  }

  [Symbol.dispose](): void {
    this.#cryptoki[Symbol.dispose]();
  }

  #destroy(session: bigint, id: Uint8Array): void {
    for (const kind of [PRIVATE_KEY, PUBLIC_KEY])
      for (const object of this.#cryptoki.find(session, [
        [CKA.class, number(kind)],
        [CKA.id, id],
      ]))
        this.#cryptoki.destroy(session, object);
  }

  #publicKey(session: bigint, object: bigint): TokenKey {
    const read = (type: number): Uint8Array => this.#cryptoki.read(session, object, type);
    const id = read(CKA.id);
    const isRsa = Buffer.from(read(CKA.keyType)).readBigUInt64LE() === 0n;
    return isRsa ? { id, ...rsaKey(read(CKA.modulus), read(CKA.publicExponent)) } : { id, ...ecKey(read(CKA.ecPoint)) };
  }

  #open(): bigint {
    const { tokenLabel, pin } = this.#options;
    const token = this.#cryptoki.tokens().find(({ label }) => label === tokenLabel);
    if (token === undefined)
      throw new Fault("unavailable", `no token has the label ${JSON.stringify(tokenLabel)}`, {
        code: "pkcs11-token",
        hint: "see token_label, and that the token is plugged in and the module finds it",
      });
    const session = this.#cryptoki.openSession(token.slot);
    this.#opened += 1;
    this.#cryptoki.login(session, pin);
    return session;
  }

  async #take(): Promise<bigint> {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#opened < SESSIONS) return this.#open();
    const given = await new Promise<bigint | undefined>((resolve) => this.#waiting.push(resolve));
    return given ?? this.#open();
  }

  #give(session: bigint): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(session);
    else next(session);
  }

  #drop(session: bigint): void {
    this.#opened -= 1;
    this.#cryptoki.closeSession(session);
    this.#waiting.shift()?.(undefined);
  }
}

const TRUE = Buffer.from([1]);
const FALSE = Buffer.from([0]);

function number(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function rsaParameters(bits: number): Attributes {
  const exponent: Attribute = [CKA.publicExponent, Buffer.from([1, 0, 1])];
  return [[CKA.modulusBits, number(bits)], exponent];
}

/** Later ones compare greater, so that of two keys under one name the newer counts. */
function newId(): Uint8Array {
  const id = Buffer.concat([Buffer.alloc(8), randomBytes(8)]);
  id.writeBigUInt64BE(process.hrtime.bigint() + BigInt(Math.floor(performance.timeOrigin * 1e6)));
  return id;
}

function rsaKey(modulus: Uint8Array, exponent: Uint8Array): Omit<TokenKey, "id"> {
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64url");
  const key = createPublicKey({ key: { kty: "RSA", n: base64(modulus), e: base64(exponent) }, format: "jwk" });
  const keyType = key.asymmetricKeyDetails?.modulusLength === 2048 ? "rsa-2048" : "rsa-4096";
  return { keyType, publicKey: key.export({ format: "der", type: "spki" }) };
}

/** The attribute is an OCTET STRING around the uncompressed point. */
function ecKey(attribute: Uint8Array): Omit<TokenKey, "id"> {
  const point = new DerReader(attribute).read(TAG.octetString).body;
  const keyType = point.length === 1 + 2 * COORDINATE_BYTES["ec-p256"] ? "ec-p256" : "ec-p384";
  const bytes = COORDINATE_BYTES[keyType];
  const base64 = (from: number): string => Buffer.from(point.subarray(from, from + bytes)).toString("base64url");
  const crv = keyType === "ec-p256" ? "P-256" : "P-384";
  const key = createPublicKey({ key: { kty: "EC", crv, x: base64(1), y: base64(1 + bytes) }, format: "jwk" });
  return { keyType, publicKey: key.export({ format: "der", type: "spki" }) };
}

/** r and s end to end, as Ecdsa-Sig-Value. */
function derOf(signature: Uint8Array): Uint8Array {
  const half = signature.length / 2;
  const integer = (bytes: Uint8Array): Uint8Array => encodeUnsigned(BigInt(`0x${Buffer.from(bytes).toString("hex")}`));
  return sequence(integer(signature.subarray(0, half)), integer(signature.subarray(half)));
}
