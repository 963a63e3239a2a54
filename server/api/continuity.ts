import type { ContinuityApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import type { BundleLinks } from "../ca/continuity.ts";
import { attempt, failure } from "./fail.ts";
import type { HandlersOf } from "./shapes.ts";

export interface ContinuityServiceParts {
  readonly links: Pick<BundleLinks, "of">;
}

const MOST_IDS = 64;

/** For strangers: public, bounded, and from memory. */
export function continuityService({ links }: ContinuityServiceParts): HandlersOf<typeof ContinuityApi> {
  return {
    GetBundleLinks: unary(async ({ authority_ids }, { auth: { log } }) => {
      if (authority_ids.length > MOST_IDS) throw failure(log, "invalid", `more than ${MOST_IDS} authority IDs`);
      const found = await attempt(log, "failed to fetch bundle links", () => links.of([...new Set(authority_ids)]));
      return {
        links: found.map(({ statement, x509Authorities }) => ({
          statement,
          x509_authorities: x509Authorities.map((der) => Buffer.from(der)),
        })),
      };
    }),
  };
}
