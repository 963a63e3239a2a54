import type { AttestedNode, ChangeSet } from "../../../server/store/store.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../../src/spiffe/id.ts";
import { parseSelector, selectorSet } from "../../../src/spiffe/selector.ts";
import { START } from "../ca/support.ts";

export interface NodeFields extends Partial<Omit<AttestedNode, "selectors">> {
  readonly id: SpiffeId;
  readonly selectors?: readonly string[];
}

/** Valid for an hour after the clock's start. */
export function makeNode({ selectors = [], ...fields }: NodeFields): AttestedNode {
  return {
    attestationType: "join_token",
    serialNumber: "1",
    expiresAt: new Date(START.getTime() + 3_600_000),
    newSerialNumber: "",
    newExpiresAt: undefined,
    superseded: [],
    quarantine: undefined,
    canReattest: false,
    agentVersion: "",
    selectors: selectorSet(selectors.map(parseSelector)),
    ...fields,
  };
}

export function makeBundle(trustDomain: TrustDomain, sequenceNumber = 1n): Bundle {
  return { trustDomain, x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 0, sequenceNumber };
}

export interface Changes {
  readonly entries?: readonly Entry[];
  readonly deletedEntries?: readonly string[];
  readonly nodes?: readonly AttestedNode[];
  readonly deletedNodes?: readonly SpiffeId[];
  readonly bundles?: readonly Bundle[];
}

export function changeSet({
  entries = [],
  deletedEntries = [],
  nodes = [],
  deletedNodes = [],
  bundles = [],
}: Changes): ChangeSet {
  return {
    cursor: "1:1:",
    entries: new Map<string, Entry | undefined>([
      ...entries.map((entry): [string, Entry] => [entry.id, entry]),
      ...deletedEntries.map((id): [string, undefined] => [id, undefined]),
    ]),
    nodes: new Map<SpiffeId, AttestedNode | undefined>([
      ...nodes.map((node): [SpiffeId, AttestedNode] => [node.id, node]),
      ...deletedNodes.map((id): [SpiffeId, undefined] => [id, undefined]),
    ]),
    bundles: new Map(bundles.map((bundle) => [bundle.trustDomain, bundle])),
  };
}
