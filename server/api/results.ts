import type { Status } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { itemStatus } from "../../src/rpc/status.ts";
import { isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { failure } from "./fail.ts";

/** Every item of a batch has a status: agents read its code without looking. */
export const OK: Status = itemStatus(undefined);

/** The status of an item that threw; what nobody threw on purpose goes to the log and not to the caller. */
export function itemFailure(log: Log, thrown: unknown): Status {
  return itemStatus(isFault(thrown) ? thrown : failure(log, "internal", "internal error", thrown));
}

/** Signatures in flight for one call: enough for all cores, and no call starves the others. */
const SIGNING_AT_ONCE = 8;

/** Works on a few items at once, and on no more when the caller has left; results keep the order of the items. */
export async function inOrder<T, R>(
  items: readonly T[],
  { signal }: { readonly signal: AbortSignal },
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = new Array(items.length);
  const left = items.entries();
  const worker = async (): Promise<void> => {
    for (const [index, item] of left) {
      signal.throwIfAborted();
      results[index] = await work(item);
    }
  };
  await Promise.all(Array.from({ length: Math.min(SIGNING_AT_ONCE, items.length) }, worker));
  return results;
}
