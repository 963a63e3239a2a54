import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { type FileHandle, mkdir, open, writeFile } from "node:fs/promises";
import { type AddressInfo, createConnection, createServer, type Socket } from "node:net";
import { join } from "node:path";
import koffi from "koffi";
import { describe, expect, test } from "vitest";
import { openTpm } from "../../../src/keys/tpm-device.ts";
import { HANDLE } from "../../../src/tpm/commands.ts";
import { ALG, TEMPLATE } from "../../../src/tpm/structures.ts";
import { startAgent } from "../../support/agent.ts";
import { faultFrom } from "../../support/faults.ts";
import { startServer } from "../../support/server.ts";
import { type Simulator, startSimulator, withoutSwtpm } from "../../support/swtpm.ts";
import { hashOf } from "../../support/tpm-agents.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const PCRS = { hash: ALG.sha256, pcrs: [0, 7, 16] };
const DIGEST = Buffer.alloc(32, 1);

/** A character device with a TPM behind it: a terminal in raw mode, in place of `/dev/tpmrm0`, which needs a kernel's. */
async function deviceFor(simulator: Simulator, pieces: number) {
  const master = await open("/dev/ptmx", "r+");
  const ioctl = koffi.load(null).func("int ioctl(int fd, unsigned long request, _Inout_ int *value)");
  const [unlock, number] = [[0], [0]];
  ioctl(master.fd, 0x40045431, unlock);
  ioctl(master.fd, 0x80045430, number);
  const path = `/dev/pts/${number[0]}`;
  execFileSync("stty", ["-F", path, "raw", "-echo"]);
  // Keeps the terminal alive between two users of the device.
  const holder = await open(path, "r+");
  const socket = createConnection(simulator.devicePath.replace(/^unix:/, ""));
  const forwarded = Promise.all([toSocket(master, socket), toDevice(socket, master, pieces)]);
  return {
    path,
    async [Symbol.asyncDispose]() {
      socket.end();
      await holder.close();
      await forwarded;
      await master.close();
    },
  };
}

async function toSocket(master: FileHandle, socket: Socket): Promise<void> {
  const buffer = Buffer.alloc(4096);
  for (;;) {
    // The read fails once nobody has the terminal open.
    const { bytesRead } = await master.read(buffer, 0, buffer.length, null).catch(() => ({ bytesRead: 0 }));
    if (bytesRead === 0) return;
    socket.write(Buffer.from(buffer.subarray(0, bytesRead)));
  }
}

async function toDevice(socket: Socket, master: FileHandle, pieces: number): Promise<void> {
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    const size = Math.ceil(chunk.length / pieces);
    for (let at = 0; at < chunk.length; at += size) await master.write(chunk.subarray(at, at + size));
  }
}

/** As an agent uses a TPM: keys, their names, PCRs. */
async function useTpm(path: string): Promise<string> {
  await using opened = await openTpm(path);
  const { handle, publicArea } = await opened.tpm.createPrimary(HANDLE.endorsement, TEMPLATE.ekRsa);
  await opened.tpm.flush(handle);
  const values = await opened.tpm.pcrRead(PCRS);
  expect(values).toHaveLength(3);
  return Buffer.from(publicArea).toString("hex");
}

describe.skipIf(withoutSwtpm)("a TPM", () => {
  test.each(["unix", "tcp"] as const)("behind a simulator's %s socket, for one user after the other", async (over) => {
    await using simulator = await startSimulator({ over });
    expect(simulator.devicePath).toMatch(over === "unix" ? /^unix:\// : /^tcp:127\.0\.0\.1:\d+$/);
    const key = await useTpm(simulator.devicePath);
    expect(await Promise.all([1, 2, 3].map(() => useTpm(simulator.devicePath)))).toEqual([key, key, key]);
    await simulator.use((tpm) => tpm.pcrExtend(16, DIGEST));
    expect(await simulator.use((tpm) => tpm.pcrRead({ hash: ALG.sha256, pcrs: [16] }))).not.toEqual([Buffer.alloc(32)]);
  });

  test.each(["unix", "tcp"] as const)("behind a %s socket is free of what an earlier user left", async (over) => {
    await using simulator = await startSimulator({ over });
    for (let user = 0; user < 3; user += 1) {
      await simulator.use(async (tpm) => {
        for (let key = 0; key < 3; key += 1) await tpm.createPrimary(HANDLE.owner, TEMPLATE.srkEcc);
      });
    }
  });

  test.skipIf(!existsSync("/dev/ptmx")).each([1, 7])(
    "behind a character device, with replies in %s pieces",
    async (pieces) => {
      await using simulator = await startSimulator();
      const key = await useTpm(simulator.devicePath);
      await using device = await deviceFor(simulator, pieces);
      expect([await useTpm(device.path), await useTpm(device.path)]).toEqual([key, key]);
    },
  );

  test("behind a TCP port serves an agent", async () => {
    await using folder = await temporaryDirectory();
    const hash_path = join(folder.path, "hashes");
    await using simulator = await startSimulator({ over: "tcp" });
    await mkdir(hash_path);
    await writeFile(join(hash_path, await hashOf(simulator)), "");
    await using server = await startServer({ nodeAttestors: { tpm: { hash_path } } });
    await using agent = await startAgent(server, { nodeAttestor: { tpm: { tpm_device_path: simulator.devicePath } } });
    expect(agent.id()).toBe(`spiffe://example.org/spire/agent/tpm/${await hashOf(simulator)}`);
  });
});

test.each([
  ["closes", (socket: Socket) => socket.destroy(), "the TPM closed the connection"],
  [
    "says that it has too much",
    (socket: Socket) => socket.write(Buffer.alloc(10, 0x7f)),
    "a reply of the TPM is too long",
  ],
])("what %s is no TPM", async (_, answer, reason) => {
  const peer = createServer((socket) => {
    socket.on("error", () => undefined).once("data", () => answer(socket));
  });
  await new Promise<void>((done) => peer.listen(0, "127.0.0.1", done));
  const { port } = peer.address() as AddressInfo;
  const fault = await faultFrom(openTpm(`tcp:127.0.0.1:${port}`));
  expect(fault).toMatchObject({ kind: "precondition", code: "tpm-open", message: expect.stringContaining(reason) });
  await new Promise((done) => peer.close(done));
});

test.each(["unix:/nowhere/tpm.sock", "tcp:127.0.0.1:1", "/nowhere/tpmrm0"])("there is no TPM at %s", async (path) => {
  expect(await faultFrom(openTpm(path))).toMatchObject({
    kind: "precondition",
    message: expect.stringContaining(`cannot open TPM at "${path}"`),
    hint: "check tpm_device_path, and that this account may use the device",
  });
});
