import { rfc3339 } from "../runtime/logfmt.ts";
import { alignColumns } from "../runtime/terminal.ts";

/** A time is shown absolute and relative; a list is joined with commas. */
export type Cell = string | number | boolean | Date | readonly string[] | undefined;

export interface Column {
  readonly title: string;
  /** Only in the wide form. */
  readonly wide?: true;
}

export interface Table {
  readonly columns: readonly Column[];
  /** One cell for each column. */
  readonly rows: readonly (readonly Cell[])[];
}

export interface TableView {
  readonly wide: boolean;
  /** Of the terminal; lines are not cut without it. */
  readonly width: number | undefined;
  readonly now: Date;
}

const GAP = 2;
const NARROWEST = 6;

/** Titles and rows, aligned. What does not fit the width is cut where a column is widest, with `…` in its place. */
export function renderTable({ columns, rows }: Table, { wide, width, now }: TableView): string {
  const shown = [...columns.keys()].filter((index) => wide || columns[index]?.wide !== true);
  const titles = shown.map((index) => columns[index]?.title ?? "");
  const lines = [titles, ...rows.map((row) => shown.map((index) => cellText(row[index], now)))];
  if (width === undefined) return alignColumns(lines);
  const widths = fitted(
    titles.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0))),
    width,
  );
  return alignColumns(lines.map((line) => line.map((cell, column) => cut(cell, widths[column] ?? 0))));
}

/** Takes from the widest column until the line fits, or no column can give more. */
function fitted(natural: readonly number[], width: number): readonly number[] {
  const widths = [...natural];
  let excess = widths.reduce((sum, each) => sum + each, GAP * (widths.length - 1)) - width;
  while (excess > 0) {
    const widest = widths.indexOf(Math.max(...widths));
    if ((widths[widest] ?? 0) <= NARROWEST) break;
    widths[widest] = (widths[widest] ?? 0) - 1;
    excess -= 1;
  }
  return widths;
}

/** A SPIFFE ID keeps its end, which tells it from the others; everything else its beginning. */
function cut(text: string, width: number): string {
  if (text.length <= width) return text;
  return text.startsWith("spiffe://") ? `…${text.slice(1 - width)}` : `${text.slice(0, width - 1)}…`;
}

function cellText(cell: Cell, now: Date): string {
  if (cell === undefined || cell === "") return "-";
  if (cell instanceof Date) return `${rfc3339(cell, false)} (${relativeTime(cell, now)})`;
  if (typeof cell === "object") return cell.length === 0 ? "-" : printable(cell.join(","));
  return printable(String(cell));
}

/** Without control characters, save those that are kept: what another party wrote must not steer the terminal. */
export function printable(text: string, kept = ""): string {
  return text.replace(/\p{Cc}/gu, (character) => (kept.includes(character) ? character : "\u{fffd}"));
}

const UNITS = [
  ["d", 86_400],
  ["h", 3_600],
  ["m", 60],
  ["s", 1],
] as const;

/** `in 3h`, `5d ago`, `now`: the largest unit, rounded down. */
export function relativeTime(at: Date, now: Date): string {
  const seconds = Math.trunc((at.getTime() - now.getTime()) / 1000);
  const unit = UNITS.find(([, length]) => Math.abs(seconds) >= length);
  if (unit === undefined) return "now";
  const amount = `${Math.trunc(Math.abs(seconds) / unit[1])}${unit[0]}`;
  return seconds > 0 ? `in ${amount}` : `${amount} ago`;
}

/** A time of the wire, in Unix seconds; 0 is none. */
export function timeCell(seconds: string | number): Cell {
  return Number(seconds) === 0 ? undefined : new Date(Number(seconds) * 1000);
}
