import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { AgentState } from "../../../agent/node/state.ts";
import { parseCertificateRequest } from "../../../src/crypto/csr.ts";
import { openDiskKeys } from "../../../src/keys/disk.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { agentDenied, type DenialReason } from "../../../src/rpc/status.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { SteppedClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { type CertificateOptions, createCa } from "../../support/pki.ts";
import { startScriptedServer } from "../../support/scripted-server.ts";
import { temporaryDirectory } from "../../support/workload.ts";
import { AGENT, attesting, evidenceOf, HOME, nodeFacing } from "./scripts.ts";

const forever = new AbortController().signal;
const HOUR = 3_600_000;

const ago = (ms: number) => new Date(systemClock.now().getTime() - ms);

describe("starting", () => {
  test("without an SVID the node attests, and keeps what it got", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ reattestable: true }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    expect(facing.credentials.identity.value).toMatchObject({ id: AGENT, reattestable: true, keyId: "agent-svid-A" });
    expect(facing.messages()).toEqual([
      "Bundle is not found",
      "SVID is not found. Starting node attestation",
      "Insecure bootstrap enabled; skipping server certificate verification",
      "Node attestation was successful",
    ]);
    expect(facing.log.lines.at(-1)?.fields).toEqual({ spiffe_id: AGENT, reattestable: true });
    const { data } = await AgentState.load(folder.path);
    expect([data.svid.length, data.bundle.length, data.reattestable]).toEqual([1, 1, true]);
  });

  test("with an SVID and its key nobody is asked", async () => {
    await using folder = await temporaryDirectory();
    const keys = await openDiskKeys(join(folder.path, "keys.json"));
    const server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    {
      using first = await nodeFacing(server, { dataDir: folder.path, keys });
      await first.node.open(forever);
    }
    await server[Symbol.asyncDispose]();
    using again = await nodeFacing(server, {
      dataDir: folder.path,
      keys: await openDiskKeys(join(folder.path, "keys.json")),
    });
    await again.node.open(forever);
    expect(again.messages()).toEqual(["Bundle loaded", "SVID loaded"]);
    expect(again.credentials.identity.value?.id).toBe(AGENT);
  });

  test("an SVID without its key is replaced by a fresh attestation, over the bundle that is kept", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    for (const _ of [1, 2]) {
      using facing = await nodeFacing(server, { dataDir: folder.path, keys: openMemoryKeys() });
      await facing.node.open(forever);
    }
    expect(server.calls.filter((call) => call.startsWith("AttestAgent"))).toHaveLength(2);
    using other = await nodeFacing(server, {
      dataDir: folder.path,
      keys: openMemoryKeys(),
      trustBundle: { kind: "none" },
    });
    await other.node.open(forever);
    expect(other.messages()).toContain("SVID recovered, but no keys found. Generating new keypair");
    expect(other.messages()).not.toContain("Insecure bootstrap enabled; skipping server certificate verification");
  });

  test("an expired SVID is replaced by a fresh attestation, with the key in the other slot", async () => {
    await using folder = await temporaryDirectory();
    const keys = openMemoryKeys();
    let expired = true;
    const certificate = () => (expired ? { notBefore: ago(HOUR), notAfter: ago(1000) } : {});
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ certificate }));
    using first = await nodeFacing(server, { dataDir: folder.path, keys });
    await first.node.open(forever);
    expired = false;
    using second = await nodeFacing(server, { dataDir: folder.path, keys });
    await second.node.open(forever);
    expect(second.messages()).toContain("SVID key recovered, but SVID is expired. Generating new keypair");
    expect(second.credentials.identity.value?.keyId).toBe("agent-svid-B");
  });

  test("an SVID without any bundle is not trusted to an insecure bootstrap", async () => {
    await using folder = await temporaryDirectory();
    const keys = openMemoryKeys();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using first = await nodeFacing(server, { dataDir: folder.path, keys });
    await first.node.open(forever);
    const path = join(folder.path, "agent-data.json");
    await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), bundle: null }));
    using second = await nodeFacing(server, { dataDir: folder.path, keys });
    const fault = await faultFrom(second.node.open(forever));
    expect([fault.kind, fault.code]).toEqual(["precondition", "bundle-missing"]);
  });

  test("T-F7 an SVID that starts in the future says that the clock is early", async () => {
    await using folder = await temporaryDirectory();
    const certificate = () => ({ notBefore: ago(-HOUR), notAfter: ago(-2 * HOUR) });
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ certificate }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    expect(facing.messages()).toContain("The clock of this machine is earlier than the start of the agent's SVID");
  });

  test.each([
    {
      what: "another key",
      certificate: async () => ({ publicKey: (await createCa()).signer.publicKey }),
      reason: "another key",
    },
    {
      what: "the server itself",
      certificate: async () => ({ id: "spiffe://home.test/spire/server" }),
      reason: "names spiffe://home.test/spire/server",
    },
    {
      what: "another trust domain",
      certificate: async () => ({ id: "spiffe://evil.test/spire/agent/a" }),
      reason: "names spiffe://evil.test",
    },
  ])("T-C4 an SVID for $what is not taken", async ({ certificate, reason }) => {
    await using folder = await temporaryDirectory();
    const options = await certificate();
    // The server signs whatever the script says: here, something that it should not.
    await using server = await startScriptedServer({ trustDomain: "home.test" }, (parts) =>
      attesting({ certificate: () => options })({
        ...parts,
        signCsr: (csr, wanted) =>
          parts
            .signCsr(csr, wanted)
            .then((made) => ("publicKey" in options ? parts.ca.issue({ id: AGENT, ...options }) : made)),
      }),
    );
    using facing = await nodeFacing(server, { dataDir: folder.path });
    expect((await faultFrom(facing.node.open(forever))).message).toContain(reason);
    expect(facing.credentials.identity.value).toBeUndefined();
    expect((await AgentState.load(folder.path)).data.svid).toEqual([]);
  });
});

