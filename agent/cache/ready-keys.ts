import { generateKey, type KeyType, type LocalSigner } from "../../src/crypto/key.ts";

/** Enough for the workloads that start together on a node; an RSA key takes hundreds of milliseconds to make. */
const KEPT = 8;

/** Keys made ahead of need, so that who waits for a new SVID does not wait for its key. Each is given out once. */
export class ReadyKeys {
  readonly #type: KeyType;
  readonly #ready: LocalSigner[] = [];
  #filling: Promise<void> | undefined;

  constructor(type: KeyType) {
    this.#type = type;
  }

  /** One that is ready, or else a new one. */
  async take(): Promise<LocalSigner> {
    const key = this.#ready.shift();
    void this.fill();
    return key ?? generateKey(this.#type);
  }

  /** Resolves when there are as many as are kept. Never rejects. */
  fill(): Promise<void> {
    this.#filling ??= this.#fill().finally(() => {
      this.#filling = undefined;
    });
    return this.#filling;
  }

  /** One after the other, since nobody waits for them. */
  async #fill(): Promise<void> {
    try {
      while (this.#ready.length < KEPT) this.#ready.push(await generateKey(this.#type));
    } catch {
      // Whoever takes one then makes it, and is told why that fails.
    }
  }
}
