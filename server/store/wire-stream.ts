import { Duplex } from "node:stream";

/** The far end of a connection, as the stream sees it. */
export interface WireEnd {
  send(bytes: Uint8Array): void;
  end(): void;
}

/** How a stream reaches its far end, once that is up. `receive` gets the answers. */
export type OpenWire = (wire: {
  readonly receive: (bytes: Uint8Array) => void;
  readonly broken: (error: Error) => void;
}) => Promise<WireEnd>;

/** What `pg` takes for a socket. */
export class WireStream extends Duplex {
  readonly #open: OpenWire;
  #end: WireEnd | undefined;

  constructor(open: OpenWire) {
    super();
    this.#open = open;
  }

  connect(): this {
    const receive = (bytes: Uint8Array): void => void this.push(bytes);
    const broken = (error: Error): void => void this.destroy(error);
    this.#open({ receive, broken }).then(
      (end) => {
        this.#end = end;
        if (this.destroyed) end.end();
        else this.emit("connect");
      },
      (error: unknown) => this.destroy(error instanceof Error ? error : new Error(String(error))),
    );
    return this;
  }

  setNoDelay(): this {
    return this;
  }

  setKeepAlive(): this {
    return this;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  override _read(): void {}

  override _write(chunk: Uint8Array, _encoding: string, done: (error?: Error | null) => void): void {
    this.#end?.send(chunk);
    done();
  }

  override _writev(chunks: readonly { readonly chunk: Uint8Array }[], done: (error?: Error | null) => void): void {
    this.#end?.send(Buffer.concat(chunks.map(({ chunk }) => chunk)));
    done();
  }

  override _final(done: (error?: Error | null) => void): void {
    this.push(null);
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#end?.end();
    this.#end = undefined;
    done(error);
  }
}
