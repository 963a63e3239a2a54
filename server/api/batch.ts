import type { Call } from "../../src/rpc/caller.ts";
import type { Status } from "../../src/rpc/gen/spire/api/types/Status.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import type { Authorization } from "./admission.ts";
import { failure } from "./fail.ts";
import { MAX_ANSWER_BYTES, messageBytes } from "./pages.ts";

type Batch<T, R> = Work<T, R> & {
  readonly audit: (item: T) => LogFields;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
};

/** `together` gives one result for each of its items, in their order. */
type Work<T, R> =
  | { readonly work: (item: T) => Promise<R> }
  | { readonly together: (items: readonly T[]) => Promise<readonly R[]> };

type Result = { readonly status: Status };

/** A code alone. */
const LEAST_BYTES = 16;
/** A status with a message of ordinary length. */
const STATUS_BYTES = 96;
/** How many are worked on together; between such groups the caller may leave. */
const TOGETHER = 500;

/**
 * One after the other, or some together, in the order of the request, and no further once the caller has left. Refused before anything is
 * stored when the answer cannot be delivered: that would leave the caller in the dark (T-F4).
 */
export async function batch<T, R extends Result>(
  call: Call<Authorization>,
  items: readonly T[],
  { audit, caughtUp, ...given }: Batch<T, R>,
): Promise<(R | Result)[]> {
  const { log } = call.auth;
  if (items.reduce((sum, item) => sum + STATUS_BYTES + messageBytes(item), 0) > MAX_ANSWER_BYTES)
    throw failure(log, "exhausted", "the answer to this batch would be larger than a message may be: send fewer items");
  const results: R[] = [];
  const size = "together" in given ? TOGETHER : 1;
  for (let from = 0; from < items.length; from += size) {
    call.signal.throwIfAborted();
    const group = items.slice(from, from + size);
    const done = "together" in given ? await given.together(group) : await Promise.all(group.map(given.work));
    for (const [at, item] of group.entries()) call.auth.audit(done[at]?.status ?? {}, () => audit(item));
    results.push(...done);
  }
  await caughtUp(log);
  return fitting(results);
}

/** What is stored may be larger than what was sent. A result that does not fit any more tells its code and nothing else. */
function fitting<R extends Result>(results: readonly R[]): (R | Result)[] {
  let left = MAX_ANSWER_BYTES - results.length * LEAST_BYTES;
  return results.map((result) => {
    const bytes = messageBytes(result);
    if (bytes > left) return { status: { code: result.status.code ?? 0, message: "" } };
    left -= bytes;
    return result;
  });
}
