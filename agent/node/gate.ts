/**
 * Many users, or one that needs to be alone. Whoever waits to be alone holds back new users, so it is not starved.
 */
export class Gate {
  #users = 0;
  #alone: Promise<void> = Promise.resolve();
  #waiting = 0;
  #idle: (() => void) | undefined;

  async shared<T>(work: () => Promise<T>): Promise<T> {
    while (this.#waiting > 0) await this.#alone;
    this.#users += 1;
    try {
      return await work();
    } finally {
      this.#users -= 1;
      if (this.#users === 0) this.#idle?.();
    }
  }

  /** One after the other, each with no shared user at work. */
  async exclusive<T>(work: () => Promise<T>): Promise<T> {
    const before = this.#alone;
    const turn = Promise.withResolvers<void>();
    this.#alone = turn.promise;
    this.#waiting += 1;
    try {
      await before;
      if (this.#users > 0) await this.#untilIdle();
      return await work();
    } finally {
      this.#waiting -= 1;
      turn.resolve();
    }
  }

  #untilIdle(): Promise<void> {
    return new Promise((resolve) => {
      this.#idle = resolve;
    });
  }
}
