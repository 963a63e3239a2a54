import { join } from "node:path";
import protobuf from "protobufjs";
import { packageRoot } from "../runtime/package-root.ts";
import { once } from "./once.ts";

/** Encoder and decoder of one message. `I` may be incomplete, `O` has every default. */
export interface MessageCodec<I, O> {
  serialize(message: I): Buffer;
  deserialize(bytes: Uint8Array): O;
}

/** One method of a service as gRPC takes it. */
export interface WireMethod {
  /** `/package.Service/Method`. */
  readonly path: string;
  readonly requestStream: boolean;
  readonly responseStream: boolean;
  readonly requestSerialize: (message: object) => Buffer;
  readonly requestDeserialize: (bytes: Buffer) => object;
  readonly responseSerialize: (message: object) => Buffer;
  readonly responseDeserialize: (bytes: Buffer) => object;
}

export const protoRoot = join(packageRoot, "proto");

/** The generated types stand for exactly these: see `generate.ts`. */
const CONVERSION = { longs: String, enums: String, defaults: true, oneofs: true } as const;

/**
 * Files that share what they import, so that it is read once. The loader would also describe every message, which only
 * reflection needs.
 */
function namespace(): protobuf.Root {
  const made = new protobuf.Root();
  made.resolvePath = (_, target) => join(protoRoot, target);
  return made;
}

const packaged = once(namespace);
/** Names that stand in no package are found before those of the package that asks, so they get their own. */
const bare = once(namespace);

/** Throws when `file`, below `protoRoot`, has no such service. */
export function methodsOf(service: string, file: string): Readonly<Record<string, WireMethod>> {
  const { methodsArray } = load(service, file).lookupService(service);
  return Object.fromEntries(methodsArray.map((method) => [method.name, wireMethod(service, method)]));
}

function wireMethod(service: string, method: protobuf.Method): WireMethod {
  const { name, resolvedRequestType, resolvedResponseType, requestStream, responseStream } = method;
  if (resolvedRequestType === null || resolvedResponseType === null) throw new Error(`${service}/${name} has no types`);
  const [request, response] = [codecOf(resolvedRequestType), codecOf(resolvedResponseType)];
  return {
    path: `/${service}/${name}`,
    requestStream: requestStream === true,
    responseStream: responseStream === true,
    requestSerialize: request.serialize,
    requestDeserialize: request.deserialize,
    responseSerialize: response.serialize,
    responseDeserialize: response.deserialize,
  };
}

/** Throws when `file`, below `protoRoot`, has no such message. */
export function messageCodec(name: string, file: string): MessageCodec<object, object> {
  return codecOf(load(name, file).lookupType(name));
}

function load(name: string, file: string): protobuf.Root {
  const root = name.includes(".") ? packaged() : bare();
  return root.loadSync(file, { keepCase: true });
}

function codecOf(type: protobuf.Type): MessageCodec<object, object> {
  return {
    serialize: (message) => type.encode(type.fromObject(message)).finish() as Buffer,
    deserialize: (bytes) => type.toObject(type.decode(bytes), CONVERSION),
  };
}
