import { ATTESTATION_CODES } from "./error-codes/attestation.ts";
import { IDENTITY_CODES } from "./error-codes/identity.ts";
import { OPERATION_CODES } from "./error-codes/operation.ts";

/** The stable code of an error, what happened, and what to do next. */
export interface ErrorCode {
  readonly code: string;
  readonly cause: string;
  readonly fix: string;
}

const NO_ADVICE = "Mend what the message names.";

/** The kinds of error, for one that has no code of its own or comes from another server. */
const KIND_CODES = `
invalid | Something in the request is not right. | Mend what the message names.
not_found | There is no such thing. | The list commands show what there is.
already_exists | It exists. | Update it, or choose another name.
denied | This caller may not do this, or has no identity here. | A workload needs an entry whose selectors it has; an operator the admin socket, or an identity that is an admin.
unauthenticated | The caller showed no identity that is accepted. | Show a valid SVID.
precondition | The state does not allow this step now. | Do first what the message says.
exhausted | There were too many calls, or a message was too large. | Wait, or ask for less.
aborted | Another change came between. | Try again.
unavailable | The other side cannot be reached. | Check the address, and that the program behind it runs.
timeout | No answer came in time. | Try again; see whether the other side is overloaded.
cancelled | The operation was stopped. | Start it again.
unimplemented | The other side does not have this method. | Use a version that does.
internal | Something failed that should not. | See the log of the program that answered, by the request's ID.
`;

/** Every code that these programs give an error, in order, and the kinds at the end. */
export const ERROR_CODES: readonly ErrorCode[] = [
  ...[ATTESTATION_CODES, IDENTITY_CODES, OPERATION_CODES].flatMap(read).sort((a, b) => (a.code < b.code ? -1 : 1)),
  ...read(KIND_CODES),
];

function read(table: string): readonly ErrorCode[] {
  return table
    .trim()
    .split("\n")
    .map((line) => {
      const [code = "", cause = "", fix = ""] = line.split(" | ");
      return { code, cause, fix };
    });
}

/** What to do about an error that brings no advice of its own; nothing where its message already says all there is. */
export function fixOf(code: string): string | undefined {
  const fix = ERROR_CODES.find((known) => known.code === code)?.fix;
  return fix === NO_ADVICE ? undefined : fix;
}
