import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { isAnybody } from "../../src/rpc/user-namespace.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import { AccountNames } from "./accounts.ts";
import type { Attestor } from "./attest.ts";
import { Digests } from "./digest.ts";
import { openExecutable, readCallerStatus } from "./process.ts";
import { isNamed } from "./program-name.ts";

export interface UnixAttestorOptions {
  /** Adds path and digest of the program; the agent must be allowed to see it. */
  readonly discoverWorkloadPath: boolean;
  /** Bytes of the largest program that is hashed; 0 for no limit but the built-in one, below 0 for no digest. */
  readonly workloadSizeLimit: number;
  readonly clock: Clock;
  /** The attestor's own life. */
  readonly signal: AbortSignal;
  readonly procRoot?: string;
  readonly accounts?: AccountNames;
}

/** Selectors of type `unix`: users, groups and the program, all as the kernel has them. */
export class UnixAttestor implements Attestor {
  readonly name = "unix";
  readonly #options: UnixAttestorOptions;
  readonly #accounts: AccountNames;
  readonly #digests: Digests;

  constructor(options: UnixAttestorOptions) {
    this.#options = options;
    this.#accounts = options.accounts ?? new AccountNames();
    this.#digests = new Digests({ sizeLimit: options.workloadSizeLimit, clock: options.clock, signal: options.signal });
  }

  attestNow(peer: PeerProcess): readonly Selector[] | undefined {
    return this.#options.discoverWorkloadPath ? undefined : this.#selectors(this.#identity(peer));
  }

  async attest(peer: PeerProcess): Promise<readonly Selector[]> {
    const values = this.#identity(peer);
    if (this.#options.discoverWorkloadPath) values.push(...(await this.#program(peer)));
    return this.#selectors(values);
  }

  #selectors(values: readonly string[]): readonly Selector[] {
    return values.map((value) => ({ type: this.name, value }));
  }

  /** An account without a name has no name selector, as in SPIRE. */
  #identity(peer: PeerProcess): string[] {
    const { uid, gid, supplementaryGids } = readCallerStatus(peer, this.#options.procRoot);
    const { users, groups } = this.#accounts.now();
    const values = [`uid:${uid}`, ...named("user", users.get(uid))];
    values.push(`gid:${gid}`, ...named("group", groups.get(gid)));
    for (const id of supplementaryGids) {
      if (isAnybody(id)) continue;
      values.push(`supplementary_gid:${id}`, ...named("supplementary_group", groups.get(id)));
    }
    return values;
  }

  /** Without its path where nobody but the caller's own user says that this is it. */
  async #program(peer: PeerProcess): Promise<string[]> {
    const { procRoot = "/proc" } = this.#options;
    await using executable = await openExecutable(peer, procRoot);
    const values = isNamed(peer, executable, procRoot) ? [`path:${executable.path}`] : [];
    if (this.#options.workloadSizeLimit < 0) return values;
    const digest = await this.#digests.sha256(executable.file, `${peer.uid} ${peer.cgroup}`);
    return [...values, `sha256:${digest}`];
  }
}

function named(kind: string, name: string | undefined): string[] {
  return name === undefined ? [] : [`${kind}:${name}`];
}
