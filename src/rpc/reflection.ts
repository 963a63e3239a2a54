import { Fault } from "../runtime/fault.ts";
import { type Descriptors, descriptorsOf, type FileDescriptor, symbolsOf } from "./descriptors.ts";
import type { ServerReflectionRequest__Output } from "./gen/grpc/reflection/v1/ServerReflectionRequest.ts";
import type { ServerReflectionResponse } from "./gen/grpc/reflection/v1/ServerReflectionResponse.ts";
import { once } from "./once.ts";
import { ReflectionAlphaApi, ReflectionApi, type Service } from "./protos.ts";
import { bidi, type ServiceImplementation, service } from "./service.ts";
import { codeOf } from "./status.ts";

/**
 * gRPC server reflection, in both versions, for the given services and itself (SPIFFE Workload Endpoint, section 7).
 * Who may use it is up to `admit`.
 */
export function reflectionServices<Auth>(services: readonly Service<object>[]): readonly ServiceImplementation<Auth>[] {
  const offered = [...services, ReflectionApi, ReflectionAlphaApi];
  const index = once(async () => new Index(offered, await descriptorsOf(offered)));
  async function* answers(
    requests: AsyncIterable<ServerReflectionRequest__Output>,
  ): AsyncGenerator<ServerReflectionResponse> {
    const known = await index();
    for await (const request of requests)
      yield { valid_host: request.host, original_request: request, ...known.answer(request) };
  }
  const info = bidi(answers, { endless: true });
  const v1: ServiceImplementation<Auth> = service(ReflectionApi, { ServerReflectionInfo: info });
  const v1alpha: ServiceImplementation<Auth> = service(ReflectionAlphaApi, { ServerReflectionInfo: info });
  return [v1, v1alpha];
}

class Index {
  readonly #encode: Descriptors["encode"];
  readonly #services: readonly string[];
  readonly #byName: ReadonlyMap<string, FileDescriptor>;
  readonly #bySymbol: ReadonlyMap<string, FileDescriptor>;

  constructor(services: readonly Service<object>[], { files, encode }: Descriptors) {
    this.#encode = encode;
    this.#services = services.map(({ name }) => name).sort();
    this.#byName = new Map(files.map((file) => [file.name, file]));
    this.#bySymbol = new Map(files.flatMap((file) => symbolsOf(file).map((symbol) => [symbol, file] as const)));
  }

  answer(request: ServerReflectionRequest__Output): ServerReflectionResponse {
    switch (request.message_request) {
      case "list_services":
        return { list_services_response: { service: this.#services.map((name) => ({ name })) } };
      case "file_by_filename":
        return this.#fileAnswer(this.#byName.get(request.file_by_filename ?? ""), `file ${request.file_by_filename}`);
      case "file_containing_symbol":
        return this.#fileAnswer(
          this.#bySymbol.get(request.file_containing_symbol ?? ""),
          `symbol ${request.file_containing_symbol}`,
        );
      case "file_containing_extension":
        return failed(new Fault("not_found", "there are no extensions"));
      case "all_extension_numbers_of_type":
        return this.#extensionsAnswer(request.all_extension_numbers_of_type ?? "");
      default:
        return failed(new Fault("invalid", "the request asks for nothing"));
    }
  }

  #fileAnswer(file: FileDescriptor | undefined, what: string): ServerReflectionResponse {
    if (file === undefined) return failed(new Fault("not_found", `${what} is not known`));
    return { file_descriptor_response: { file_descriptor_proto: this.#withImports(file).map(this.#encode) } };
  }

  #extensionsAnswer(type: string): ServerReflectionResponse {
    if (!this.#bySymbol.has(type)) return failed(new Fault("not_found", `type ${type} is not known`));
    return { all_extension_numbers_response: { base_type_name: type, extension_number: [] } };
  }

  #withImports(file: FileDescriptor): readonly FileDescriptor[] {
    const wanted = new Set([file]);
    for (const { dependency } of wanted) {
      for (const name of dependency) {
        const imported = this.#byName.get(name);
        if (imported !== undefined) wanted.add(imported);
      }
    }
    return [...wanted];
  }
}

function failed(fault: Fault): ServerReflectionResponse {
  return { error_response: { error_code: codeOf(fault), error_message: fault.message } };
}
