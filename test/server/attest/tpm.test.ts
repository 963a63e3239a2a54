import { generateKeyPairSync } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { writeEvidence } from "../../../src/evidence/tpm.ts";
import { certificateFingerprint } from "../../../src/evidence/x509pop.ts";
import { HANDLE } from "../../../src/tpm/commands.ts";
import { parseEndorsement } from "../../../src/tpm/endorsement.ts";
import { parsePublic, TEMPLATE } from "../../../src/tpm/structures.ts";
import { OWN_SELECTOR, startAgent } from "../../support/agent.ts";
import { attestWith, refused, selectorsOf } from "../../support/attest.ts";
import { secureBootLog } from "../../support/event-log.ts";
import { createCa, type TestCa } from "../../support/pki.ts";
import { type Apis, protoId, startServer, type TestServer } from "../../support/server.ts";
import {
  certifyEndorsement,
  type DevId,
  makeDevId,
  type Simulator,
  startSimulator,
  withoutSwtpm,
} from "../../support/swtpm.ts";
import {
  type Bend,
  devidAgentOf,
  flip,
  hashOf,
  makerName,
  signal,
  tpmAgentOf,
  withAgent,
} from "../../support/tpm-agents.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const ZERO = "0".repeat(64);

let folder: Awaited<ReturnType<typeof temporaryDirectory>>;
let maker: TestCa;
let devices: TestCa;
let simulator: Simulator;
/** Of the same maker. */
let other: Simulator;
let devid: DevId;
let server: TestServer;
let anonymous: Apis;
/** Accepts nodes in one state only. */
let strict: TestServer;
let atStrict: Apis;

const tpmAgent = (of = simulator) => tpmAgentOf(of);
const devidAgent = (files: DevId = devid, of = simulator) => devidAgentOf(of, files);

