import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { UnixAttestor } from "../../../agent/workload/unix.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { canRun } from "../../support/pid-storm.ts";
import { isRoot, NOBODY, PinningSocket, temporaryDirectory } from "../../support/workload.ts";

const PERL = "perl";
/** Where nothing is, and what entries may name nevertheless. */
const VICTIM = "/usr/local/sbin/steeple-victim";
const CONNECT = "socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or die; <S>";
/** In a shell of which $0 is a copy of Perl, $1 a folder that anybody may write to, $2 the socket, $3 what Perl is to do. */
const CALL = '-MSocket -e "$3" "$2"';
const MOUNT = `mount -t tmpfs none ${VICTIM.replace(/\/[^/]*$/, "")} && cp "$0" ${VICTIM}`;
/** Keeps such a tree of files open for another process, whose last child it then is. */
const TREE = `unshare -Urm sh -c '${MOUNT} && touch "$1/ready" && exec sleep 100' "$0" "$1" & until [ -e "$1/ready" ]; do sleep 0.1; done`;

const AS_USER = ["setpriv", "--reuid", String(NOBODY), "--regid", String(NOBODY), "--clear-groups"] as const;
const canSpoof =
  isRoot &&
  (await canRun(PERL, "-MSocket", "-e", "1")) &&
  (await canRun(AS_USER[0], ...AS_USER.slice(1), "unshare", "-Urm", "true"));

/** What is found of the one who connects while the command runs this script. */
async function attested(command: readonly string[], script: string): Promise<readonly string[]> {
  await using held = new AsyncDisposableStack();
  const { path: folder } = held.use(await temporaryDirectory());
  const [perl, shared] = [join(folder, "perl"), join(folder, "shared")];
  copyFileSync(execFileSync(PERL, ["-e", 'print readlink("/proc/self/exe")']).toString(), perl);
  mkdirSync(shared);
  for (const [path, mode] of [
    [folder, 0o755],
    [perl, 0o755],
    [shared, 0o777],
  ] as const)
    chmodSync(path, mode);
  const socket = held.use(await PinningSocket.open());
  const args = ["-s", "KILL", "100", ...command, "sh", "-c", script, perl, shared, socket.path, CONNECT];
  const child = spawn("timeout", args, { detached: true, stdio: ["ignore", "ignore", "inherit"] });
  const ended = once(child, "exit");
  held.defer(async () => {
    process.kill(-(child.pid ?? 0), "SIGKILL");
    await ended;
  });
  const peer = await Promise.race([
    socket.next(),
    ended.then(([status]) => Promise.reject(new Error(`status ${status}`))),
  ]);
  const { signal } = new AbortController();
  const unix = new UnixAttestor({ discoverWorkloadPath: true, workloadSizeLimit: 0, clock: systemClock, signal });
  return (await unix.attest(peer)).map(({ value }) => value);
}

describe.skipIf(!canSpoof)("T-W1 the path of a program is a name that no ordinary user could arrange", () => {
  const path = expect.stringMatching(/^path:/);

  test.each([
    {
      what: "in a tree of files of his own",
      command: ["unshare", "-Urm"],
      script: `${MOUNT} && exec ${VICTIM} ${CALL}`,
    },
    {
      what: "in such a tree, started from outside",
      command: [],
      script: `${TREE}; exec /proc/$!/root${VICTIM} ${CALL}`,
    },
    {
      what: "with such a tree for his root alone",
      command: ["unshare", "-Ur"],
      script: `${TREE}; exec chroot /proc/$!/root ${VICTIM} ${CALL}`,
    },
  ])("a user's program $what has none", async ({ command, script }) => {
    const values = await attested([...AS_USER, ...command], script);
    expect(values).toContain(`uid:${NOBODY}`);
    expect(values).toContainEqual(expect.stringMatching(/^sha256:/));
    expect(values).not.toContainEqual(path);
  });

  test.each([
    { what: "in a tree of files that root made, as containers have it", command: ["unshare", "-m"] },
    { what: "in such a tree with users of its own", command: ["unshare", "-Urm"] },
  ])("a program $what has the name that it has there", async ({ command }) => {
    expect(await attested(command, `${MOUNT} && exec ${VICTIM} ${CALL}`)).toContain(`path:${VICTIM}`);
  });

  test("a program that is called so by everybody has its name, whoever runs it where", async () => {
    for (const command of [["unshare", "-Urm"], ["unshare", "-Ur"], []])
      expect(await attested([...AS_USER, ...command], `exec "$0" ${CALL}`)).toContainEqual(
        expect.stringMatching(/^path:.*\/perl$/),
      );
  });
});
