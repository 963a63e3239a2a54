import type { MessageTypeDefinition } from "@grpc/proto-loader";
import { type MessageCodec, protoRoot } from "./codecs.ts";
import { once } from "./once.ts";
import type { Service } from "./protos.ts";

export interface FieldDescriptor {
  readonly name: string;
  readonly number: number;
  readonly label: string;
  readonly type: string;
  /** Full name with a leading dot; absent for scalars. */
  readonly typeName?: string;
  readonly oneofIndex?: number;
  readonly proto3Optional?: boolean;
  readonly jsonName?: string;
  readonly options?: object;
}

export interface EnumDescriptor {
  readonly name: string;
  readonly value: readonly { readonly name: string; readonly number: number }[];
}

export interface MessageDescriptor {
  readonly name: string;
  readonly field: readonly FieldDescriptor[];
  readonly nestedType: readonly MessageDescriptor[];
  readonly enumType: readonly EnumDescriptor[];
  readonly oneofDecl: readonly { readonly name: string }[];
  readonly options?: { readonly mapEntry?: boolean };
}

interface ServiceDescriptor {
  readonly name: string;
  readonly method: readonly {
    readonly name: string;
    readonly inputType: string;
    readonly outputType: string;
    readonly clientStreaming?: boolean;
    readonly serverStreaming?: boolean;
  }[];
}

/** `google.protobuf.FileDescriptorProto`. The loader makes one for each package. */
export interface FileDescriptor {
  readonly name: string;
  readonly package?: string;
  readonly dependency: readonly string[];
  readonly messageType: readonly MessageDescriptor[];
  readonly enumType: readonly EnumDescriptor[];
  readonly service: readonly ServiceDescriptor[];
  readonly syntax?: string;
}

/** Descriptors of whole files, and how they go over the wire. */
export interface Descriptors {
  readonly files: readonly FileDescriptor[];
  encode(file: FileDescriptor): Buffer;
}

/** What the services and their messages look like, in the form that other implementations accept. */
export async function descriptorsOf(services: readonly Pick<Service<object>, "file">[]): Promise<Descriptors> {
  const { codec, load } = await loader();
  const files = new Map<string, FileDescriptor>();
  for (const file of new Set(services.map((service) => service.file)))
    for (const bytes of load(file)) merge(files, codec.deserialize(bytes));
  const owners = new Map(
    [...files.values()].flatMap((file) => typeNames(file).map((name) => [name, file.name] as const)),
  );
  return {
    files: [...files.values()].map((file) => completed(file, owners)),
    encode: (file) => codec.serialize(file),
  };
}

/** Full names of the messages, enums, services and methods in a file, without a leading dot. */
export function symbolsOf(file: FileDescriptor): readonly string[] {
  const services = file.service.flatMap(({ name, method }) => [
    join(file.package, name),
    ...method.map((one) => join(join(file.package, name), one.name)),
  ]);
  return [...typeNames(file), ...services];
}

/** Loaded when somebody asks. It brings the description of descriptors itself. */
const loader = once(async () => {
  const { loadSync } = await import("@grpc/proto-loader");
  const own = loadSync("google/protobuf/descriptor.proto", { enums: String, longs: String, arrays: true });
  const codec = own["google.protobuf.FileDescriptorProto"] as unknown;
  return {
    codec: codec as MessageCodec<FileDescriptor, FileDescriptor>,
    /** Of everything in the file and what it imports. */
    load(file: string): readonly Buffer[] {
      const loaded = Object.values(loadSync(file, { keepCase: true, includeDirs: [protoRoot] }));
      return loaded.find(isMessage)?.fileDescriptorProtos ?? [];
    },
  };
});

/** Each message carries the whole files; a service has none of its own. */
function isMessage(definition: object): definition is MessageTypeDefinition<object, object> {
  return "fileDescriptorProtos" in definition;
}

/** Services of one package may come from several files of /proto. */
function merge(files: Map<string, FileDescriptor>, file: FileDescriptor): void {
  const known = files.get(file.name);
  if (known === undefined) {
    files.set(file.name, file);
    return;
  }
  files.set(file.name, {
    ...known,
    messageType: union(known.messageType, file.messageType),
    enumType: union(known.enumType, file.enumType),
    service: union(known.service, file.service),
  });
}

