import { expect, test } from "vitest";
import {
  descriptorsOf,
  type EnumDescriptor,
  type FieldDescriptor,
  type FileDescriptor,
  type MessageDescriptor,
} from "../../../src/rpc/descriptors.ts";
import * as protos from "../../../src/rpc/protos.ts";
import { vectors } from "../../support/vectors.ts";

/** Of the services that others have published, and of our own, which agents in the field speak already. */
const published = ["proto-descriptors.txt", "steeple-descriptors.txt"].flatMap((name) =>
  vectors(name).map(({ text }) => text),
);
const envoyPublished = vectors("envoy-descriptors.txt").map(({ text }) => text);
const services = Object.values(protos).filter((value) => typeof value === "object" && "methods" in value);

test("WEP-28 STB-02 every name, number, type and stream equals the published descriptors, with nothing added", async () => {
  const ours = (await descriptorsOf(services)).files
    .filter(({ package: name = "" }) => name !== "google.protobuf" && !isEnvoys(name))
    .flatMap(linesOf);
  expect(ours.sort()).toEqual([...published].sort());
});

test("SDS every name, number, type and stream of what is served of Envoy's API equals Envoy's", async () => {
  const payloads = ["secret", "tls_spiffe_validator_config"].map((name) => ({
    file: `envoy/extensions/transport_sockets/tls/v3/${name}.proto`,
  }));
  const ours = (await descriptorsOf([protos.SecretDiscoveryApi, ...payloads])).files
    .filter(({ package: name = "" }) => isEnvoys(name))
    .flatMap(linesOf);
  const envoys = new Set(envoyPublished);
  expect(ours.filter((line) => !envoys.has(line))).toEqual([]);
  for (const line of envoyPublished.filter((each) => !each.startsWith("field "))) expect(ours).toContain(line);
});

const isEnvoys = (name: string): boolean => name.startsWith("envoy.");

test("every service of /proto has a typed definition", () => {
  const described = [...published, ...envoyPublished].filter((line) => line.startsWith("method "));
  const names = new Set(described.map((line) => line.split("/")[1]));
  expect(services.map(({ name }) => name).sort()).toEqual([...names].sort());
});

test("64-bit numbers come as text, enums by name, absent messages as null and empty lists as lists", () => {
  const { GetEntry } = protos.EntryApi.methods();
  const bytes = GetEntry?.responseSerialize({ id: "a", revision_number: "9007199254740993" });
  const read = GetEntry?.responseDeserialize(bytes ?? Buffer.alloc(0));
  expect(read).toMatchObject({ id: "a", revision_number: "9007199254740993", selectors: [], spiffe_id: null });
  const { SetLogLevel } = protos.ServerLoggerApi.methods();
  expect(SetLogLevel?.requestDeserialize(Buffer.from([8, 6]))).toEqual({ new_level: "DEBUG" });
});

function linesOf(file: FileDescriptor): readonly string[] {
  const within = (name: string): string => (file.package === undefined ? name : `${file.package}.${name}`);
  return [
    ...file.messageType.flatMap((message) => messageLines(message, within(message.name))),
    ...file.enumType.flatMap((one) => enumLines(one, within(one.name))),
    ...file.service.flatMap(({ name, method }) =>
      method.map((one) => {
        const kinds = [
          ["unary", "serverStream"],
          ["clientStream", "bidi"],
        ];
        const kind = kinds[Number(one.clientStreaming ?? false)]?.[Number(one.serverStreaming ?? false)];
        return `method /${within(name)}/${one.name} ${kind} ${bare(one.inputType)} ${bare(one.outputType)}`;
      }),
    ),
  ];
}

function messageLines(message: MessageDescriptor, name: string): readonly string[] {
  const maps = new Map(message.nestedType.filter(({ options }) => options?.mapEntry).map((one) => [one.name, one]));
  const fields = message.field.map(
    (field) => `field ${name}.${field.name} ${field.number} ${shapeOf(field, message, maps)}`,
  );
  const nested = message.nestedType.filter((one) => !maps.has(one.name));
  return [
    `message ${name}`,
    ...fields,
    ...message.enumType.flatMap((one) => enumLines(one, `${name}.${one.name}`)),
    ...nested.flatMap((one) => messageLines(one, `${name}.${one.name}`)),
  ];
}

function shapeOf(
  field: FieldDescriptor,
  message: MessageDescriptor,
  maps: ReadonlyMap<string, MessageDescriptor>,
): string {
  const map = maps.get(field.typeName?.split(".").at(-1) ?? "");
  if (map !== undefined) return `map ${map.field.map(typeOf).join(" ")}`;
  if (field.label === "LABEL_REPEATED") return `repeated ${typeOf(field)}`;
  if (field.proto3Optional) return `optional ${typeOf(field)}`;
  const oneof = field.oneofIndex === undefined ? undefined : message.oneofDecl[field.oneofIndex];
  return `${oneof === undefined ? "one" : `oneof:${oneof.name}`} ${typeOf(field)}`;
}

function typeOf({ type, typeName }: FieldDescriptor): string {
  return typeName === undefined ? type.replace("TYPE_", "").toLowerCase() : bare(typeName);
}

function enumLines({ value }: EnumDescriptor, name: string): readonly string[] {
  return [`enum ${name}`, ...value.map((one) => `value ${name} ${one.name} ${one.number}`)];
}

function bare(name: string): string {
  expect(name.startsWith(".")).toBe(true);
  return name.slice(1);
}
