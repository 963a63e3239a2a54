import * as v from "valibot";
import type { InstanceToken } from "../../../src/evidence/gcp-iit.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";

const COMPUTE = "https://compute.googleapis.com/compute/v1";

const Instance = v.object({
  id: v.string(),
  name: v.string(),
  tags: v.nullish(v.object({ items: v.nullish(v.array(v.string())) })),
  labels: v.nullish(v.record(v.string(), v.string())),
  metadata: v.nullish(
    v.object({ items: v.nullish(v.array(v.object({ key: v.string(), value: v.nullish(v.string()) }))) }),
  ),
});
export type ComputeInstance = v.InferOutput<typeof Instance>;

/**
 * The instance of the token: by its name, which another instance may have had before or have by now, and so compared by
 * its ID (T-N6). Throws `denied`, `unavailable`.
 */
export async function computeInstance(
  http: HttpCaller,
  accessToken: string,
  { google: { compute_engine: at } }: InstanceToken,
  signal: AbortSignal,
): Promise<ComputeInstance> {
  const path = `projects/${at.project_id}/zones/${at.zone}/instances/${at.instance_name}`;
  const call = { url: new URL(`${COMPUTE}/${path}`), headers: { authorization: `Bearer ${accessToken}` } };
  const instance = await http.json(Instance, call, signal);
  if (instance.id === at.instance_id && instance.name === at.instance_name) return instance;
  throw new Fault("denied", "failed to fetch instance metadata: another instance has the name", {
    code: "gcp-iit-refused",
  });
}
