import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { startServer } from "../support/server.ts";
import { PROJECT } from "../support/server-process.ts";
import { swtpmEnv, withoutSwtpm } from "../support/swtpm.ts";
import { temporaryDirectory } from "../support/workload.ts";

const MAIN = join(PROJECT, "src/dev/main.ts");
const env = { ...process.env, ...swtpmEnv };
const steeple = (...args: readonly string[]) => promisify(execFile)(process.execPath, [MAIN, ...args], { env });

describe.skipIf(withoutSwtpm)("steeple tpm", () => {
  test("provision makes a machine that attests by tpm and by tpm_devid, and show tells its registrar what to know", async () => {
    await using folder = await temporaryDirectory();
    const place = join(folder.path, "machine");
    const { stdout: made } = await steeple("tpm", "provision", "--simulator", place, "--once");
    expect(made).toContain(`its TPM at unix:${place}/tpm.sock`);
    const machine = spawn(process.execPath, [MAIN, "tpm", "provision", "--simulator", place], { env, stdio: "pipe" });
    const ended = once(machine, "exit");
    let output = "";
    machine.stdout.on("data", (text: Buffer) => {
      output += text.toString();
    });
    await eventually("the machine runs", () => output.includes("Agent, one of:"), 30_000);
    const device = `unix:${place}/tpm.sock`;
    const { stdout: shown } = await steeple("tpm", "show", "--device", device);
    const hash = /Endorsement key {3}([0-9a-f]{64})\n/.exec(shown)?.[1] ?? "";
    expect(shown).toMatch(/PCR 23 {12}[0-9a-f]{64}\n/);
    expect(shown).toContain("Certificate       issued by Simulated TPM maker");
    await using server = await startServer({
      nodeAttestors: {
        tpm: { ca_path: join(place, "certs"), hash_path: join(place, "hashes") },
        tpm_devid: {
          devid_ca_path: join(place, "devices.pem"),
          endorsement_ca_path: join(place, "certs", "maker.pem"),
        },
      },
    });
    const tpm = { tpm_device_path: device };
    {
      await using agent = await startAgent(server, { nodeAttestor: { tpm } });
      expect(agent.id()).toBe(`spiffe://example.org/spire/agent/tpm/${hash}`);
    }
    const [devid_cert_path, devid_priv_path, devid_pub_path] = ["crt", "priv", "pub"].map((ending) =>
      join(place, `devid.${ending}`),
    );
    const tpm_devid = { ...tpm, devid_cert_path, devid_priv_path, devid_pub_path };
    await using agent = await startAgent(server, { nodeAttestor: { tpm_devid } });
    expect(agent.id()).toContain("/spire/agent/tpm_devid/");
    machine.kill("SIGTERM");
    await ended;
  }, 90_000);

  test("without a simulator, provision says how to get one", async () => {
    await using folder = await temporaryDirectory();
    const env = { ...process.env, SWTPM: "/nowhere/swtpm" };
    const args = [MAIN, "tpm", "provision", "--simulator", join(folder.path, "m")];
    const failure = await promisify(execFile)(process.execPath, args, { env }).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: 1, stderr: expect.stringContaining("could not start /nowhere/swtpm") });
    expect(failure).toMatchObject({ stderr: expect.stringContaining("apt-get install swtpm") });
  });
});
