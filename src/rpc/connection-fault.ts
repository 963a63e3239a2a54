import { Fault } from "../runtime/fault.ts";

interface Reason {
  /** In gRPC's account of a failed connection. */
  readonly sign: string;
  readonly text: string;
  readonly hint: string;
}

const NOT_RUNNING = "check the address, and that the program behind it runs";
const NETWORK = "check the address and the network";

const REASONS: readonly Reason[] = [
  { sign: "ENOENT", text: "nothing listens there", hint: NOT_RUNNING },
  { sign: "ECONNREFUSED", text: "nothing listens there", hint: NOT_RUNNING },
  { sign: "EACCES", text: "permission denied", hint: "use an account that may open the socket" },
  { sign: "EPERM", text: "permission denied", hint: "use an account that may open the socket" },
  { sign: "ENOTSOCK", text: "it is not a socket", hint: NOT_RUNNING },
  { sign: "EHOSTUNREACH", text: "the host cannot be reached", hint: NETWORK },
  { sign: "ENETUNREACH", text: "the network cannot be reached", hint: NETWORK },
  { sign: "ETIMEDOUT", text: "the host does not answer", hint: NETWORK },
  { sign: "Name resolution failed", text: "the host name is not known", hint: "check the name and the name server" },
  {
    sign: "Failed to connect (",
    text: "the server closed the connection",
    hint: "see its log: it may have refused the certificate shown to it",
  },
];

/** Rewrites gRPC's account of a failed connection for people; a status that a server sent stays as it is. */
export function connectionFault(
  fault: Fault,
  { target, lastFault }: { readonly target: string; lastFault(): Fault | undefined },
): Fault {
  if (fault.message === "Connection dropped") {
    return new Fault("unavailable", `the connection to ${target} was lost`, { code: "connection-lost", cause: fault });
  }
  if (!/No connection established|Name resolution failed/.test(fault.message)) return fault;
  const last = lastFault();
  const known = REASONS.find(({ sign }) => fault.message.includes(sign));
  if (last !== undefined && fault.message.includes(last.message)) return couldNot(target, last.message, last);
  const { text, hint } = known ?? { text: fault.message, hint: NETWORK };
  return couldNot(target, text, new Fault("unavailable", fault.message, { code: "connection-failed", hint }));
}

/** `unavailable`, whatever ended the handshake; its own fault is the cause. */
function couldNot(target: string, reason: string, cause: Fault): Fault {
  return new Fault("unavailable", `could not connect to ${target}: ${reason}`, {
    code: cause.code,
    cause,
    ...(cause.hint === undefined ? {} : { hint: cause.hint }),
  });
}
