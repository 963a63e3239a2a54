import { bundleToProto } from "../../src/rpc/convert.ts";
import type { BundleApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import type { BundleStore } from "../store/store.ts";
import { attempt, failure } from "./fail.ts";
import type { HandlersOf } from "./shapes.ts";

export interface BundleServiceParts {
  readonly trustDomain: TrustDomain;
  readonly directory: Pick<Directory, "bundle">;
  readonly bundles: Pick<BundleStore, "count">;
}

type Served = "CountBundles" | "GetBundle";

/** The server's own bundle, from memory: agents ask for it with every sync. */
export function bundleService({
  trustDomain,
  directory,
  bundles,
}: BundleServiceParts): Pick<HandlersOf<typeof BundleApi>, Served> {
  return {
    CountBundles: unary(async (_, { auth: { log } }) => ({
      count: await attempt(log, "failed to count bundles", () => bundles.count()),
    })),
    GetBundle: unary(async ({ output_mask }, { auth: { log } }) => {
      const bundle = directory.bundle(trustDomain);
      if (bundle === undefined) throw failure(log, "not_found", "bundle not found");
      return bundleToProto(bundle, output_mask);
    }),
  };
}
