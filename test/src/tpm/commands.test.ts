import { describe, expect, test } from "vitest";
import { Tpm } from "../../../src/tpm/commands.ts";
import { faultFrom } from "../../support/faults.ts";

/** A TPM that gives these replies, hex, and notes the commands. */
function scripted(...replies: readonly string[]) {
  const commands: string[] = [];
  const left = [...replies];
  const tpm = new Tpm(async (command) => {
    commands.push(Buffer.from(command).toString("hex"));
    return Buffer.from(left.shift() ?? "", "hex");
  });
  return { tpm, commands };
}

const FAILED = "80010000000a000001df";
const SESSION = "8001000000200000000003000000001025cc4059aaae23f9905a60e183719759";
const POLICY = "80020000001d000000000000000a000080234000000700000000010000";

describe("commands, byte for byte as recorded with a TPM", () => {
  test("PCR_Read, and its reply", async () => {
    const reply = `80010000006000000000000000140000000100 0b038100 00000000020020${"00".repeat(32)}0020${"11".repeat(32)}`;
    const { tpm, commands } = scripted(reply.replaceAll(" ", ""));
    expect(await tpm.pcrRead({ hash: 0xb, pcrs: [0, 7] })).toEqual([Buffer.alloc(32), Buffer.alloc(32, 0x11)]);
    expect(commands).toEqual(["8001000000140000017e00000001000b03810000"]);
  });

  test("a bank that the TPM does not have is told apart from one of zeros", async () => {
    const { tpm } = scripted("80010000001c00000000000000140000000100 0b03000000 00000000".replaceAll(" ", ""));
    expect(await tpm.pcrRead({ hash: 0xb, pcrs: [0, 7] })).toBeUndefined();
  });

  test("PCR_Extend", async () => {
    const { tpm, commands } = scripted("80020000001300000000000000000000010000");
    await tpm.pcrExtend(16, Buffer.alloc(32, 1));
    expect(commands).toEqual([`80020000004100000182000000100000000940000009000001000000000001000b${"01".repeat(32)}`]);
  });

  test("ActivateCredential takes a policy session of the endorsement hierarchy, and flushes it when it fails", async () => {
    const { tpm, commands } = scripted(SESSION, POLICY, FAILED, "80010000000a00000000");
    const keys = { attestation: 0x80000002, endorsement: 0x80000000 };
    const fault = await faultFrom(tpm.activateCredential(keys, { blob: Buffer.of(1), secret: Buffer.of(2) }));
    expect(fault).toMatchObject({ kind: "precondition", code: "tpm-refused-command" });
    expect(fault.message).toBe("the TPM refused activateCredential: code 0x1df");
    expect(commands).toEqual([
      "80010000002b000001764000000740000007001000000000000000000000000000000000000001 0010000b".replaceAll(" ", ""),
      "800200000029000001514000000b030000000000000940000009000001000000000000000000000000",
      "80020000002e000001478000000280000000" +
        "00000012" +
        "400000090000010000" +
        "030000000000000000" +
        "000101" +
        "000102",
      "80010000000e0000016503000000",
    ]);
  });

  test("a command that the TPM wants again is sent again", async () => {
    const { tpm, commands } = scripted("80010000000a00000922", "80010000000a00000922", "80010000000a00000000");
    await tpm.flush(0x80000001);
    expect(commands).toEqual(Array.from({ length: 3 }, () => "80010000000e0000016580000001"));
  });

  test("a reply that is cut is malformed", async () => {
    const { tpm } = scripted("8001000000");
    expect((await faultFrom(tpm.flush(1))).code).toBe("tpm-malformed");
  });
});