/** An agent that is due for rotation from the start. */
const due = () => ({ notBefore: ago(HOUR), notAfter: ago(-60_000) });
const fresh = () => ({});

describe("rotation", () => {
  test("renews with a new key in the other slot, and the old SVID authenticates the call", async () => {
    await using folder = await temporaryDirectory();
    let certificate: () => CertificateOptions = due;
    const renew = () => {
      certificate = fresh;
    };
    await using server = await startScriptedServer(
      { trustDomain: "home.test" },
      attesting({ certificate: () => certificate(), renew }),
    );
    const keys = openMemoryKeys();
    {
      using first = await nodeFacing(server, { dataDir: folder.path, keys });
      await first.node.open(forever);
    }
    using facing = await nodeFacing(server, { dataDir: folder.path, keys });
    await facing.node.open(forever);
    const before = facing.credentials.identity.value;
    const stop = new AbortController();
    const running = facing.node.run(stop.signal).catch(() => {});
    const after = await eventually(
      "the new SVID",
      () => facing.credentials.identity.value !== before && facing.credentials.identity.value,
    );
    stop.abort();
    await running;
    expect(after).toMatchObject({ keyId: "agent-svid-B", reattestable: false });
    expect(server.calls.at(-1)).toBe(`RenewAgent ${AGENT}`);
    expect(facing.messages()).toContain("Successfully rotated agent SVID");
    expect(Buffer.compare((await AgentState.load(folder.path)).data.svid[0]!, after.chain[0]!)).toBe(0);
    await facing.upstream.postStatus("1", forever);
  });

  test("re-attests when the server allows it", async () => {
    await using folder = await temporaryDirectory();
    let certificate: () => CertificateOptions = due;
    await using server = await startScriptedServer(
      { trustDomain: "home.test" },
      attesting({ reattestable: true, certificate: () => certificate() }),
    );
    const keys = openMemoryKeys();
    {
      using first = await nodeFacing(server, { dataDir: folder.path, keys });
      await first.node.open(forever);
    }
    certificate = fresh;
    using facing = await nodeFacing(server, { dataDir: folder.path, keys });
    await facing.node.open(forever);
    const before = facing.credentials.identity.value;
    const stop = new AbortController();
    const running = facing.node.run(stop.signal).catch(() => {});
    await eventually("the new SVID", () => facing.credentials.identity.value !== before);
    stop.abort();
    await running;
    expect(server.calls.filter((call) => call === "AttestAgent nobody")).toHaveLength(2);
    expect(server.calls.join()).not.toContain("RenewAgent");
    expect(facing.messages()).toContain("Successfully reattested node");
  });

  test("a tainted authority makes the agent rotate at once, another one does not", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const before = facing.credentials.identity.value;
    const stop = new AbortController();
    const running = facing.node.run(stop.signal).catch(() => {});
    facing.node.taint(new Set(["00"]));
    expect(facing.credentials.identity.value).toBe(before);
    facing.node.taint(new Set([server.ca.certificate.subjectKeyId]));
    await eventually("the new SVID", () => facing.messages().includes("Successfully rotated agent SVID"));
    stop.abort();
    await running;
    expect(facing.messages()).toContain("Agent SVID is tainted by a root authority, forcing rotation");
  });

  test("T-F7 an agent whose clock is set a year ahead keeps its SVID, and is well again when the clock is", async () => {
    await using folder = await temporaryDirectory();
    const clock = new SteppedClock();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path, clock });
    await facing.node.open(forever);
    const before = facing.credentials.identity.value;
    clock.step(366 * 24 * HOUR);
    const stop = new AbortController();
    const running = facing.node.run(stop.signal).catch((error: unknown) => (stop.signal.aborted ? undefined : error));
    await eventually(
      "a failed rotation",
      () => facing.messages().filter((text) => text === "Could not reattest agent").length > 0,
    );
    expect(facing.credentials.identity.value).toBe(before);
    expect((await AgentState.load(folder.path)).data.svid).toHaveLength(1);
    clock.step(-366 * 24 * HOUR);
    await facing.upstream.postStatus("1", forever);
    stop.abort();
    expect(await running).toBeUndefined();
  });
});

