import { createPrivateKey } from "node:crypto";
import { describe, expect, test } from "vitest";
import { parseCertificates } from "../../../src/crypto/certificate.ts";
import { dialBroker, objectReference, pidReference, reference, spiffeReasonOf } from "../../support/broker.ts";
import {
  ANY,
  admin,
  asNobody,
  BROKER,
  broker,
  endpoint,
  expectAll,
  ext,
  grant,
  issued,
  issueFor,
  mine,
  other,
  ownReference,
  PID_TYPE,
  root,
  rootB,
  streams,
  web,
} from "../../support/broker-endpoint.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { tlsIdentity } from "../../support/scripted-server.ts";
import { isRoot, startWorkload } from "../../support/workload.ts";

describe("what a broker gets for a workload", () => {
  test("BRK-01 BRK-14b BRK-67 BRK-75a BRK-75b BRK-75c T-W7 its X.509-SVIDs as the Workload API has them, without admin ones", async () => {
    using stream = streams().svids({ reference: ownReference });
    const { svids, federated_bundles } = await stream.answer(1);
    expect(svids).toEqual([
      {
        spiffe_id: "spiffe://example.org/web",
        x509_svid: Buffer.concat(issued.get("web")!.chain),
        x509_svid_key: Buffer.from(issued.get("web")!.privateKey),
        bundle: Buffer.from(root.der),
        hint: "inside",
      },
      expect.objectContaining({ spiffe_id: "spiffe://example.org/web-ext", hint: "" }),
    ]);
    expect(federated_bundles).toEqual({ "spiffe://partner.test": Buffer.from(rootB.der) });
    expect(parseCertificates(svids[0]!.x509_svid)[0]?.uris).toEqual(["spiffe://example.org/web"]);
    expect(() => createPrivateKey({ key: svids[0]!.x509_svid_key, format: "der", type: "pkcs8" })).not.toThrow();
  });

  test("BRK-62a of two entries with one hint the older is delivered", async () => {
    await grant(web, cachedEntry({ id: "younger", selectors: mine, createdAt: 9, hint: "inside" }));
    using stream = streams().svids({ reference: ownReference });
    expect((await stream.answer(1)).svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/web"]);
  });

  test("BRK-13 each request is attested anew", async () => {
    const before = (await endpoint.look()).attestations;
    for (let round = 0; round < 2; round += 1) {
      using stream = streams().bundles({ reference: ownReference });
      await stream.answer(1);
    }
    expect((await endpoint.look()).attestations).toBe(before + 2);
  });

  test("BRK-40 BRK-41 BRK-42a each change, with the full state", async () => {
    using stream = streams().svids({ reference: ownReference });
    await stream.answer(1);
    const rotated = await issueFor(web);
    await endpoint.accept([web, rotated]);
    const { svids } = await stream.answer(2);
    expect(svids.map(({ x509_svid }) => x509_svid)).toEqual([
      Buffer.concat(rotated.chain),
      Buffer.concat(issued.get("web-ext")!.chain),
    ]);
    await endpoint.accept([other, await issueFor(other)]);
    await endpoint.replace([ext], bundlesOf(root, rootB));
    expect((await stream.answer(3)).svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/web-ext"]);
  });

  test("BRK-44 what a message leaves empty is withdrawn: the hint, and the bundles of others", async () => {
    using stream = streams().svids({ reference: ownReference });
    const first = await stream.answer(1);
    expect(first.svids.map(({ hint }) => hint)).toEqual(["inside", ""]);
    expect(Object.keys(first.federated_bundles)).toEqual(["spiffe://partner.test"]);
    await endpoint.replace(
      [
        { ...web, hint: "" },
        { ...ext, federatesWith: [] },
      ],
      bundlesOf(root, rootB),
    );
    const next = await stream.answer(2);
    expect(next.svids.map(({ spiffe_id, hint }) => [spiffe_id, hint])).toEqual([
      ["spiffe://example.org/web", ""],
      ["spiffe://example.org/web-ext", ""],
    ]);
    expect(next.federated_bundles).toEqual({});
  });

  test("BRK-42b a hundred open streams do not delay the next one", async () => {
    using scope = new DisposableStack();
    const many = Array.from({ length: 100 }, () => scope.use(streams().svids({ reference: ownReference })));
    await Promise.all(many.map((stream) => stream.answer(1)));
    const spans: number[] = [];
    for (let sample = 0; sample < 21; sample += 1) {
      const started = performance.now();
      using stream = streams().bundles({ reference: ownReference });
      await stream.answer(1);
      spans.push(performance.now() - started);
    }
    expect(spans.sort((a, b) => a - b)[10]).toBeLessThan(100);
  });

  test("BRK-66 BRK-73 its bundles, X.509 and JWT, by trust domain ID", async () => {
    using x509 = streams().bundles({ reference: ownReference });
    expect((await x509.answer(1)).bundles).toEqual({
      "spiffe://example.org": Buffer.from(root.der),
      "spiffe://partner.test": Buffer.from(rootB.der),
    });
    using jwt = streams().jwtBundles({ reference: ownReference });
    expect(Object.keys((await jwt.answer(1)).bundles).sort()).toEqual([
      "spiffe://example.org",
      "spiffe://partner.test",
    ]);
  });

  test.skipIf(!isRoot)("BRK-35 BRK-48 bundles and SVIDs are of that workload only", async () => {
    await using workload = await asNobody();
    using bundles = streams().bundles({ reference: pidReference(workload.pid) });
    expect(Object.keys((await bundles.answer(1)).bundles)).toEqual(["spiffe://example.org"]);
    using svids = streams().svids({ reference: pidReference(workload.pid) });
    const answer = await svids.answer(1);
    expect(answer.svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/other"]);
    expect(answer.federated_bundles).toEqual({});
  });

  test("BRK-64a ends with PermissionDenied when the last identity is withdrawn, without an empty message", async () => {
    const open = [streams().svids({ reference: ownReference }), streams().bundles({ reference: ownReference })];
    for (const stream of open) await stream.answer(1);
    await endpoint.replace([admin], bundlesOf(root));
    for (const stream of open) {
      const end = await stream.ended;
      expect(end).toMatchObject({ kind: "denied" });
      expect(spiffeReasonOf(end)).toBe("WORKLOAD_NOT_ENTITLED");
      expect(stream.answers).toHaveLength(1);
    }
  });

  test("BRK-45 BRK-69 FetchJWTSVID needs an audience", async () => {
    const error = await streams()
      .tokens({ reference: ownReference, audience: [] })
      .catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ kind: "invalid", message: "audience must be specified" });
    expect(spiffeReasonOf(error)).toBeUndefined();
  });
});

describe("references", () => {
  const invalid = { kind: "invalid" };
  const INVALID = "WORKLOAD_REFERENCE_INVALID";

  test.each([
    { what: "none", given: null },
    { what: "an empty one", given: {} },
    { what: "no type", given: reference("") },
    { what: "a type without a prefix", given: reference("spiffe.broker.WorkloadPIDReference", Buffer.from([8, 1])) },
    { what: "an unknown type", given: reference("type.googleapis.com/x.Y") },
    { what: "a name of every object", given: reference("type.googleapis.com/constructor") },
    { what: "garbage", given: reference(PID_TYPE, Buffer.from([0xff, 0xff])) },
    { what: "pid 0", given: pidReference(0) },
    { what: "pid -1", given: pidReference(-1) },
    { what: "the least pid", given: pidReference(-2_147_483_648) },
    {
      what: "a Kubernetes object while nobody here knows the cluster",
      given: objectReference({ type: { plural: "pods", group: "core" }, key: { namespace: "a", name: "b" } }),
    },
  ])("BRK-12 BRK-17 BRK-30 BRK-50 BRK-53 BRK-63a $what is InvalidArgument on all four RPCs", async ({ given }) => {
    await expectAll({ reference: given }, invalid, INVALID);
  });

  test("D-18 any prefix will do", async () => {
    using stream = streams().svids({ reference: pidReference(process.pid, "example.com/a/spiffe.broker.") });
    expect((await stream.answer(1)).svids).toHaveLength(2);
  });

  test("BRK-14a what else a reference claims is ignored", async () => {
    const claims = Buffer.from([8, ...varint(process.pid), 0x52, 4, 0x72, 0x6f, 0x6f, 0x74]);
    using stream = streams().svids({ reference: reference(PID_TYPE, claims) });
    expect((await stream.answer(1)).svids).toHaveLength(2);
  });

  test.skipIf(!isRoot)(
    "BRK-51 BRK-49 a process that is not there is NotFound, and nothing is signed for it",
    async () => {
      await using workload = await asNobody();
      await workload.order({ do: "exit" });
      const before = (await endpoint.look()).attestations;
      for (const pid of [workload.pid, 2_147_483_647])
        await expectAll({ reference: pidReference(pid) }, { kind: "not_found" }, "WORKLOAD_NOT_FOUND");
      expect((await endpoint.look()).attestations).toBe(before);
    },
  );

  test("BRK-52 BRK-61 BRK-71a a workload without an identity of its own is PermissionDenied, without a message", async () => {
    await grant(admin, other);
    await expectAll(
      { reference: ownReference },
      { kind: "denied", message: "no identity issued" },
      "WORKLOAD_NOT_ENTITLED",
    );
  });

  test("BRK-10 when attestation fails the answer is Unavailable", async () => {
    await using strict = await Endpoint.start({
      bundles: bundlesOf(root),
      discoverWorkloadPath: true,
      workloadSizeLimit: 1,
      broker: { svid: broker, brokers: [{ id: BROKER, allowed: ANY }] },
    });
    await strict.brokerPort();
    using over = dialBroker(strict.brokerPath, { identity: tlsIdentity(broker) });
    await expectAll({ reference: ownReference }, { kind: "unavailable", code: "agent-not-ready" }, undefined, { over });
    await strict.replace([web], bundlesOf(root));
    const unattested = { kind: "unavailable", message: "workload attestation failed" };
    await expectAll({ reference: ownReference }, unattested, undefined, { over });
  });

  test("T-W2 calls that are given up while the server is asked leave no descriptor behind", async () => {
    await using waiting = await Endpoint.start({
      bundles: bundlesOf(root),
      serverIsSilent: true,
      broker: { svid: broker, brokers: [{ id: BROKER, allowed: ANY }] },
    });
    await waiting.brokerPort();
    await waiting.replace([web], bundlesOf(root));
    using over = dialBroker(waiting.brokerPath, { identity: tlsIdentity(broker) });
    const giveUp = async (): Promise<void> => {
      const { attestations } = await waiting.look();
      using _ = streams({ over }).svids({ reference: ownReference });
      await eventually("an attestation", async () => (await waiting.look()).attestations > attestations);
    };
    await giveUp();
    const before = (await waiting.look()).descriptors;
    for (let round = 0; round < 10; round += 1) await giveUp();
    await eventually("all are closed", async () => (await waiting.look()).descriptors <= before);
  });
});

describe("the life of a workload", () => {
  test.skipIf(!isRoot)(
    "BRK-39 BRK-56 BRK-57 BRK-59 its end ends its streams within seconds, and no others of the connection",
    async () => {
      await using workload = await asNobody();
      const calls = streams();
      using mineStays = calls.svids({ reference: ownReference });
      const open = [
        calls.svids({ reference: pidReference(workload.pid) }),
        calls.bundles({ reference: pidReference(workload.pid) }),
        calls.jwtBundles({ reference: pidReference(workload.pid) }),
      ];
      for (const stream of open) await stream.answer(1);
      await mineStays.answer(1);
      await workload.order({ do: "exit" });
      for (const stream of open) {
        const end = await stream.ended;
        expect(end).toMatchObject({ kind: "not_found" });
        expect(spiffeReasonOf(end)).toBe("WORKLOAD_NOT_FOUND");
        expect(stream.answers).toHaveLength(1);
      }
      await endpoint.accept([web, await issueFor(web)]);
      await mineStays.answer(2);
    },
  );

  test("T-W1 a process that runs another program is another workload", async () => {
    await using workload = await startWorkload({ socket: endpoint.path });
    using stream = streams().svids({ reference: pidReference(workload.pid) });
    await stream.answer(1);
    await workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    expect(await stream.ended).toMatchObject({ kind: "not_found" });
  });
});

function varint(value: number): number[] {
  const bytes: number[] = [];
  for (let rest = value; ; rest >>= 7) {
    bytes.push(rest > 0x7f ? (rest & 0x7f) | 0x80 : rest);
    if (rest <= 0x7f) return bytes;
  }
}
