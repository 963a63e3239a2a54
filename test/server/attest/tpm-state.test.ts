import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, startAgent } from "../../support/agent.ts";
import { attestWith, refused, selectorsOf } from "../../support/attest.ts";
import { digestsOf, type Event, eventLog, policyEvents, programEvents, TYPE } from "../../support/event-log.ts";
import { eventually } from "../../support/eventually.ts";
import { withoutPostgres } from "../../support/postgres.ts";
import { type Apis, protoId, startServer, type TestServer } from "../../support/server.ts";
import { type Simulator, startSimulator, withoutSwtpm } from "../../support/swtpm.ts";
import { type Bend, hashOf, openTpmMaker, type TpmMaker, tpmAgentOf, withAgent } from "../../support/tpm-agents.ts";

const ZERO = "0".repeat(64);

const scope = new AsyncDisposableStack();
let maker: TpmMaker;
let server: TestServer;
let anonymous: Apis;
/** Accepts nodes in one state only. */
let strict: TestServer;
let atStrict: Apis;

const tpmAgent = (of: Simulator) => tpmAgentOf(of);

describe.skipIf(withoutSwtpm)("the state in which a node was booted", () => {
  beforeAll(async () => {
    maker = scope.use(await openTpmMaker());
    const tpm = { ...maker.config, pcrs: [4, 7, 16, 23] };
    const golden = { pcrs: [`16:${ZERO}`, `7:${ZERO}`] };
    [server, strict] = await Promise.all([
      startServer({ nodeAttestors: { tpm } }).then((started) => scope.use(started)),
      startServer({ nodeAttestors: { tpm: { ...tpm, pcr_sets: { golden } } } }).then((started) => scope.use(started)),
    ]);
    [anonymous, atStrict] = [scope.use(server.connect()), scope.use(strict.connect())];
  });
  afterAll(() => scope[Symbol.asyncDispose]());

  /** What the machine is told to be by its log, with the quote that its registers give. */
  async function toldBy(machine: Simulator, log: Buffer): Promise<readonly string[]> {
    const EventLog = log.toString("base64");
    const bend: Bend = { answer: ({ Secret, Quote }) => ({ Secret, Quote: { ...(Quote as object), EventLog } }) };
    const { id } = await withAgent(tpmAgent(machine), bend, (evidence) => attestWith(anonymous, evidence));
    return (await selectorsOf(server, id)).filter((selector) => /:(?:boot|secureboot):/.test(selector));
  }

  async function extend(machine: Simulator, events: readonly Event[]): Promise<void> {
    for (const pcr of [4, 7])
      for (const digest of digestsOf(events, pcr)) await machine.use((tpm) => tpm.pcrExtend(pcr, digest));
  }

  test("T-N11 what was booted becomes selectors register by register, where the quoted PCR bears it out", async () => {
    await using machine = await startSimulator();
    await maker.register(machine);
    const certificate = Buffer.from("a certificate of db");
    const [loader, kernel] = ["a boot loader", "a kernel"].map((text) => createHash("sha256").update(text).digest());
    const [policy, programs] = [policyEvents(1, certificate), programEvents(loader as Buffer, kernel as Buffer)];
    const log = eventLog(...policy, ...programs);
    const hex = [loader, kernel].map((digest) => digest?.toString("hex"));
    const booted = [`tpm:boot:program:sha256:${hex[0]}`, `tpm:boot:programs:sha256:${hex.join(",")}`];
    const authority = `tpm:secureboot:authority:sha256:${createHash("sha256").update(certificate).digest("hex")}`;
    expect(await toldBy(machine, log)).toEqual([]);
    await extend(machine, programs);
    expect(await toldBy(machine, log)).toEqual(booted);
    await extend(machine, policy);
    expect(await toldBy(machine, log)).toEqual([...booted, authority, "tpm:secureboot:enabled"]);
    expect(await toldBy(machine, eventLog(...policyEvents(0, certificate), ...programs))).toEqual(booted);
    expect(await toldBy(machine, log.subarray(0, -1))).toEqual([]);
    await machine.use((tpm) => tpm.pcrExtend(4, loader as Buffer));
    expect(await toldBy(machine, log)).toEqual([authority, "tpm:secureboot:enabled"]);
  });

  test("T-N11 whoever owns a machine that booted something else cannot make it one that did not", async () => {
    await using machine = await startSimulator();
    await maker.register(machine);
    const [good, evil] = ["good", "evil"].map((text) => createHash("sha256").update(text).digest()) as [Buffer, Buffer];
    const [trusted, own] = [Buffer.from("a certificate of db"), Buffer.from("one that the owner put into db")];
    const booted = [...policyEvents(0, own), ...programEvents(evil)];
    const later = [
      ...policyEvents(1, trusted).filter(({ type }) => type !== TYPE.separator),
      ...programEvents(good).slice(2),
    ];
    await extend(machine, booted);
    await extend(machine, later);
    const both = [evil, good].map((digest) => digest.toString("hex"));
    const authorities = [trusted, own].map((der) => createHash("sha256").update(der).digest("hex"));
    // What the log calls the events of the boot is the owner's choice.
    for (const type of Object.values(TYPE)) {
      const log = eventLog(...booted.map((event) => ({ ...event, type })), ...later);
      const told = await toldBy(machine, log);
      expect(told).not.toContain("tpm:secureboot:enabled");
      expect(told).not.toContain(`tpm:secureboot:authority:sha256:${authorities[0]}`);
      expect(told.filter((selector) => selector.includes(":boot:"))).toEqual([
        `tpm:boot:program:sha256:${both[0]}`,
        `tpm:boot:programs:sha256:${both.join(",")}`,
      ]);
    }
  });

  test("T-N11 a node that leaves the required states is refused, and what it has is withdrawn at once", async () => {
    await using machine = await startSimulator();
    await maker.register(machine);
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
    for (const machine of machines) await maker.register(machine);
    const stores = withoutPostgres ? (["embedded"] as const) : (["embedded", "postgres"] as const);
    // A state of its own for each store: registers only ever grow.
    for (const [at, store] of stores.entries()) {
      const pcr = [16, 23][at] ?? 0;
      const tpm = { ...maker.config, pcrs: [4, 7, 16, 23] };
      await using server = await startServer({ store, nodeAttestors: { tpm } });
      const [alias, web] = ["spiffe://example.org/good-boot", "spiffe://example.org/web"];
      const selectors = [`tpm:pcr:sha256:${pcr}:${ZERO}`];
      await server.createEntry({ spiffeId: alias, parentId: "spiffe://example.org/spire/server", selectors });
      await server.createEntry({ spiffeId: web, parentId: alias });
      const attest = async (machine: Simulator) => {
        using apis = server.connect();
        const svid = await withAgent(tpmAgent(machine), {}, (evidence) => attestWith(apis, evidence));
        using agent = server.connect(svid.tls);
        const { entries } = await agent.entry.GetAuthorizedEntries({});
        return { id: svid.id, isGood: entries.some(({ spiffe_id }) => spiffe_id?.path === "/web") };
      };
      const first = await Promise.all(machines.map(attest));
      expect(new Set(first.map(({ id }) => id)).size).toBe(50);
      expect(first.filter(({ isGood }) => isGood)).toHaveLength(50);
      for (const machine of machines.slice(0, 10))
        await machine.use((open) => open.pcrExtend(pcr, Buffer.alloc(32, 1)));
      const again = await Promise.all(machines.map(attest));
      expect(again.map(({ id }) => id)).toEqual(first.map(({ id }) => id));
      expect(again.map(({ isGood }) => isGood)).toEqual(machines.map((_, index) => index >= 10));
    }
  }, 300_000);

  test("T-N11 an agent quotes its state on a schedule, and an identity that is bound to a PCR goes within a period of its change", async () => {
    await using machine = await startSimulator();
    await maker.certify(machine);
    const alias = "spiffe://example.org/good-boot";
    const web = "spiffe://example.org/web";
    const selectors = [`tpm:pcr:sha256:23:${ZERO}`, `tpm:pub_hash:${await hashOf(machine)}`];
    await server.createEntry({ spiffeId: alias, parentId: "spiffe://example.org/spire/server", selectors });
    await server.createEntry({ spiffeId: web, parentId: alias, selectors: [OWN_SELECTOR] });
    const tpm = { tpm_device_path: machine.devicePath, attestation_key: "ecc", requote_interval: "1s" };
    await using agent = await startAgent(server, { nodeAttestor: { tpm } });
    await using stream = agent.watch();
    await stream.until("the identity", ({ svids }) => svids[0].id === web);
    const attested = () => server.logged("Agent attestation request completed", { agent_id: agent.id() }).length;
    await machine.use((open) => open.pcrExtend(23, Buffer.alloc(32, 1)));
    const before = attested();
    // One may have been under way, with the state of before.
    await eventually("the state has been quoted again", () => attested() >= before + 2);
    const { selectors: now } = await server.admin.agent.GetAgent({ id: protoId(agent.id()) });
    expect(now.map(({ value }) => value)).not.toContain(`pcr:sha256:23:${ZERO}`);
    await agent.untilLogged("Entry removed", { spiffe_id: web });
  });
});
