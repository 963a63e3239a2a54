import { Fault, type FaultKind } from "../../src/runtime/fault.ts";

/** What `work` refuses with, for matching kind and code. Fails when it does not refuse, or with another error. */
export function faultOf(work: () => unknown): Fault {
  try {
    work();
  } catch (error) {
    if (error instanceof Fault) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

/** As `faultOf`, for what is asynchronous. */
export async function faultFrom(work: Promise<unknown>): Promise<Fault> {
  try {
    await work;
  } catch (error) {
    if (error instanceof Fault) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

/** For `toMatchObject`. */
export function refusal(kind: FaultKind, code: string): { readonly kind: FaultKind; readonly code: string } {
  return { kind, code };
}
