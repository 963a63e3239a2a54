import { generateKeyPairSync } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { certificateFingerprint } from "../../../src/evidence/x509pop.ts";
import { TEMPLATE } from "../../../src/tpm/structures.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, refused, selectorsOf } from "../../support/attest.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { type DevId, makeDevId, type Simulator, startSimulator, withoutSwtpm } from "../../support/swtpm.ts";
import {
  BAD_ENDORSEMENTS,
  type Bend,
  devidAgentOf,
  endorse,
  endorsementKeyOf,
  flip,
  oaepOf,
  openTpmMaker,
  signal,
  type TpmMaker,
  withAgent,
} from "../../support/tpm-agents.ts";

const scope = new AsyncDisposableStack();
let maker: TpmMaker;
let devices: TestCa;
let simulator: Simulator;
/** Of the same maker. */
let other: Simulator;
let devid: DevId;
let server: TestServer;
let anonymous: Apis;

const devidAgent = (files: DevId = devid, of = simulator) => devidAgentOf(of, files);

describe.skipIf(withoutSwtpm)("tpm_devid", () => {
  beforeAll(async () => {
    maker = scope.use(await openTpmMaker());
    devices = await createCa({ uris: [], subject: { commonName: "devices" } });
    simulator = scope.use(await startSimulator());
    other = scope.use(await startSimulator());
    for (const machine of [simulator, other]) await maker.certify(machine);
    devid = await makeDevId(simulator, devices, { folder: maker.folder });
    await writeFile(join(maker.folder, "devices.pem"), devices.pem);
    const endorsement_ca_path = join(maker.config.ca_path, "maker.pem");
    const tpm_devid = { devid_ca_path: join(maker.folder, "devices.pem"), endorsement_ca_path };
    server = scope.use(await startServer({ nodeAttestors: { tpm_devid } }));
    anonymous = scope.use(server.connect());
  });
  afterAll(() => scope[Symbol.asyncDispose]());

  test.each(["ecc", "rsa"] as const)("a device with a %s key attests, as often as it likes", async (kind) => {
    const made = await makeDevId(simulator, devices, { folder: maker.folder, kind });
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

  test("a TPM whose maker says of its key that it is for OAEP attests", async () => {
    const key = await endorsementKeyOf(simulator);
    const { der } = await endorse(maker.ca, key, { publicKey: oaepOf(key) });
    const bend: Bend = { payload: (m) => ({ ...m, EKCert: Buffer.from(der).toString("base64") }) };
    const attested = await withAgent(devidAgent(), bend, (evidence) => attestWith(anonymous, evidence));
    expect(attested.id).toContain("/spire/agent/tpm_devid/");
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
    "T-N11 a certification of another key": {
      message: "cannot verify that DevID is in the same TPM than AK: certify failed",
      payload: (m) => ({ ...m, DevIDPub: m["AKPub"] }),
    },
    "more certificates than a device has": {
      kind: "invalid",
      message: "too many DevID certificates",
      payload: (m) => ({ ...m, DevIDCert: Array(7).fill((m["DevIDCert"] as string[])[0]) }),
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
  async function patiently(work: (attempt: (bend: Bend) => ReturnType<typeof refused>) => Promise<void>) {
    const attestor = devidAgent();
    const payload = await attestor.evidence(signal);
    const patient = { ...attestor, evidence: async () => payload, done: undefined as unknown as () => void };
    try {
      await work((bend) => withAgent(patient, bend, (evidence) => refused(anonymous, evidence)));
    } finally {
      await attestor.done?.();
    }
  }

  test("T-N11 T-N8 what is forged is refused, each for its reason", () =>
    patiently(async (attempt) => {
      for (const [name, { kind = "denied", message, ...bend }] of Object.entries(FORGED)) {
        const answer = await attempt(bend);
        expect([name, answer]).toEqual([name, { kind, message: `nodeattestor(tpm_devid): ${message}` }]);
      }
    }));

  test("T-N11 certificates of the TPM and of the device that count for nothing are refused, each for its reason", async () => {
    const key = await endorsementKeyOf(simulator);
    await patiently(async (attempt) => {
      const { publicKey } = devid.certificate.certificate;
      const [stranger, subject] = [await createCa({ uris: [], subject: { commonName: "devices" } }), {}];
      const bad: [string, Issued, string][] = [];
      for (const [name, { says, ...options }] of Object.entries(BAD_ENDORSEMENTS))
        bad.push([`EKCert ${name}`, await endorse(maker.ca, key, options), says]);
      bad.push(["EKCert of a stranger", await endorse(stranger, key), "cannot verify EK signature: x509: "]);
      const ended = { notBefore: new Date(0), notAfter: new Date(1000) };
      for (const [name, by, options, says] of [
        ["DevIDCert of a stranger", stranger, {}, "unable to verify DevID signature: x509: "],
        [
          "DevIDCert that has expired",
          devices,
          ended,
          "unable to verify DevID signature: x509: certificate has expired",
        ],
      ] as const)
        bad.push([name, await by.issue({ uris: [], publicKey, subject, ...options }), says]);
      for (const [name, { der }, says] of bad) {
        const shown = Buffer.from(der).toString("base64");
        const payload: Bend["payload"] = (m) =>
          name.startsWith("EKCert") ? { ...m, EKCert: shown } : { ...m, DevIDCert: [shown] };
        expect([name, await attempt({ payload })]).toEqual([
          name,
          { kind: expect.stringMatching(/^(denied|invalid)$/), message: expect.stringContaining(says) },
        ]);
      }
    });
  });

  test("T-N11 an attestation key that would sign what its owner forges is refused", () =>
    patiently(async (attempt) => {
      const payload: Bend["payload"] = (m) => {
        const unrestricted = Buffer.from(String(m["AKPub"]), "base64");
        unrestricted.writeUInt32BE(unrestricted.readUInt32BE(4) & ~0x00010000, 4);
        return { ...m, AKPub: unrestricted.toString("base64") };
      };
      expect((await attempt({ payload })).message).toContain(
        "attestation key is not a restricted signing key of its TPM",
      );
    }));

  test("T-N11 a DevID certificate for a key outside the TPM is refused", async () => {
    const { publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const outside = { publicKey: publicKey.export({ type: "spki", format: "der" }) };
    const made = await makeDevId(simulator, devices, { folder: maker.folder, options: outside });
    expect(await withAgent(devidAgent(made), {}, (evidence) => refused(anonymous, evidence))).toEqual({
      kind: "denied",
      message: "nodeattestor(tpm_devid): DevID certificate is for another key than the one in the TPM",
    });
  });

  test("T-N11 a DevID key that may leave its TPM is refused", async () => {
    const template = Buffer.from(TEMPLATE.devidEcc);
    template.writeUInt32BE(0x00040060, 4);
    const made = await makeDevId(simulator, devices, { folder: maker.folder, template });
    expect(await withAgent(devidAgent(made), {}, (evidence) => refused(anonymous, evidence))).toMatchObject({
      message: expect.stringContaining("DevID key is not an unrestricted signing key that is fixed to its TPM"),
    });
  });

  test("T-N11 a certificate of another TPM is of no use", async () => {
    let foreign: unknown;
    await withAgent(
      devidAgent(await makeDevId(other, devices, { folder: maker.folder }), other),
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
