import { closeSync, constants, openSync, readSync } from "node:fs";
import { Fault } from "../runtime/fault.ts";

/** 65,536 supplementary groups of ten digits still fit. */
const MAX_BYTES = 1024 * 1024;
const PIECE = Buffer.alloc(16_384);

/**
 * Text of a file that the kernel makes up in memory, so that waiting for it costs less than having another thread do so;
 * latin1. Throws `unavailable` beyond 1 MiB, and what the file system says.
 */
export function readProcFile(path: string): string {
  const file = openSync(path, constants.O_RDONLY);
  try {
    let text = "";
    for (let total = 0; ; ) {
      const bytes = readSync(file, PIECE, 0, PIECE.length, null);
      if (bytes === 0) return text;
      text += PIECE.toString("latin1", 0, bytes);
      total += bytes;
      if (total > MAX_BYTES) throw new Fault("unavailable", `${path} is too long`, { code: "proc-size" });
    }
  } finally {
    closeSync(file);
  }
}
