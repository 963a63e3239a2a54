import type { Channel } from "../rpc/dial.ts";
import { ReflectionApi, WorkloadApi } from "../rpc/protos.ts";
import { isFault } from "../runtime/fault.ts";
import { type CallOptions, type FetchOptions, firstOf, overChannel } from "./endpoint.ts";
import type { OpenStream } from "./watch.ts";

/**
 * Full names of the services that the endpoint offers. One that has no reflection offers the Workload API and nothing
 * else. SPIFFE Workload Endpoint, section 7.
 */
export function listServices(options: FetchOptions = {}): Promise<readonly string[]> {
  return servicesOver(overChannel(options, askForServices), { ...options, without: WorkloadApi.name });
}

/** The question to ask an endpoint on a channel. */
export function askForServices(channel: Channel, call: CallOptions) {
  async function* question() {
    yield { list_services: "" };
  }
  return channel.client(ReflectionApi).ServerReflectionInfo(question(), call);
}

type Answer = ReturnType<typeof askForServices> extends AsyncIterable<infer M> ? M : never;

/** What the endpoint answers; `without` is the one service of an endpoint that has no reflection. */
export async function servicesOver(
  open: OpenStream<Answer>,
  options: FetchOptions & { readonly without: string },
): Promise<readonly string[]> {
  try {
    const { list_services_response } = await firstOf(open, options);
    return (list_services_response?.service ?? []).map(({ name }) => name);
  } catch (error) {
    if (isFault(error, "unimplemented")) return [options.without];
    throw error;
  }
}
