import { expect, test } from "vitest";
import { dialUnix } from "../../../src/rpc/dial.ts";
import type { ServerReflectionRequest } from "../../../src/rpc/gen/grpc/reflection/v1/ServerReflectionRequest.ts";
import {
  BrokerApi,
  EntryApi,
  HealthApi,
  ReflectionAlphaApi,
  ReflectionApi,
  WorkloadApi,
} from "../../../src/rpc/protos.ts";
import { reflectionServices } from "../../../src/rpc/reflection.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { faultFrom } from "../../support/faults.ts";
import { healthWith, startRpc, type TestRpcOptions, type TestRpcServer } from "../../support/rpc.ts";

test.each([
  { version: "v1", api: ReflectionApi },
  { version: "v1alpha", api: ReflectionAlphaApi },
])("WEP-31 reflection $version lists every service under its full name", async ({ api }) => {
  await using server = await startReflecting();
  using channel = dialUnix(server.path);
  const [answer] = await Array.fromAsync(channel.client(api).ServerReflectionInfo(asked([{ list_services: "" }])));
  expect(answer?.list_services_response?.service.map(({ name }) => name)).toEqual([
    "SpiffeWorkloadAPI",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "spiffe.broker.API",
    "spire.api.server.entry.v1.Entry",
  ]);
});

test("WEP-29 WEP-31 each symbol is answered with its file and all that it imports", async () => {
  await using server = await startReflecting();
  for (const [symbol, files] of Object.entries({
    SpiffeWorkloadAPI: ["root.proto", "google_protobuf.proto"],
    "SpiffeWorkloadAPI.FetchX509SVID": ["root.proto", "google_protobuf.proto"],
    X509SVIDResponse: ["root.proto", "google_protobuf.proto"],
    "spiffe.broker.API": ["spiffe_broker.proto", "google_protobuf.proto"],
    "spire.api.types.SelectorMatch.MatchBehavior": ["spire_api_types.proto"],
    "spire.api.server.entry.v1.Entry": [
      "spire_api_server_entry_v1.proto",
      "google_protobuf.proto",
      "spire_api_types.proto",
    ],
  })) {
    const [answer] = await ask(server, [{ file_containing_symbol: symbol }]);
    const protos = answer?.file_descriptor_response?.file_descriptor_proto ?? [];
    expect(protos.map(nameOf).sort()).toEqual([...files].sort());
  }
});

test("files are found by name, and questions answered in order", async () => {
  await using server = await startReflecting();
  const answers = await ask(server, [
    { file_by_filename: "root.proto", host: "h" },
    { list_services: "" },
    { all_extension_numbers_of_type: "X509SVID" },
  ]);
  expect(answers.map(({ message_response }) => message_response)).toEqual([
    "file_descriptor_response",
    "list_services_response",
    "all_extension_numbers_response",
  ]);
  expect(answers[0]).toMatchObject({ valid_host: "h", original_request: { file_by_filename: "root.proto" } });
});

test.each<{ readonly what: string; readonly request: ServerReflectionRequest; readonly code: number }>([
  { what: "an unknown symbol", request: { file_containing_symbol: "no.Such" }, code: 5 },
  { what: "an unknown file", request: { file_by_filename: "../../etc/passwd" }, code: 5 },
  {
    what: "an extension",
    request: { file_containing_extension: { containing_type: "X509SVID", extension_number: 1 } },
    code: 5,
  },
  { what: "extensions of an unknown type", request: { all_extension_numbers_of_type: "no.Such" }, code: 5 },
  { what: "nothing", request: {}, code: 3 },
])("asking for $what is answered with an error, and the next question is answered too", async ({ request, code }) => {
  await using server = await startReflecting();
  const [first, second] = await ask(server, [request, { list_services: "" }]);
  expect(first?.error_response?.error_code).toBe(code);
  expect(second?.message_response).toBe("list_services_response");
});

test("fields have the names that JSON has for them", async () => {
  await using server = await startReflecting();
  const symbol = "spire.api.server.entry.v1.ListEntriesRequest";
  const [answer] = await ask(server, [{ file_containing_symbol: symbol }]);
  const file = answer?.file_descriptor_response?.file_descriptor_proto[0] ?? Buffer.alloc(0);
  for (const name of ["pageToken", "byFederatesWith", "filter"])
    expect(file.includes(Buffer.from([0x52, name.length, ...Buffer.from(name)]))).toBe(true);
});

test("WEP-31 who may ask is decided before a question is read", async () => {
  const admit = async (): Promise<undefined> => {
    throw new Fault("invalid", "security header missing from request");
  };
  await using server = await startReflecting({ admit });
  expect(await faultFrom(ask(server, [{ list_services: "" }]))).toMatchObject({ kind: "invalid" });
});

function startReflecting(options: TestRpcOptions = {}): Promise<TestRpcServer> {
  const described = [HealthApi, WorkloadApi, BrokerApi, EntryApi];
  return startRpc({ ...options, services: [healthWith({}), ...reflectionServices<undefined>(described)] });
}

async function* asked(requests: readonly ServerReflectionRequest[]) {
  yield* requests;
}

async function ask(server: TestRpcServer, requests: readonly ServerReflectionRequest[]) {
  using channel = dialUnix(server.path);
  return await Array.fromAsync(channel.client(ReflectionApi).ServerReflectionInfo(asked(requests)));
}

/** Field 1 of a FileDescriptorProto. */
function nameOf(file: Uint8Array): string {
  expect(file[0]).toBe(0x0a);
  return Buffer.from(file.subarray(2, 2 + (file[1] ?? 0))).toString();
}
