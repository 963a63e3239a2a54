import { connect } from "node:net";
import type { Clock } from "../../src/runtime/clock.ts";

/** Between two looks on average; each agent of many at moments of its own. */
const LOOK_MS = 500;
const LOOK_TIMEOUT_MS = 1_000;

export interface ListeningOptions {
  readonly clock: Clock;
  readonly address: string;
  readonly port: number;
  readonly ms: number;
}

/**
 * Resolves after `ms`, or as soon as somebody listens where nobody did at first. Where somebody does from the beginning,
 * such as a load balancer, that says nothing. Rejects when the signal is aborted.
 */
export async function sleepUntilListening(options: ListeningOptions, signal: AbortSignal): Promise<void> {
  const { clock, ms } = options;
  const end = clock.monotonic() + ms;
  const left = (): number => end - clock.monotonic();
  for (let wasAway = false; left() > 0; wasAway = true) {
    if (await listens(options, signal)) return wasAway ? undefined : clock.sleep(left(), signal);
    await clock.sleep(Math.min(left(), LOOK_MS * (0.5 + clock.random())), signal);
  }
}

function listens({ address: host, port }: ListeningOptions, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, signal, timeout: LOOK_TIMEOUT_MS });
    const answer = (yes: boolean) => (): void => {
      socket.destroy();
      resolve(yes);
    };
    socket.once("connect", answer(true)).once("timeout", answer(false)).once("error", answer(false));
  });
}
