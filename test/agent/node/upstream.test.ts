import { describe, expect, test } from "vitest";
import { bundleOf } from "../../../agent/node/bootstrap.ts";
import { unary } from "../../../src/rpc/service.ts";
import { Fault, isFault } from "../../../src/runtime/fault.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";
import { startScriptedServer, tlsIdentity } from "../../support/scripted-server.ts";
import { temporaryDirectory } from "../../support/workload.ts";
import { AGENT, attesting, evidenceOf, HOME, nodeFacing } from "./scripts.ts";

const forever = new AbortController().signal;

describe("calls to the server", () => {
  test("attestation and the first bundle go over one connection without a certificate, the rest with the SVID", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    await facing.upstream.postStatus("1.0", forever);
    expect(server.calls).toEqual(["AttestAgent nobody", "GetBundle nobody", `PostStatus ${AGENT}`]);
  });

  test("challenges are answered one by one by the attestor", async () => {
    await using folder = await temporaryDirectory();
    const answers: string[] = [];
    await using server = await startScriptedServer(
      { trustDomain: "home.test" },
      attesting({ challenges: ["first", "second"], answers }),
    );
    using facing = await nodeFacing(server, { dataDir: folder.path, attestor: evidenceOf("hello", ["one", "two"]) });
    await facing.node.open(forever);
    expect(answers).toEqual(["one to first", "two to second"]);
  });

  test("T-C4 a server that shows another identity is not talked to", async () => {
    await using folder = await temporaryDirectory();
    const ca = await createCa({ trustDomain: "home.test" });
    const certificate = { id: "spiffe://home.test/web" };
    await using server = await startScriptedServer({ trustDomain: "home.test", ca, certificate }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    const trust = { kind: "bundle", bundle: bundleOf(HOME, [ca.der]) } as const;
    const fault = await faultFrom(
      facing.upstream.attest({ attestor: evidenceOf("secret"), csr: Buffer.from("csr"), trust }, forever),
    );
    expect(fault.message).toContain(
      'expected server SPIFFE ID "spiffe://home.test/spire/server"; got "spiffe://home.test/web"',
    );
    expect(server.calls).toEqual([]);
  });

  test("an error keeps the server's status and says what was being done", async () => {
    await using folder = await temporaryDirectory();
    const script = attesting();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, (parts) => ({
      ...script(parts),
      svid: {
        BatchNewX509SVID: unary(async () => {
          throw new Fault("exhausted", "slow down");
        }),
      },
    }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const fault = await faultFrom(facing.upstream.signX509([], forever));
    expect([fault.kind, fault.message]).toEqual(["exhausted", "failed to batch new X509 SVID(s): slow down"]);
  });

  test("a server that comes back on its port is reached again without more ado", async () => {
    await using folder = await temporaryDirectory();
    const first = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(first, { dataDir: folder.path });
    await facing.node.open(forever);
    await facing.upstream.bundle(forever);
    await first[Symbol.asyncDispose]();
    const fault = await faultFrom(facing.upstream.bundle(forever));
    expect(isFault(fault, "unavailable")).toBe(true);
    await using second = await startScriptedServer(
      { trustDomain: "home.test", ca: first.ca, port: first.port },
      attesting(),
    );
    await facing.upstream.bundle(forever);
    expect(second.calls).toEqual([`GetBundle ${AGENT}`]);
  });

  test("connections that the server closes for their age do not show", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test", maxConnectionAgeMs: 50 }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const started = performance.now();
    let calls = 0;
    // Many lives of a connection, and many calls: each of them succeeds.
    while (calls < 25 || performance.now() - started < 1000) {
      await facing.upstream.bundle(forever);
      calls += 1;
    }
  });

  test("a new bundle is what the next connection is checked against", async () => {
    await using folder = await temporaryDirectory();
    await using server = await startScriptedServer({ trustDomain: "home.test" }, attesting());
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    await facing.upstream.bundle(forever);
    const next = await createCa({ trustDomain: "home.test" });
    server.identity.set(tlsIdentity(await next.issue({ id: "spiffe://home.test/spire/server" })));

    facing.credentials.bundle.set(bundleOf(HOME, [next.der]));
    await facing.upstream.bundle(forever);

    facing.credentials.bundle.set(bundleOf(HOME, [server.ca.der]));
    const fault = await faultFrom(facing.upstream.bundle(forever));
    expect([fault.kind, fault.code]).toEqual(["unavailable", "unknown-authority"]);
  });

  test("while the SVID is replaced no other call is under way", async () => {
    await using folder = await temporaryDirectory();
    const script = attesting();
    const held = Promise.withResolvers<void>();
    const order: string[] = [];
    await using server = await startScriptedServer({ trustDomain: "home.test" }, (parts) => ({
      ...script(parts),
      svid: {
        BatchNewX509SVID: unary(async () => {
          order.push("signing starts");
          await held.promise;
          order.push("signing ends");
          return { results: [] };
        }),
      },
    }));
    using facing = await nodeFacing(server, { dataDir: folder.path });
    await facing.node.open(forever);
    const signing = facing.upstream.signX509([], forever);
    await eventually("the call to arrive", () => order.length > 0);
    const alone = facing.upstream.exclusively(async () => order.push("alone"));
    const after = facing.upstream.bundle(forever).then(() => order.push("after"));
    held.resolve();
    await Promise.all([signing, alone, after]);
    expect(order).toEqual(["signing starts", "signing ends", "alone", "after"]);
  });
});
