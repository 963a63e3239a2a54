import { type Link, openLink, through } from "./link.ts";

/** 'P': Parse, 'Q': Query. */
const WITH_SQL: ReadonlySet<number> = new Set([80, 81]);

/** A way to PostgreSQL on which every statement is seen, as it stands on the wire. */
export class StatementLog implements Disposable {
  readonly url: string;
  /** SQL texts in the order in which they came, of all connections. */
  readonly statements: string[] = [];
  readonly #link: Link;

  private constructor(link: Link, url: string) {
    this.#link = link;
    this.url = url;
  }

  static async open(url: string): Promise<StatementLog> {
    const open: { log?: StatementLog } = {};
    const link = await openLink(Number(new URL(url).port), () => reading((sql) => open.log?.statements.push(sql)));
    const plain = new URL(through(link, url));
    plain.searchParams.set("sslmode", "disable");
    open.log = new StatementLog(link, plain.href);
    return open.log;
  }

  [Symbol.dispose](): void {
    this.#link[Symbol.dispose]();
  }
}

/** Reads one connection: its first message has no type, every other one has a byte before its length. */
function reading(statement: (sql: string) => void): (bytes: Buffer) => void {
  let rest = Buffer.alloc(0);
  let isFirst = true;
  return (bytes) => {
    rest = Buffer.concat([rest, bytes]);
    for (;;) {
      const head = isFirst ? 0 : 1;
      if (rest.length < head + 4) return;
      const end = head + rest.readUInt32BE(head);
      if (rest.length < end) return;
      const message = rest.subarray(0, end);
      rest = rest.subarray(end);
      if (!isFirst && WITH_SQL.has(message[0] ?? 0)) statement(textOf(message));
      isFirst = false;
    }
  };
}

/** A Parse message has the name of the statement before its text. */
function textOf(message: Buffer): string {
  const [first = "", second = ""] = message.toString("utf8", 5).split("\0");
  return message[0] === 81 ? first : second;
}
