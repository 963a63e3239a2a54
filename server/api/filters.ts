import { selectorsFromProto } from "../../src/rpc/convert.ts";
import type { _spire_api_server_agent_v1_ListAgentsRequest_Filter__Output as AgentFilterProto } from "../../src/rpc/gen/spire/api/server/agent/v1/ListAgentsRequest.ts";
import type { _spire_api_server_entry_v1_ListEntriesRequest_Filter__Output as EntryFilterProto } from "../../src/rpc/gen/spire/api/server/entry/v1/ListEntriesRequest.ts";
import type { SelectorMatch__Output } from "../../src/rpc/gen/spire/api/types/SelectorMatch.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { parseTrustDomainOrId, type TrustDomain } from "../../src/spiffe/id.ts";
import { type Selector, selectorSet } from "../../src/spiffe/selector.ts";
import type { EntryFilter, NodeFilter, SetMatch } from "../store/store.ts";
import { parseExpiresBefore } from "./expires-before.ts";
import { checked } from "./fail.ts";
import { memberId, workloadId } from "./ids.ts";

const MATCHES: Readonly<Record<string, SetMatch>> = {
  MATCH_EXACT: "exact",
  MATCH_SUBSET: "subset",
  MATCH_SUPERSET: "superset",
  MATCH_ANY: "any",
};

/** Filters of CountEntries and ListEntries. Throws `invalid`. */
export function entryFilter(log: Log, trustDomain: TrustDomain, filter: EntryFilterProto | null): EntryFilter {
  if (filter === null) return {};
  const { by_parent_id, by_spiffe_id, by_selectors, by_federates_with, by_hint, by_downstream } = filter;
  return {
    ...(by_hint === null || by_hint.value === "" ? {} : { hint: by_hint.value }),
    ...(by_parent_id === null
      ? {}
      : { parentId: checked(log, "malformed parent ID filter", () => memberId(trustDomain, by_parent_id)) }),
    ...(by_spiffe_id === null
      ? {}
      : { spiffeId: checked(log, "malformed SPIFFE ID filter", () => workloadId(trustDomain, by_spiffe_id)) }),
    ...(by_selectors === null
      ? {}
      : { selectors: checked(log, "malformed selectors filter", () => selectorFilter(by_selectors)) }),
    ...(by_federates_with === null
      ? {}
      : {
          federatesWith: checked(log, "malformed federates with filter", () =>
            federatesWithFilter(by_federates_with.trust_domains, by_federates_with.match),
          ),
        }),
    // False is no filter, as in SPIRE: its command line sends it whenever nobody asks for downstream entries.
    ...(by_downstream?.value === true ? { downstream: true } : {}),
  };
}

/** Filters of CountAgents and ListAgents. Throws `invalid`. */
export function nodeFilter(log: Log, filter: AgentFilterProto | null): NodeFilter {
  if (filter === null) return {};
  const { by_attestation_type, by_selector_match, by_banned, by_can_reattest } = filter;
  const expiresBefore = parseExpiresBefore(filter.by_expires_before);
  return {
    ...(by_attestation_type === "" ? {} : { attestationType: by_attestation_type }),
    ...(by_selector_match === null
      ? {}
      : { selectors: checked(log, "failed to parse selectors", () => selectorFilter(by_selector_match)) }),
    ...(by_banned === null ? {} : { banned: by_banned.value }),
    ...(by_can_reattest === null ? {} : { canReattest: by_can_reattest.value }),
    ...(expiresBefore === undefined ? {} : { expiresBefore }),
  };
}

function selectorFilter({ selectors, match }: SelectorMatch__Output): {
  readonly match: SetMatch;
  readonly selectors: readonly Selector[];
} {
  const set = selectorSet(selectorsFromProto(selectors));
  if (set.length === 0) throw new Fault("invalid", "empty selector set", { code: "filter-empty" });
  return { match: matchOf(match), selectors: set };
}

function federatesWithFilter(
  names: readonly string[],
  match: string,
): { readonly match: SetMatch; readonly trustDomains: readonly TrustDomain[] } {
  const trustDomains = [...new Set(names.map(parseTrustDomainOrId))];
  if (trustDomains.length === 0) throw new Fault("invalid", "empty trust domain set", { code: "filter-empty" });
  return { match: matchOf(match), trustDomains };
}

/** Numbers that the enumeration does not name arrive as they are. */
function matchOf(match: unknown): SetMatch {
  const known = typeof match === "string" ? MATCHES[match] : undefined;
  if (known === undefined)
    throw new Fault("invalid", `unknown match behavior ${String(match)}`, { code: "filter-match" });
  return known;
}
