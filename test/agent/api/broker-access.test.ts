import { stat } from "node:fs/promises";
import { connect } from "node:net";
import { connect as connectTls } from "node:tls";
import { describe, expect, test } from "vitest";
import { encodePem } from "../../../src/crypto/pem.ts";
import type { Channel } from "../../../src/rpc/dial.ts";
import { ReflectionApi } from "../../../src/rpc/protos.ts";
import { BROKER_HEADER, dialBroker, dialBrokerTcp } from "../../support/broker.ts";
import {
  BROKER,
  broker,
  channel,
  endpoint,
  expectAll,
  FAR_BROKER,
  FOREIGN_BROKER,
  ownReference,
  root,
  rootB,
  streams,
} from "../../support/broker-endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { rawGrpcCall } from "../../support/http2-call.ts";
import { createCa } from "../../support/pki.ts";
import { tlsIdentity } from "../../support/scripted-server.ts";

describe("who may ask", () => {
  test.each([
    { what: "none", metadata: {} },
    { what: "True", metadata: { "broker.spiffe.io": "True" } },
    { what: "false", metadata: { "broker.spiffe.io": "false" } },
    { what: "nothing in it", metadata: { "broker.spiffe.io": "" } },
    { what: "1", metadata: { "broker.spiffe.io": "1" } },
    { what: "two in one", metadata: { "broker.spiffe.io": "true,false" } },
    { what: "the Workload API's", metadata: { "workload.spiffe.io": "true" } },
  ])("BEP-06 BEP-07 T-W5 the header: $what is refused, before anything is attested", async ({ metadata }) => {
    const before = (await endpoint.look()).attestations;
    const refused = { kind: "invalid", message: "security header missing from request" };
    await expectAll({ reference: ownReference }, refused, undefined, { metadata: metadata as Record<string, string> });
    expect((await endpoint.look()).attestations).toBe(before);
  });

  test("BEP-01 the Unix socket is for its owner and group only", async () => {
    expect((await stat(endpoint.brokerPath)).mode & 0o777).toBe(0o770);
  });

  test("BEP-08 nobody gets in without a certificate, with one of another authority, or without TLS", async () => {
    const stranger = await createCa({ trustDomain: "example.org" });
    const port = await endpoint.brokerPort();
    for (const identity of [undefined, tlsIdentity(await stranger.issue({ id: BROKER }))]) {
      for (const over of [dialBroker(endpoint.brokerPath, { identity }), dialBrokerTcp(port, { identity })]) {
        using held = over;
        await expectAll({ reference: ownReference }, { kind: "unavailable" }, undefined, { over: held });
      }
    }
    const plain = connect(endpoint.brokerPath).on("error", () => {});
    plain.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    await new Promise((resolve) => plain.resume().once("close", resolve));
  });

  test("BEP-15 BEP-21 BRK-31 a broker that is not listed is PermissionDenied", async () => {
    const identity = tlsIdentity(await root.issue({ id: "spiffe://example.org/stranger" }));
    using over = dialBroker(endpoint.brokerPath, { identity });
    await expectAll({ reference: ownReference }, { kind: "denied", code: "broker-not-authorized" }, undefined, {
      over,
    });
  });

  test("BEP-15 BRK-32 one of a federated trust domain gets in, with the references that it may use", async () => {
    const identity = tlsIdentity(await rootB.issue({ id: FOREIGN_BROKER }));
    using over = dialBroker(endpoint.brokerPath, { identity });
    const refused = { kind: "denied", code: "reference-type-not-allowed" };
    await expectAll({ reference: ownReference }, refused, undefined, { over });
  });

  test("BRK-16 BRK-33 BEP-04 over TCP a pid needs to be allowed, and the same policy holds", async () => {
    const port = await endpoint.brokerPort();
    using near = dialBrokerTcp(port, { identity: tlsIdentity(broker) });
    const refused = { kind: "denied", code: "reference-type-local" };
    await expectAll({ reference: ownReference }, refused, undefined, { over: near });
    using far = dialBrokerTcp(port, { identity: tlsIdentity(await root.issue({ id: FAR_BROKER })) });
    using stream = streams({ over: far }).svids({ reference: ownReference });
    expect((await stream.answer(1)).svids).toHaveLength(2);
  });

  test("BEP-09 a new SVID of the agent is shown to the connections after it", async () => {
    const seen: string[] = [];
    const verifyServer = (chain: readonly { readonly serialNumber: string; readonly uris: readonly string[] }[]) =>
      void seen.push(`${chain[0]?.uris[0]} ${chain[0]?.serialNumber}`);
    const look = async (): Promise<void> => {
      using over = dialBroker(endpoint.brokerPath, { identity: tlsIdentity(broker), verifyServer });
      using stream = streams({ over }).bundles({ reference: ownReference });
      await stream.answer(1);
    };
    await look();
    const next = await root.issue({ id: "spiffe://example.org/spire/agent/a" });
    await endpoint.renew(next);
    await eventually("the new one is shown", async () => {
      await look();
      return seen.at(-1) !== seen[0];
    });
    expect(new Set(seen.map((line) => line.split(" ")[0]))).toEqual(new Set(["spiffe://example.org/spire/agent/a"]));
  });

  test("BEP-23 BEP-24 BEP-25 BRK-03 BRK-05 BRK-06 reflection lists the API on the Unix socket, to who sends the header", async () => {
    const list = async (over: Channel, metadata: Record<string, string>) => {
      async function* ask() {
        yield { list_services: "" };
      }
      const names: string[] = [];
      for await (const { list_services_response } of over
        .client(ReflectionApi)
        .ServerReflectionInfo(ask(), { metadata }))
        names.push(...(list_services_response?.service ?? []).map(({ name }) => name));
      return names;
    };
    expect(await list(channel, BROKER_HEADER)).toEqual([
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
      "spiffe.broker.API",
    ]);
    await expect(list(channel, {})).rejects.toMatchObject({ kind: "invalid" });
    using far = dialBrokerTcp(await endpoint.brokerPort(), { identity: tlsIdentity(broker) });
    await expect(list(far, BROKER_HEADER)).rejects.toMatchObject({ kind: "denied" });
  });

  test.each(["/tmp/agent/broker.sock", "a/b"])(
    "BEP-01 a client that names %j as its authority is served",
    async (authority) => {
      const cert = broker.chain.map((der) => encodePem("CERTIFICATE", der)).join("");
      const key = encodePem("PRIVATE KEY", broker.privateKey);
      const open = () =>
        connectTls({
          ...{ socket: connect(endpoint.brokerPath), ALPNProtocols: ["h2"] },
          ...{ cert, key, rejectUnauthorized: false },
        });
      const asked = rawGrpcCall(open, "/spiffe.broker.API/FetchJWTSVID", Buffer.alloc(0), {
        ...BROKER_HEADER,
        ":authority": authority,
      });
      expect((await asked).trailers["grpc-message"]).toBe("audience%20must%20be%20specified");
    },
  );
});