function union<T extends { readonly name: string }>(first: readonly T[], second: readonly T[]): readonly T[] {
  return [...new Map([...second, ...first].map((item) => [item.name, item])).values()];
}

/** The loader leaves out imports, shortens type names, and names the entry types of maps as the fields. */
function completed(file: FileDescriptor, owners: ReadonlyMap<string, string>): FileDescriptor {
  const needed = new Set<string>();
  const resolve = (scope: string, name: string): string => {
    const found = lookUp(scope, name, owners);
    const owner = owners.get(found);
    if (owner !== undefined && owner !== file.name) needed.add(owner);
    return `.${found}`;
  };
  const messageType = file.messageType.map((message) =>
    completedMessage(message, join(file.package, message.name), resolve),
  );
  const service = file.service.map((one) => ({
    ...one,
    method: one.method.map((method) => ({
      ...method,
      inputType: resolve(file.package ?? "", method.inputType),
      outputType: resolve(file.package ?? "", method.outputType),
    })),
  }));
  return { ...file, messageType, service, dependency: [...needed].sort() };
}

type Resolve = (scope: string, name: string) => string;

function completedMessage(message: MessageDescriptor, fullName: string, resolve: Resolve): MessageDescriptor {
  const entries = new Set(message.nestedType.filter(isMapEntry).map(({ name }) => name));
  return {
    ...message,
    field: message.field.map((field) => {
      const { options: _, ...named } = completedField(field, message);
      const kept = { ...named, jsonName: jsonName(field.name) };
      if (field.typeName === undefined) return kept;
      return {
        ...kept,
        typeName: entries.has(field.typeName)
          ? `.${fullName}.${entryName(field.name)}`
          : resolve(fullName, field.typeName),
      };
    }),
    nestedType: message.nestedType.map((nested) => ({
      ...completedMessage(nested, `${fullName}.${nested.name}`, resolve),
      ...(isMapEntry(nested) && { name: entryName(nested.name), options: { mapEntry: true } }),
    })),
  };
}

/** `optional` is a oneof of one field whose name starts with an underscore. */
function completedField(field: FieldDescriptor, message: MessageDescriptor): FieldDescriptor {
  const oneof = field.oneofIndex === undefined ? undefined : message.oneofDecl[field.oneofIndex];
  return oneof?.name === `_${field.name}` ? { ...field, proto3Optional: true } : field;
}

/** As protobuf's compiler names the member in JSON: readers take the bare name without it. */
function jsonName(field: string): string {
  return field.replace(/_+(.?)/g, (_, next: string) => next.toUpperCase());
}

function isMapEntry({ options }: MessageDescriptor): boolean {
  return options?.mapEntry === true;
}

/** `federated_bundles` and `Federated_bundles` become `FederatedBundlesEntry`. */
function entryName(field: string): string {
  const words = field.split("_").map((word) => word.charAt(0).toUpperCase() + word.slice(1));
  return `${words.join("")}Entry`;
}

/** Names are looked up from the inside out, as protobuf's scoping has it. */
function lookUp(scope: string, name: string, owners: ReadonlyMap<string, string>): string {
  if (name.startsWith(".")) return name.slice(1);
  for (let at = scope; ; at = at.slice(0, Math.max(0, at.lastIndexOf(".")))) {
    const candidate = join(at, name);
    if (owners.has(candidate) || at === "") return candidate;
  }
}

function typeNames(file: FileDescriptor): readonly string[] {
  const enums = file.enumType.map(({ name }) => join(file.package, name));
  return [...enums, ...file.messageType.flatMap((message) => namesIn(message, file.package))];
}

function namesIn(message: MessageDescriptor, scope: string | undefined): readonly string[] {
  const name = join(scope, message.name);
  return [
    name,
    ...message.enumType.map((one) => `${name}.${one.name}`),
    ...message.nestedType.flatMap((nested) => namesIn(nested, name)),
  ];
}

function join(scope: string | undefined, name: string): string {
  return scope === undefined || scope === "" ? name : `${scope}.${name}`;
}
