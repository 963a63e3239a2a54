import { ReflectionApi, WorkloadApi } from "../rpc/protos.ts";
import { isFault } from "../runtime/fault.ts";
import { type FetchOptions, firstOf, overChannel } from "./endpoint.ts";

/**
 * Full names of the services that the endpoint offers. One that has no reflection offers the Workload API and nothing
 * else. SPIFFE Workload Endpoint, section 7.
 */
export async function listServices(options: FetchOptions = {}): Promise<readonly string[]> {
  async function* question() {
    yield { list_services: "" };
  }
  const open = overChannel(options, (channel, call) => {
    return channel.client(ReflectionApi).ServerReflectionInfo(question(), call);
  });
  try {
    const { list_services_response } = await firstOf(open, options);
    return (list_services_response?.service ?? []).map(({ name }) => name);
  } catch (error) {
    if (isFault(error, "unimplemented")) return [WorkloadApi.name];
    throw error;
  }
}
