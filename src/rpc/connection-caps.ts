import type { Socket } from "node:net";
import { Fault } from "../runtime/fault.ts";
import type { PeerProcess } from "./peer-credentials.ts";

export interface ConnectionLimits {
  readonly perUser: number;
  /** Of one user's processes in the same control groups: a container, or a service. */
  readonly perCgroup: number;
}

/** Counts the open connections of those who share one machine, so that one of them cannot have all there are. */
export class ConnectionCaps {
  readonly #limits: ConnectionLimits;
  readonly #open = new Map<string, number>();

  constructor(limits: ConnectionLimits) {
    this.#limits = limits;
  }

  /** Until the socket closes. Throws `exhausted` when it is one too many. */
  hold(socket: Socket, { pid, uid, cgroup }: PeerProcess): void {
    this.#hold(socket, `uid ${uid}`, { limit: this.#limits.perUser, who: `uid ${uid}` });
    if (cgroup !== undefined)
      this.#hold(socket, `${uid} ${cgroup}`, {
        limit: this.#limits.perCgroup,
        who: `the control group of process ${pid}`,
      });
  }

  #hold(socket: Socket, key: string, { limit, who }: { readonly limit: number; readonly who: string }): void {
    const open = this.#open.get(key) ?? 0;
    if (open >= limit)
      throw new Fault("exhausted", `${who} has too many connections`, { code: "too-many-connections" });
    this.#open.set(key, open + 1);
    socket.once("close", () => {
      const left = (this.#open.get(key) ?? 1) - 1;
      if (left > 0) this.#open.set(key, left);
      else this.#open.delete(key);
    });
  }
}
