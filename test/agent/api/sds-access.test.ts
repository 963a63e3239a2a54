import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { dialUnix } from "../../../src/rpc/dial.ts";
import { ReflectionApi } from "../../../src/rpc/protos.ts";
import { bundlesOf, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { RawClient, SECURITY_HEADER } from "../../support/raw-client.ts";
import { SdsClient, secretsIn } from "../../support/sds.ts";
import { client, endpoint, grant, issueFor, nobodys, root, rootB, web } from "../../support/sds-endpoint.ts";
import { startWorkload } from "../../support/workload.ts";

describe("who asks", () => {
  test("SDS-10 a caller without entries gets the own roots, and no more", async () => {
    await endpoint.replace([nobodys], bundlesOf(root, rootB));
    const { resources } = await client.fetch([]);
    expect(Object.keys(secretsIn(resources as never))).toEqual(["spiffe://example.org"]);
    await expect(client.fetch(["default"])).rejects.toMatchObject({ kind: "invalid" });
    await expect(client.fetch(["spiffe://partner.test"])).rejects.toMatchObject({ kind: "invalid" });
  });

  test("SDS-10 WEP-23 says Unavailable before the first sync, and when attestation fails", async () => {
    await using young = await Endpoint.start({
      bundles: bundlesOf(root),
      discoverWorkloadPath: true,
      workloadSizeLimit: 1,
    });
    using proxy = new SdsClient(young.path);
    using early = proxy.world();
    early.send({ resource_names: ["default"] });
    expect(await early.ended).toMatchObject({ kind: "unavailable", code: "agent-not-ready" });
    await grant(young, web);
    await expect(proxy.fetch(["default"])).rejects.toMatchObject({
      kind: "unavailable",
      message: "workload attestation failed",
    });
  });

  test("T-W1 an open stream ends instead of giving a new key to another program", async () => {
    const relay = join(endpoint.folder, "sds-relay.sock");
    await using workload = await startWorkload({ socket: endpoint.path, relay, handOver: true });
    using proxy = new SdsClient(relay);
    using stream = proxy.world();
    stream.send({ resource_names: ["default"] });
    await stream.response(1);
    await workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    await eventually("the other program runs", () =>
      proxy.fetch(["default"]).then(
        () => false,
        ({ message }: Error) => message === "workload attestation failed",
      ),
    );
    await endpoint.accept([web, await issueFor(web)]);
    expect(await stream.ended).toMatchObject({ kind: "unavailable", message: "workload attestation failed" });
    expect(stream.responses).toHaveLength(1);
  });
});

describe("an endpoint with an API turned off", () => {
  const servicesOf = async (path: string): Promise<readonly string[]> => {
    using channel = dialUnix(path);
    async function* list() {
      yield { list_services: "" };
    }
    const names: string[] = [];
    for await (const { list_services_response } of channel
      .client(ReflectionApi)
      .ServerReflectionInfo(list(), { metadata: SECURITY_HEADER })) {
      names.push(...(list_services_response?.service ?? []).map(({ name }) => name));
    }
    return names.filter((name) => !name.startsWith("grpc."));
  };

  test("disable_sds_api leaves the Workload API", async () => {
    await using other = await Endpoint.start({ bundles: bundlesOf(root), disableSdsApi: true });
    await grant(other, web);
    expect(await servicesOf(other.path)).toEqual(["SpiffeWorkloadAPI"]);
    using proxy = new SdsClient(other.path);
    await expect(proxy.fetch(["default"])).rejects.toMatchObject({ kind: "unimplemented" });
    await using raw = new RawClient(other.path);
    expect((await raw.svids().x509Svids()).svids).toHaveLength(1);
  });

  test("WEP-30 disable_workload_api leaves SDS, and the Workload API answers Unimplemented", async () => {
    await using other = await Endpoint.start({ bundles: bundlesOf(root), disableWorkloadApi: true });
    await grant(other, web);
    expect(await servicesOf(other.path)).toEqual(["envoy.service.secret.v3.SecretDiscoveryService"]);
    using proxy = new SdsClient(other.path);
    expect((await proxy.fetch(["default"])).resources).toHaveLength(1);
    await using raw = new RawClient(other.path);
    expect(await raw.svids().status).toMatchObject({ code: 12 });
  });
});
