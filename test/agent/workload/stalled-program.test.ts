import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { expect, test } from "vitest";
import { WorkloadAttestor } from "../../../agent/workload/attest.ts";
import { UnixAttestor } from "../../../agent/workload/unix.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { formatSelector } from "../../../src/spiffe/selector.ts";
import { canRun } from "../../support/pid-storm.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { hasFuse, StallingFileSystem } from "../../support/stalling-fs.ts";
import { PinningSocket } from "../../support/workload.ts";

const PERL = "perl";
/** Well below the half minute after which a stalled file system is gone, and whoever waits for it goes on. */
const SOON_MS = 20_000;
const CONNECT = "socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or die; <S>";

test.skipIf(!(hasFuse && (await canRun(PERL, "-MSocket", "-e", "1"))))(
  "T-W6 a program on a file system that does not answer holds up neither its caller nor anybody else",
  async () => {
    await using held = new AsyncDisposableStack();
    const socket = held.use(await PinningSocket.open());
    const perl = execFileSync(PERL, ["-e", 'print readlink("/proc/self/exe")']).toString();
    const files = held.use(await StallingFileSystem.open(perl));
    const { signal } = new AbortController();
    const unix = new UnixAttestor({ discoverWorkloadPath: false, workloadSizeLimit: 0, clock: systemClock, signal });
    const attestor = new WorkloadAttestor({ attestors: [unix], clock: systemClock, log: new RecordingLog() });
    const child = held.adopt(
      spawn(files.program, ["-MSocket", "-e", `sub go { ${CONNECT} } <STDIN>; go()`, socket.path]),
      (child) => {
        child.kill("SIGKILL");
      },
    );
    await once(child, "spawn");
    await files.stall();
    const started = performance.now();
    child.stdin.write("go\n");
    const peer = await socket.next();
    expect(peer).toMatchObject({ pid: child.pid, executable: { inode: 2n } });
    expect((await attestor.attest(peer, signal)).map(formatSelector)).toContain(`unix:uid:${process.getuid?.()}`);
    expect(performance.now() - started).toBeLessThan(SOON_MS);
    child.stdin.end();
  },
);
