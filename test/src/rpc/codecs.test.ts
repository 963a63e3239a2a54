import { loadSync, type MessageTypeDefinition, type Options, type ServiceDefinition } from "@grpc/proto-loader";
import { describe, expect, test, vi } from "vitest";
import { messageCodec, methodsOf, protoRoot, type WireMethod } from "../../../src/rpc/codecs.ts";
import { descriptorsOf, type FieldDescriptor, type MessageDescriptor } from "../../../src/rpc/descriptors.ts";
import * as protos from "../../../src/rpc/protos.ts";

const services = Object.values(protos).filter((value) => typeof value === "object" && "methods" in value);
const { files } = await descriptorsOf(services);
const messages = new Map(
  files.flatMap((file) => file.messageType.flatMap((message) => nestedIn(message, file.package ?? ""))),
);
const enums = new Map(
  files.flatMap((file) => [
    ...file.enumType.map((one) => [fullName(file.package ?? "", one.name), one] as const),
    ...[...messages].flatMap(([name, { enumType }]) => enumType.map((one) => [`${name}.${one.name}`, one] as const)),
  ]),
);

/** Flags of `generate.ts`, which the generated types follow. */
const OPTIONS: Options = {
  ...{ keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
  includeDirs: [protoRoot],
};

type Loaded = MessageTypeDefinition<object, object>;

/** What is read first must not change what names mean in what is read later. */
describe.each([
  { order: "in order", read: services },
  { order: "backwards", read: services.toReversed() },
])("read $order", async ({ read }) => {
  vi.resetModules();
  const fresh = await import("../../../src/rpc/codecs.ts");

  test.each(read.map(({ name, file }) => ({ name, file })))(
    "the methods of $name are the loader's",
    ({ name, file }) => {
      const theirs = Object.values(loadSync(file, OPTIONS)[name] as ServiceDefinition);
      const ours = fresh.methodsOf(name, file);
      expect(theirs.length).toBeGreaterThan(0);
      expect(Object.values(ours).map(shape)).toEqual(theirs.map(shape));
      for (const their of theirs) {
        const own = ours[their.path.slice(their.path.lastIndexOf("/") + 1)];
        for (const end of ["request", "response"] as const) {
          const sent = sample(their[`${end}Type`].type as MessageDescriptor, 3);
          const bytes = their[`${end}Serialize`](sent);
          expect(own?.[`${end}Serialize`](sent), their.path).toEqual(bytes);
          expect(own?.[`${end}Deserialize`](bytes), their.path).toEqual(their[`${end}Deserialize`](bytes));
        }
      }
    },
  );

  test.each(read.map(({ file }) => file))("every message of %s is written and read as by the loader", (file) => {
    const theirs = Object.entries(loadSync(file, OPTIONS)).filter(
      (entry): entry is [string, Loaded] => "fileDescriptorProtos" in entry[1] && "serialize" in entry[1],
    );
    for (const [message, codec] of theirs) {
      const own = fresh.messageCodec(message, file);
      for (const sent of [{}, sample(messages.get(message), 3)]) {
        const bytes = codec.serialize(sent);
        expect(own.serialize(sent), message).toEqual(bytes);
        expect(own.deserialize(bytes), message).toEqual(codec.deserialize(bytes));
      }
    }
  });
});

function shape({ path, requestStream, responseStream }: WireMethod | ServiceDefinition[string]): object {
  return { path, requestStream, responseStream };
}

test("what is not in the file is an error, and no empty service", () => {
  expect(() => methodsOf("spire.api.server.entry.v1.Nobody", protos.EntryApi.file)).toThrow("Nobody");
  expect(() => messageCodec("spire.api.types.Nothing", protos.EntryApi.file)).toThrow("Nothing");
  expect(() => methodsOf(protos.EntryApi.name, "spire/api/server/nowhere.proto")).toThrow("nowhere.proto");
});

/** A message with every field set, some levels deep. */
function sample(message: MessageDescriptor | undefined, depth: number): object {
  const seen = new Set<number | undefined>();
  const fields = (message?.field ?? []).filter(({ oneofIndex }) => {
    const first = oneofIndex === undefined || !seen.has(oneofIndex);
    seen.add(oneofIndex);
    return first;
  });
  return Object.fromEntries(fields.map((field) => [field.name, sampleOf(field, depth)]));
}

function sampleOf(field: FieldDescriptor, depth: number): unknown {
  const type = field.typeName?.slice(1) ?? "";
  const message = messages.get(type);
  if (message?.options?.mapEntry === true) {
    const value = message.field.find(({ name }) => name === "value");
    return value === undefined ? {} : { key: sampleOf({ ...value, label: "LABEL_OPTIONAL" }, depth - 1) };
  }
  const one = scalar(field, enums.get(type)?.value.at(-1)?.name) ?? (depth === 0 ? {} : sample(message, depth - 1));
  return field.label === "LABEL_REPEATED" ? [one, one] : one;
}

function scalar({ type, number }: FieldDescriptor, enumValue: string | undefined): unknown {
  if (type === "TYPE_STRING") return `text ${number}`;
  if (type === "TYPE_BYTES") return Buffer.from([number, 0, 255]);
  if (type === "TYPE_BOOL") return true;
  if (type === "TYPE_ENUM") return enumValue;
  if (/64$/.test(type)) return "9007199254740993";
  return type === "TYPE_MESSAGE" ? undefined : number;
}

function nestedIn(message: MessageDescriptor, scope: string): [string, MessageDescriptor][] {
  const name = fullName(scope, message.name);
  return [[name, message], ...message.nestedType.flatMap((nested) => nestedIn(nested, name))];
}

function fullName(scope: string, name: string): string {
  return scope === "" ? name : `${scope}.${name}`;
}
