const BITS = 14;
const CHUNK = 1 << BITS;

/**
 * Whole numbers by position, 0 until one is set. Kept in pieces outside the JavaScript heap: nothing is copied when it
 * grows, and the garbage collector has nothing to visit, however many there are.
 */
export class Column {
  readonly #chunks: Int32Array[] = [];

  get(at: number): number {
    return this.#chunks[at >>> BITS]?.[at & (CHUNK - 1)] ?? 0;
  }

  set(at: number, value: number): void {
    const chunk = at >>> BITS;
    while (this.#chunks.length <= chunk) this.#chunks.push(new Int32Array(CHUNK));
    (this.#chunks[chunk] as Int32Array)[at & (CHUNK - 1)] = value;
  }
}

/** Values by position, in pieces as well. */
export class Rows<T> {
  readonly #chunks: (T | undefined)[][] = [];

  get(at: number): T | undefined {
    return this.#chunks[at >>> BITS]?.[at & (CHUNK - 1)];
  }

  set(at: number, value: T | undefined): void {
    const chunk = at >>> BITS;
    while (this.#chunks.length <= chunk) this.#chunks.push(new Array<T | undefined>(CHUNK).fill(undefined));
    (this.#chunks[chunk] as (T | undefined)[])[at & (CHUNK - 1)] = value;
  }
}

/** Hands out positions, those that were given back first. */
export class Positions {
  readonly #free: number[] = [];
  #end = 0;

  /** No position that was handed out is as large. */
  get end(): number {
    return this.#end;
  }

  take(): number {
    return this.#free.pop() ?? this.#end++;
  }

  give(position: number): void {
    this.#free.push(position);
  }
}

/** Doubly linked lists, by number, of items that are numbers too; each item is in one of them at most. */
export class Lists {
  readonly #first = new Column();
  readonly #next = new Column();
  readonly #previous = new Column();

  /** -1 when the list is empty. */
  first(list: number): number {
    return this.#first.get(list) - 1;
  }

  /** -1 at the end. */
  next(item: number): number {
    return this.#next.get(item) - 1;
  }

  add(list: number, item: number): void {
    const first = this.#first.get(list);
    this.#next.set(item, first);
    this.#previous.set(item, 0);
    if (first !== 0) this.#previous.set(first - 1, item + 1);
    this.#first.set(list, item + 1);
  }

  remove(list: number, item: number): void {
    const next = this.#next.get(item);
    const previous = this.#previous.get(item);
    if (next !== 0) this.#previous.set(next - 1, previous);
    if (previous === 0) this.#first.set(list, next);
    else this.#next.set(previous - 1, next);
  }
}