describe("what a refusal asks for", () => {
  const reasons: readonly DenialReason[] = ["expired", "not_attested", "not_active"];

  test.each(reasons)("%s: an agent that can re-attest does, and goes on", async (reason) => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ reattestable: true }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const before = facing.credentials.identity.value;
    await facing.node.recover(agentDenied(reason, "agent is not what it was"), forever);
    expect(facing.credentials.identity.value).not.toBe(before);
    expect(facing.messages()).toContain("Agent needs to re-attest; will attempt to re-attest");
  });

  test.each(reasons)("%s: an agent that cannot re-attest removes its SVID and stops", async (reason) => {
    await using folder = await temporaryDirectory();
    const renew = () => {
      throw agentDenied(reason, "agent is not what it was");
    };
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ renew }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const refusal = agentDenied(reason, "agent is not what it was");
    expect(await faultFrom(facing.node.recover(refusal, forever))).toMatchObject({
      message: refusal.message,
      cause: refusal,
    });
    expect(facing.messages()).toContain("Agent failed re-attestation; removing SVID and shutting down");
    expect((await AgentState.load(folder.path)).data.svid).toEqual([]);
    expect((await AgentState.load(folder.path)).data.bundle).toHaveLength(1);
  });

  test.each([
    new Fault("denied", "agent is quarantined", { code: "agent-quarantined" }),
    new Fault("unavailable", "no answer"),
  ])(
    "T-N13 not_active: an agent that cannot re-attest renews once more, and keeps its SVID when it hears: $message",
    async (answer) => {
      await using folder = await temporaryDirectory();
      const renew = () => {
        throw answer;
      };
      await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ renew }));
      using facing = await nodeFacing(server, { dataDir: folder.path });
      await facing.node.open(forever);
      await facing.node.recover(agentDenied("not_active", "agent is not what it was"), forever);
      expect((await AgentState.load(folder.path)).data.svid).not.toEqual([]);
    },
  );

  test("must_reattest: the agent re-attests whatever it was told before", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const before = facing.credentials.identity.value;
    await facing.node.recover(agentDenied("must_reattest", "agent must reattest instead of renew"), forever);
    expect(facing.credentials.identity.value).not.toBe(before);
  });

  test("banned: the agent removes its SVID and stops, even if it could re-attest", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ reattestable: true }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const refusal = agentDenied("banned", "agent is banned");
    expect(await faultFrom(facing.node.recover(refusal, forever))).toMatchObject({
      message: refusal.message,
      cause: refusal,
    });
    expect(facing.messages().at(-1)).toBe("Agent is banned: removing SVID and shutting down");
    expect((await AgentState.load(folder.path)).data.svid).toEqual([]);
    expect(server.calls.filter((call) => call.startsWith("AttestAgent"))).toHaveLength(1);
  });

  test("anything else leaves the agent as it is", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    for (const kind of ["denied", "unavailable", "internal", "timeout"] as const) {
      await facing.node.recover(new Fault(kind, "no"), forever);
      await facing.node.refusedAtStart(new Fault(kind, "no"));
    }
    expect((await AgentState.load(folder.path)).data.svid).toHaveLength(1);
  });

  test("before the first sync the SVID goes and the agent stops, so that the next start attests anew", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ reattestable: true }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const refusal = agentDenied("not_active", "agent is not active");
    expect(await faultFrom(facing.node.refusedAtStart(refusal))).toMatchObject({
      message: refusal.message,
      cause: refusal,
    });
    expect(facing.messages().at(-1)).toBe("Agent needs to re-attest: removing SVID and shutting down");
    expect((await AgentState.load(folder.path)).data.svid).toEqual([]);
  });

  test("an expired SVID that the server will not replace ends the agent, one whose server is away does not", async () => {
    await using folder = await temporaryDirectory();
    const clock = new SteppedClock();
    const tokens = new Set(["token"]);
    const admit = (token: string): void => {
      if (!tokens.delete(token))
        throw new Fault("invalid", "failed to attest: join token does not exist or has already been used");
    };
    const certificate = () => ({ notAfter: ago(-2000) });
    const renew = () => {
      throw new Fault("unavailable", "try later");
    };
    await using server = await startScriptedServer(
      { trustDomain: "home.test" },
      attesting({ admit, certificate, renew }),
    );
    using facing = await nodeFacing(server, { dataDir: folder.path, clock, attestor: evidenceOf("token") });
    await facing.node.open(forever);
    clock.step(10_000);
    const fault = await faultFrom(facing.node.run(forever));
    expect(fault.message).toContain(
      "current SVID has already expired and rotate agent SVID failed: failed to renew agent: try later",
    );
    expect(fault.hint).toContain("join token");
  });
});