describe.skipIf(withoutSwtpm)("TPMs", () => {
  beforeAll(async () => {
    folder = await temporaryDirectory();
    [maker, devices] = [await createCa({ uris: [] }), await createCa({ uris: [], subject: { commonName: "devices" } })];
    [simulator, other] = await Promise.all([startSimulator(), startSimulator()]);
    await certifyEndorsement(simulator, maker, { extensions: [makerName()] });
    await certifyEndorsement(other, maker);
    devid = await makeDevId(simulator, devices, { folder: folder.path });
    for (const name of ["certs", "none", "hashes"]) await mkdir(join(folder.path, name));
    await writeFile(join(folder.path, "certs", "maker.pem"), maker.pem);
    await writeFile(join(folder.path, "maker.pem"), maker.pem);
    await writeFile(join(folder.path, "devices.pem"), devices.pem);
    const tpm_devid = {
      devid_ca_path: join(folder.path, "devices.pem"),
      endorsement_ca_path: join(folder.path, "maker.pem"),
    };
    const tpm = { ca_path: join(folder.path, "certs"), hash_path: join(folder.path, "hashes"), pcrs: [7, 16, 23] };
    const golden = { pcrs: [`16:${ZERO}`, `7:${ZERO}`] };
    [server, strict] = await Promise.all([
      startServer({ nodeAttestors: { tpm_devid, tpm } }),
      startServer({ nodeAttestors: { tpm: { ...tpm, ca_path: join(folder.path, "none"), pcr_sets: { golden } } } }),
    ]);
    [anonymous, atStrict] = [server.connect(), strict.connect()];
  });
  afterAll(async () => {
    for (const resource of [anonymous, atStrict]) resource[Symbol.dispose]();
    for (const resource of [server, strict, simulator, other, folder]) await resource[Symbol.asyncDispose]();
  });

  describe("tpm_devid", () => {
    test.each(["ecc", "rsa"] as const)("a device with a %s key attests, as often as it likes", async (kind) => {
      const made = await makeDevId(simulator, devices, { folder: folder.path, kind });
      const first = await withAgent(devidAgent(made), {}, (evidence) => attestWith(anonymous, evidence));
      expect(first).toMatchObject({
        id: `spiffe://example.org/spire/agent/tpm_devid/${certificateFingerprint(made.certificate.certificate)}`,
        reattestable: true,
      });
      expect(await selectorsOf(server, first.id)).toEqual([
        `tpm_devid:ca:fingerprint:${certificateFingerprint(devices.certificate)}`,
        "tpm_devid:issuer:cn:devices",
        "tpm_devid:subject:cn:device-1",
      ]);
    });

    test("an agent process attests by it", async () => {
      const { certPath: devid_cert_path, privPath: devid_priv_path, pubPath: devid_pub_path } = devid;
      const files = { devid_cert_path, devid_priv_path, devid_pub_path, tpm_device_path: simulator.devicePath };
      await using agent = await startAgent(server, { nodeAttestor: { tpm_devid: files } });
      expect(agent.id()).toMatch(/\/spire\/agent\/tpm_devid\/[0-9a-f]{40}$/);
    });

    const FORGED: Readonly<Record<string, Bend & { kind?: string; message: string }>> = {
      "no certificate": {
        kind: "invalid",
        message: "no DevID certificate to attest",
        payload: (m) => ({ ...m, DevIDCert: [] }),
      },
      "no attestation key": {
        kind: "invalid",
        message: "missing attestation key public blob",
        payload: (m) => ({ ...m, AKPub: "" }),
      },
      "no endorsement certificate": {
        kind: "invalid",
        message: "missing endorsement certificate",
        payload: (m) => ({ ...m, EKCert: "" }),
      },
      "T-N11 bytes behind a public blob": {
        kind: "invalid",
        message: "cannot decode DevID key public blob: malformed TPM data: data follows the end",
        payload: (m) => ({
          ...m,
          DevIDPub: Buffer.concat([Buffer.from(String(m["DevIDPub"]), "base64"), Buffer.of(0)]).toString("base64"),
        }),
      },
      "T-N11 another endorsement key than the certificate's": {
        message: "public key in EK certificate differs from public key created via EK template",
        payload: (m) => ({ ...m, EKPub: flip(m["EKPub"]) }),
      },
      "T-N8 a certification with a changed signature": {
        message: "cannot verify that DevID is in the same TPM than AK: signature does not verify",
        payload: (m) => ({ ...m, CertificationSignature: flip(m["CertificationSignature"]) }),
      },
      "T-N11 a changed certification": {
        message: "cannot verify that DevID is in the same TPM than AK: signature does not verify",
        payload: (m) => ({ ...m, CertifiedDevID: flip(m["CertifiedDevID"]) }),
      },
      "a wrong answer to the nonce": {
        message: "devID challenge verification failed",
        challenge: (m) => ({ ...m, DevID: Buffer.alloc(32).toString("base64") }),
      },
      "T-N8 an empty answer to the nonce": {
        message: "devID challenge verification failed",
        answer: (m) => ({ ...m, DevID: "" }),
      },
      "a credential that was not activated": {
        message: "credential activation failed: nonces are different",
        answer: (m) => ({ ...m, CredActivation: Buffer.alloc(32).toString("base64") }),
      },
    };

    /** One for all of them: to make an RSA key takes a TPM its time. */
    test("T-N11 T-N8 what is forged is refused, each for its reason", async () => {
      const attestor = devidAgent();
      const payload = await attestor.evidence(signal);
      const patient = { ...attestor, evidence: async () => payload, done: undefined as unknown as () => void };
      for (const [name, { kind = "denied", message, ...bend }] of Object.entries(FORGED)) {
        const answer = await withAgent(patient, bend, (evidence) => refused(anonymous, evidence));
        expect([name, answer]).toEqual([name, { kind, message: `nodeattestor(tpm_devid): ${message}` }]);
      }
      await attestor.done?.();
    });

    test("T-N11 a DevID certificate for a key outside the TPM is refused", async () => {
      const { publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
      const outside = { publicKey: publicKey.export({ type: "spki", format: "der" }) };
      const made = await makeDevId(simulator, devices, { folder: folder.path, options: outside });
      expect(await withAgent(devidAgent(made), {}, (evidence) => refused(anonymous, evidence))).toEqual({
        kind: "denied",
        message: "nodeattestor(tpm_devid): DevID certificate is for another key than the one in the TPM",
      });
    });

    test("T-N11 a DevID key that may leave its TPM is refused", async () => {
      const template = Buffer.from(TEMPLATE.devidEcc);
      template.writeUInt32BE(0x00040060, 4);
      const made = await makeDevId(simulator, devices, { folder: folder.path, template });
      expect(await withAgent(devidAgent(made), {}, (evidence) => refused(anonymous, evidence))).toMatchObject({
        message: expect.stringContaining("DevID key is not an unrestricted signing key that is fixed to its TPM"),
      });
    });

    test("T-N11 a certificate of another TPM is of no use", async () => {
      let foreign: unknown;
      await withAgent(
        devidAgent(await makeDevId(other, devices, { folder: folder.path }), other),
        {},
        async (evidence) => {
          foreign = JSON.parse(Buffer.from(evidence.payload).toString()) as { EKCert: string; EKPub: string };
        },
      );
      const { EKCert, EKPub } = foreign as { EKCert: string; EKPub: string };
      const bend: Bend = { payload: (m) => ({ ...m, EKCert, EKPub }) };
      await expect(withAgent(devidAgent(), bend, (evidence) => attestWith(anonymous, evidence))).rejects.toMatchObject({
        message: expect.stringContaining("the TPM refused activateCredential"),
      });
    });
  });

  describe("tpm", () => {
    test("a TPM of a known maker attests with what it says of itself and its state", async () => {
      const first = await withAgent(tpmAgent(), {}, (evidence) => attestWith(anonymous, evidence));
      const hash = await hashOf(simulator);
      expect(first).toMatchObject({ id: `spiffe://example.org/spire/agent/tpm/${hash}`, reattestable: true });
      expect(await selectorsOf(server, first.id)).toEqual(
        [
          `tpm:pub_hash:${hash}`,
          "tpm:ek:manufacturer:id:53544550",
          "tpm:ek:model:steeple",
          `tpm:ek:ca:fingerprint:${certificateFingerprint(maker.certificate)}`,
          ...[7, 16].map((pcr) => `tpm:pcr:sha256:${pcr}:${ZERO}`),
          `tpm:pcr:sha256:23:${ZERO}`,
        ].sort(),
      );
    });

    test("an agent of the community's plug-in, which sends no quote, attests without a state", async () => {
      const bend: Bend = { answer: ({ Secret }) => ({ Secret }) };
      const first = await withAgent(tpmAgent(other), bend, (evidence) => attestWith(anonymous, evidence));
      expect(await selectorsOf(server, first.id)).not.toContainEqual(expect.stringContaining(":pcr:"));
    });

    test("a TPM that nobody has registered is refused until its hash is", async () => {
      const hash = await hashOf(other);
      const bare: Bend = {
        payload: (m) => {
          const pem = Buffer.from(String(m["EK"]), "base64").toString();
          return { ...m, EK: Buffer.from(pem.slice(pem.indexOf("-----BEGIN PUBLIC KEY"))).toString("base64") };
        },
      };
      const attest = () => withAgent(tpmAgent(other), bare, (evidence) => refused(atStrict, evidence));
      expect((await attest()).message).toContain("could not validate EK: its hash is not registered");
      await writeFile(join(folder.path, "hashes", hash), "");
      const attested = await withAgent(tpmAgent(other), bare, (evidence) => attestWith(atStrict, evidence));
      expect(await selectorsOf(strict, attested.id)).toContain("tpm:pcr:set:golden");
    });

    const FORGED: Readonly<Record<string, Bend & { kind?: string; message: string }>> = {
      "T-N8 an attestation key whose signature was changed": {
        message: "attestation key's signature does not verify",
        payload: ({ EK, AK }) => ({
          EK,
          AK: { ...(AK as object), CreateSignature: flip((AK as Record<string, unknown>)["CreateSignature"]) },
        }),
      },
      "other creation data": {
        message: "proof of creation is for another key",
        payload: ({ EK, AK }) => ({
          EK,
          AK: { ...(AK as object), CreateData: flip((AK as Record<string, unknown>)["CreateData"]) },
        }),
      },
      "a credential that was not activated": {
        message: "credential activation failed",
        answer: (m) => ({ ...m, Secret: Buffer.alloc(32).toString("base64") }),
      },
      "T-N11 PCR values that were not quoted": {
        message: "PCR values are not the quoted ones",
        answer: ({ Secret, Quote }) => {
          const quote = Quote as { Pcrs: string[] };
          return {
            Secret,
            Quote: { ...quote, Pcrs: [Buffer.alloc(32, 1).toString("base64"), ...quote.Pcrs.slice(1)] },
          };
        },
      },
      "T-N11 a quote over fewer PCRs": {
        message: "quote is over other PCRs than those asked for",
        challenge: ({ EC, Quote }) => ({ EC, Quote: { ...(Quote as object), Pcrs: [7] } }),
      },
      "T-N11 a quote for another nonce": {
        message: "quote is for another nonce",
        challenge: ({ EC, Quote }) => ({
          EC,
          Quote: { ...(Quote as object), Nonce: Buffer.alloc(32).toString("base64") },
        }),
      },
      "T-N8 a quote with a changed signature": {
        message: "quote signature does not verify",
        answer: ({ Secret, Quote }) => ({
          Secret,
          Quote: { ...(Quote as object), Signature: flip((Quote as Record<string, unknown>)["Signature"]) },
        }),
      },
      "a key of TPM 1.2": {
        kind: "invalid",
        message: "failed to unmarshal attestation data: TPM 1.2 is not supported",
        payload: ({ EK, AK }) => ({ EK, AK: { ...(AK as object), UseTCSDActivationFormat: true } }),
      },
    };

    test.each(Object.entries(FORGED))("%s is refused", async (_, { kind = "denied", message, ...bend }) => {
      const answer = await withAgent(tpmAgent(), bend, (evidence) => refused(anonymous, evidence));
      expect(answer).toEqual({ kind, message: `nodeattestor(tpm): ${message}` });
    });

    test("T-N11 an attestation key that would sign what its owner forges is refused", async () => {
      await simulator.use(async (tpm) => {
        const template = Buffer.from(TEMPLATE.akEcc);
        template.writeUInt32BE(0x00040072, 4);
        const root = await tpm.createPrimary(HANDLE.owner, TEMPLATE.srkEcc);
        const key = await tpm.create(root.handle, template);
        const handle = await tpm.load(root.handle, key);
        await tpm.flush(root.handle);
        const ek = await tpm.createPrimary(HANDLE.endorsement, TEMPLATE.ekRsa);
        const { attested, signature } = await tpm.certifyCreation(handle, key);
        const stored = await tpm.nvRead(0x01c00002);
        const payload = writeEvidence({
          ...{
            endorsementKey: parsePublic(ek.publicArea).key,
            endorsement: parseEndorsement(stored ?? Buffer.alloc(0)),
          },
          ...{ attestationPublic: key.publicArea, creationData: key.creationData, attested, signature },
        });
        expect(await refused(anonymous, { type: "tpm", payload })).toEqual({
          kind: "denied",
          message: "nodeattestor(tpm): attestation key is not a restricted signing key of its TPM",
        });
      });
    });

    test("T-N11 a software key beside somebody's endorsement certificate is refused", async () => {
      const { publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
      const bend: Bend = {
        payload: (m) => {
          const pem = Buffer.from(String(m["EK"]), "base64").toString();
          const certificate = pem.slice(0, pem.indexOf("-----BEGIN PUBLIC KEY"));
          const key = publicKey.export({ type: "spki", format: "pem" });
          return { ...m, EK: Buffer.from(certificate + key).toString("base64") };
        },
      };
      expect((await withAgent(tpmAgent(), bend, (evidence) => refused(anonymous, evidence))).message).toContain(
        "the endorsement certificate is for another key",
      );
    });

    test("T-N11 an agent without a quote is refused where a state is required", async () => {
      await writeFile(join(folder.path, "hashes", await hashOf(other)), "");
      const bend: Bend = { answer: ({ Secret }) => ({ Secret }) };
      expect((await withAgent(tpmAgent(other), bend, (evidence) => refused(atStrict, evidence))).message).toContain(
        "the agent sent no quote, and the server requires one",
      );
    });
  });

  test("T-N11 an event log becomes a selector only where the quoted PCR bears it out", async () => {
    await using machine = await startSimulator();
    await writeFile(join(folder.path, "hashes", await hashOf(machine)), "");
    const { log, digest } = secureBootLog(1);
    const attest = async (eventLog: Buffer): Promise<readonly string[]> => {
      const bend: Bend = {
        answer: ({ Secret, Quote }) => ({
          Secret,
          Quote: { ...(Quote as object), EventLog: eventLog.toString("base64") },
        }),
      };
      const { id } = await withAgent(tpmAgent(machine), bend, (evidence) => attestWith(anonymous, evidence));
      return (await selectorsOf(server, id)).filter((selector) => selector.includes("secureboot"));
    };
    expect(await attest(log)).toEqual([]);
    await machine.use((tpm) => tpm.pcrExtend(7, digest));
    expect(await attest(log)).toEqual(["tpm:secureboot:enabled"]);
    expect(await attest(secureBootLog(0).log)).toEqual([]);
    expect(await attest(log.subarray(0, -1))).toEqual([]);
  });

  test("T-N11 a node that leaves the required states is refused, and what it has is withdrawn at once", async () => {
    await using machine = await startSimulator();
    await writeFile(join(folder.path, "hashes", await hashOf(machine)), "");
    const attested = await withAgent(tpmAgent(machine), {}, (evidence) => attestWith(atStrict, evidence));
    using agent = strict.connect(attested.tls);
    await agent.agent.PostStatus({ agent_version: "1" });
    await machine.use((tpm) => tpm.pcrExtend(16, Buffer.alloc(32, 1)));
    expect(await withAgent(tpmAgent(machine), {}, (evidence) => refused(atStrict, evidence))).toEqual({
      kind: "denied",
      message: "nodeattestor(tpm): PCR values are in none of the required sets",
    });
    await expect(agent.agent.PostStatus({ agent_version: "1" })).rejects.toMatchObject({ kind: "denied" });
    expect(await selectorsOf(strict, attested.id)).toEqual([]);
  });

  test("T-N11 a fleet of 50 attests and quotes again; whoever has changed loses what was bound to its state", async () => {
    await using fleet = new AsyncDisposableStack();
    const machines = await Promise.all(Array.from({ length: 50 }, async () => fleet.use(await startSimulator())));
    const attest = async (machine: Simulator): Promise<string> =>
      (await withAgent(tpmAgent(machine), {}, (evidence) => attestWith(anonymous, evidence))).id;
    for (const machine of machines) {
      const payload = await hashOf(machine);
      await writeFile(join(folder.path, "hashes", payload), "");
    }
    const ids = await Promise.all(machines.map(attest));
    expect(new Set(ids).size).toBe(50);
    for (const machine of machines.slice(0, 10)) await machine.use((tpm) => tpm.pcrExtend(23, Buffer.alloc(32, 1)));
    expect(await Promise.all(machines.map(attest))).toEqual(ids);
    const good = await Promise.all(ids.map((id) => selectorsOf(server, id)));
    const bound = good.map((selectors) => selectors.includes(`tpm:pcr:sha256:23:${ZERO}`));
    expect([bound.indexOf(true), bound.lastIndexOf(false)]).toEqual([10, 9]);
  }, 120_000);

  test("an agent quotes its state on a schedule, and an identity that is bound to a PCR goes when that changes", async () => {
    await using machine = await startSimulator();
    await certifyEndorsement(machine, maker);
    const alias = "spiffe://example.org/good-boot";
    const web = "spiffe://example.org/web";
    const selectors = [`tpm:pcr:sha256:23:${ZERO}`, `tpm:pub_hash:${await hashOf(machine)}`];
    await server.createEntry({ spiffeId: alias, parentId: "spiffe://example.org/spire/server", selectors });
    await server.createEntry({ spiffeId: web, parentId: alias, selectors: [OWN_SELECTOR] });
    const tpm = { tpm_device_path: machine.devicePath, attestation_key: "ecc", requote_interval: "1s" };
    await using agent = await startAgent(server, { nodeAttestor: { tpm } });
    await using stream = agent.watch();
    await stream.until("the identity", ({ svids }) => svids[0].id === web);
    await machine.use((open) => open.pcrExtend(23, Buffer.alloc(32, 1)));
    await agent.untilLogged("Entry removed", { spiffe_id: web });
    const { selectors: now } = await server.admin.agent.GetAgent({ id: protoId(agent.id()) });
    expect(now.map(({ value }) => value)).not.toContain(`pcr:sha256:23:${ZERO}`);
  });
});
