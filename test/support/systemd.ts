import { fork, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { SystemdOrders } from "./systemd-process.ts";
import { temporaryDirectory } from "./workload.ts";

export interface MessageBus extends AsyncDisposable {
  readonly path: string;
  /** D-Bus server address. */
  readonly address: string;
  /** It is there, takes connections, and says nothing. */
  pause(): void;
  resume(): void;
  stop(): Promise<void>;
}

/** A real dbus-daemon on a socket of its own. Undefined where there is none. */
export async function startBus(): Promise<MessageBus | undefined> {
  const scope = new AsyncDisposableStack();
  const { path: folder } = scope.use(await temporaryDirectory());
  const path = join(folder, "bus.sock");
  const config = join(folder, "bus.conf");
  await writeFile(config, BUS_CONFIG.replace("PATH", path));
  const daemon = spawn("dbus-daemon", [`--config-file=${config}`, "--nofork", "--print-address=1"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  const failed = once(daemon, "error").then(() => undefined);
  const stop = async (): Promise<void> => {
    if (daemon.exitCode !== null || daemon.signalCode !== null) return;
    daemon.kill("SIGKILL");
    await once(daemon, "exit");
  };
  const started = await Promise.race([once(daemon.stdout, "data"), failed]);
  if (started === undefined) {
    await scope.disposeAsync();
    return undefined;
  }
  scope.defer(stop);
  const pause = (): void => void daemon.kill("SIGSTOP");
  const resume = (): void => void daemon.kill("SIGCONT");
  return { path, address: `unix:path=${path}`, pause, resume, stop, [Symbol.asyncDispose]: () => scope.disposeAsync() };
}

/** A service on the bus that answers as systemd's manager. */
export async function startSystemd(orders: SystemdOrders): Promise<AsyncDisposable> {
  const script = new URL("./systemd-process.ts", import.meta.url);
  const child = fork(script, [JSON.stringify(orders)], { execArgv: [] });
  await once(child, "message");
  return {
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
}

const BUS_CONFIG = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=PATH</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`;