test("the bundle of a sync is trusted at once and at the next start", async () => {
  await using folder = await temporaryDirectory();
  const keys = openMemoryKeys();
  await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
  using facing = await nodeFacing(server, { dataDir: folder.path, keys });
  await facing.node.open(forever);
  const next = await createCa({ trustDomain: "home.test" });
  const bundle = { ...facing.credentials.bundle.value, x509Authorities: [{ asn1: next.der, tainted: false }] };
  await facing.node.acceptBundle(bundle);
  expect(facing.credentials.bundle.value).toBe(bundle);
  using again = await nodeFacing(server, { dataDir: folder.path, keys });
  await again.node.open(forever);
  expect(again.credentials.bundle.value.trustDomain).toBe(HOME);
  expect(Buffer.compare(again.credentials.bundle.value.x509Authorities[0]!.asn1, next.der)).toBe(0);
});

describe("the key of an attestation", () => {
  const keysOf = (csrs: readonly Uint8Array[]) =>
    csrs.map((csr) => Buffer.from(parseCertificateRequest(csr).publicKey).toString("hex"));

  test("is the same until one succeeds, also after a restart, so that a lost answer costs no token", async () => {
    await using folder = await temporaryDirectory();
    const csrs: Uint8Array[] = [];
    let answers = false;
    const admit = (): void => {
      if (!answers) throw new Fault("unavailable", "lost");
    };
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ csrs, admit }));
    await using keys = await openDiskKeys(join(folder.path, "keys.json"));
    for (let starts = 0; starts < 2; starts += 1) {
      using facing = await nodeFacing(server, { dataDir: folder.path, keys });
      await faultFrom(facing.node.open(forever));
      await faultFrom(facing.node.open(forever));
    }
    answers = true;
    using facing = await nodeFacing(server, { dataDir: folder.path, keys });
    await facing.node.open(forever);
    expect(csrs).toHaveLength(5);
    expect(new Set(keysOf(csrs)).size).toBe(1);
    expect(await readFile(join(folder.path, "agent-data.json"), "utf8")).not.toContain("attesting_key");
  });

  test("is a new one for every attestation that follows a success, and after a refusal has ended the identity", async () => {
    await using folder = await temporaryDirectory();
    const csrs: Uint8Array[] = [];
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting({ csrs }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    await facing.state.deleteSvid();
    using again = await nodeFacing(server, { dataDir: folder.path, keys: facing.keys });
    await again.node.open(forever);
    expect(new Set(keysOf(csrs)).size).toBe(2);
  });
});
