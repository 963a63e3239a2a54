import { generateKeyPairSync } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { writeEvidence } from "../../../src/evidence/tpm.ts";
import { certificateFingerprint } from "../../../src/evidence/x509pop.ts";
import { HANDLE } from "../../../src/tpm/commands.ts";
import { parseEndorsement } from "../../../src/tpm/endorsement.ts";
import { parsePublic, TEMPLATE } from "../../../src/tpm/structures.ts";
import { attestWith, refused, selectorsOf } from "../../support/attest.ts";
import { createCa } from "../../support/pki.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { type Simulator, startSimulator, withoutSwtpm } from "../../support/swtpm.ts";
import {
  BAD_ENDORSEMENTS,
  type Bend,
  endorse,
  endorsementKeyOf,
  flip,
  hashOf,
  oaepOf,
  openTpmMaker,
  type TpmMaker,
  tpmAgentOf,
  withAgent,
} from "../../support/tpm-agents.ts";

const ZERO = "0".repeat(64);

const scope = new AsyncDisposableStack();
let maker: TpmMaker;
let simulator: Simulator;
/** Of the same maker, which says nothing of it. */
let other: Simulator;
let server: TestServer;
let anonymous: Apis;
/** Knows no maker, and accepts nodes in one state only. */
let strict: TestServer;
let atStrict: Apis;

const tpmAgent = (of = simulator) => tpmAgentOf(of);

describe.skipIf(withoutSwtpm)("tpm", () => {
  beforeAll(async () => {
    maker = scope.use(await openTpmMaker());
    const tpm = { ...maker.config, pcrs: [7, 16, 23] };
    const golden = { pcrs: [`16:${ZERO}`, `7:${ZERO}`] };
    [simulator, other, server, strict] = await Promise.all([
      startSimulator().then((machine) => scope.use(machine)),
      startSimulator().then((machine) => scope.use(machine)),
      startServer({ nodeAttestors: { tpm } }).then((started) => scope.use(started)),
      startServer({ nodeAttestors: { tpm: { ...tpm, ca_path: maker.folder, pcr_sets: { golden } } } }).then((started) =>
        scope.use(started),
      ),
    ]);
    await maker.certify(simulator, { isNamed: true });
    await maker.certify(other);
    [anonymous, atStrict] = [scope.use(server.connect()), scope.use(strict.connect())];
  });
  afterAll(() => scope[Symbol.asyncDispose]());

  test("a TPM of a known maker attests with what it says of itself and its state", async () => {
    const first = await withAgent(tpmAgent(), {}, (evidence) => attestWith(anonymous, evidence));
    const hash = await hashOf(simulator);
    expect(first).toMatchObject({ id: `spiffe://example.org/spire/agent/tpm/${hash}`, reattestable: true });
    expect(await selectorsOf(server, first.id)).toEqual(
      [
        `tpm:pub_hash:${hash}`,
        "tpm:ek:manufacturer:id:53544550",
        "tpm:ek:model:steeple",
        `tpm:ek:ca:fingerprint:${certificateFingerprint(maker.ca.certificate)}`,
        ...[7, 16].map((pcr) => `tpm:pcr:sha256:${pcr}:${ZERO}`),
        `tpm:pcr:sha256:23:${ZERO}`,
      ].sort(),
    );
  });

  test("a TPM whose maker says of its key that it is for OAEP attests, by the hash of the key itself", async () => {
    const machine = scope.use(await startSimulator());
    const publicKey = oaepOf(await endorsementKeyOf(machine));
    const hash = await hashOf(machine);
    await maker.certify(machine, { publicKey });
    const attested = await withAgent(tpmAgent(machine), {}, (evidence) => attestWith(anonymous, evidence));
    expect(attested.id).toBe(`spiffe://example.org/spire/agent/tpm/${hash}`);
    expect(await selectorsOf(server, attested.id)).toContain(
      `tpm:ek:ca:fingerprint:${certificateFingerprint(maker.ca.certificate)}`,
    );
  });

  test("T-N11 such a certificate for a key that is not the TPM's is of no use", async () => {
    const { publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    const { pem } = await endorse(maker.ca, publicKey, { publicKey: oaepOf(publicKey) });
    const bend: Bend = { payload: (m) => ({ ...m, EK: Buffer.from(pem).toString("base64") }) };
    await expect(withAgent(tpmAgent(), bend, (evidence) => attestWith(anonymous, evidence))).rejects.toMatchObject({
      message: expect.stringContaining("the TPM refused activateCredential"),
    });
  });

  test("an agent of the community's plug-in, which sends no quote, attests without a state", async () => {
    const bend: Bend = { answer: ({ Secret }) => ({ Secret }) };
    const first = await withAgent(tpmAgent(other), bend, (evidence) => attestWith(anonymous, evidence));
    expect(await selectorsOf(server, first.id)).not.toContainEqual(expect.stringContaining(":pcr:"));
  });

  test("a TPM that nobody has registered is refused until its hash is", async () => {
    const bare: Bend = {
      payload: (m) => {
        const pem = Buffer.from(String(m["EK"]), "base64").toString();
        return { ...m, EK: Buffer.from(pem.slice(pem.indexOf("-----BEGIN PUBLIC KEY"))).toString("base64") };
      },
    };
    const attest = () => withAgent(tpmAgent(other), bare, (evidence) => refused(atStrict, evidence));
    expect((await attest()).message).toContain("could not validate EK: its hash is not registered");
    await maker.register(other);
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
    "T-N11 a quote over no PCRs": {
      message: "quote is over other PCRs than those asked for",
      challenge: ({ EC, Quote }) => ({ EC, Quote: { ...(Quote as object), Pcrs: [] } }),
    },
    "T-N11 a quote over more PCRs": {
      message: "quote is over other PCRs than those asked for",
      challenge: ({ EC, Quote }) => ({ EC, Quote: { ...(Quote as object), Pcrs: [7, 8, 16, 23] } }),
    },
    "T-N11 a quote without its values": {
      message: "PCR values do not fit the selection",
      answer: ({ Secret, Quote }) => ({ Secret, Quote: { ...(Quote as object), Pcrs: [] } }),
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
    await maker.register(other);
    const bend: Bend = { answer: ({ Secret }) => ({ Secret }) };
    expect((await withAgent(tpmAgent(other), bend, (evidence) => refused(atStrict, evidence))).message).toContain(
      "the agent sent no quote, and the server requires one",
    );
  });

  test.each(Object.entries(BAD_ENDORSEMENTS))("T-N11 an endorsement certificate %s is refused", async (_, bad) => {
    const { says, ...options } = bad;
    const { pem } = await endorse(maker.ca, await endorsementKeyOf(simulator), options);
    expect(await withEndorsement(pem)).toContain(says);
  });

  test("T-N11 an endorsement certificate of another maker with the same name is refused", async () => {
    const stranger = await createCa({ uris: [] });
    const { pem } = await endorse(stranger, await endorsementKeyOf(simulator));
    expect(await withEndorsement(pem)).toContain("could not validate EK: its hash is not registered, and x509: ");
  });

  async function withEndorsement(pem: string): Promise<string> {
    const bend: Bend = { payload: (m) => ({ ...m, EK: Buffer.from(pem).toString("base64") }) };
    const { kind, message } = await withAgent(tpmAgent(), bend, (evidence) => refused(anonymous, evidence));
    expect(kind).toMatch(/^(denied|invalid)$/);
    return message;
  }
});
