import { randomBytes } from "node:crypto";
import { type OpenTpm, openTpm } from "../../src/keys/tpm-device.ts";
import { type CreatedKey, HANDLE, type Tpm } from "../../src/tpm/commands.ts";
import { endorsementCertificate } from "../../src/tpm/endorsement.ts";
import { parsePublic, TEMPLATE } from "../../src/tpm/structures.ts";

export interface TpmAccess {
  /** Undefined finds the only TPM there is. */
  readonly devicePath: string | undefined;
  readonly ownerPassword: string;
  readonly endorsementPassword: string;
}

const EK_CERTIFICATE = 0x01c00002;

/** A TPM during one attestation: what was loaded is flushed at the end. */
export class TpmSession implements AsyncDisposable {
  readonly tpm: Tpm;
  readonly #open: OpenTpm;
  readonly #access: TpmAccess;
  readonly #loaded: number[] = [];

  private constructor(open: OpenTpm, access: TpmAccess) {
    this.#open = open;
    this.tpm = open.tpm;
    this.#access = access;
  }

  /** Throws `precondition`. */
  static async open(access: TpmAccess): Promise<TpmSession> {
    return new TpmSession(await openTpm(access.devicePath), access);
  }

  /** Works below a storage root key of the template, which is gone afterwards: a simulator has room for three keys. */
  async underStorageRoot<T>(
    template: Uint8Array,
    work: (root: number, password: Uint8Array) => Promise<T>,
  ): Promise<T> {
    const password = randomBytes(16);
    const hierarchy = this.#access.ownerPassword;
    const { handle } = await this.tpm.createPrimary(HANDLE.owner, template, { hierarchy, key: password });
    try {
      return await work(handle, password);
    } finally {
      await this.tpm.flush(handle);
    }
  }

  /** An attestation key that lives as long as the session. */
  attestationKey(kind: "rsa" | "ecc"): Promise<CreatedKey & { readonly handle: number }> {
    const [root, template] = kind === "rsa" ? [TEMPLATE.srkRsa, TEMPLATE.akRsa] : [TEMPLATE.srkEcc, TEMPLATE.akEcc];
    return this.underStorageRoot(root, async (parent, password) => {
      const key = await this.tpm.create(parent, template, { parent: password });
      return { ...key, handle: this.#keep(await this.tpm.load(parent, key, password)) };
    });
  }

  loadKey(key: Pick<CreatedKey, "privateBlob" | "publicArea">): Promise<number> {
    const root = parsePublic(key.publicArea).type === "rsa" ? TEMPLATE.srkRsa : TEMPLATE.srkEcc;
    return this.underStorageRoot(root, async (parent, password) =>
      this.#keep(await this.tpm.load(parent, key, password)),
    );
  }

  /** The endorsement key of the default RSA template, made anew. */
  async endorsementKey(): Promise<{ readonly handle: number; readonly publicArea: Uint8Array }> {
    const hierarchy = this.#access.endorsementPassword;
    const made = await this.tpm.createPrimary(HANDLE.endorsement, TEMPLATE.ekRsa, { hierarchy });
    this.#keep(made.handle);
    return made;
  }

  /** DER; undefined when the maker left none. */
  async endorsementCertificate(): Promise<Uint8Array | undefined> {
    const stored = await this.tpm.nvRead(EK_CERTIFICATE);
    return stored === undefined ? undefined : endorsementCertificate(stored);
  }

  #keep(handle: number): number {
    this.#loaded.push(handle);
    return handle;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const handle of this.#loaded) await this.tpm.flush(handle).catch(() => undefined);
    await this.#open[Symbol.asyncDispose]();
  }
}
