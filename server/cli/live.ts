import type { AskLive, Candidate } from "../../src/cli/completion.ts";
import { type Channel, dialUnix } from "../../src/rpc/dial.ts";
import { AgentApi, BundleApi, EntryApi, LocalAuthorityApi, TrustDomainApi } from "../../src/rpc/protos.ts";
import { DEFAULT_SERVER_SOCKET } from "../config.ts";
import { serverEndpoint } from "./connection.ts";
import { idText } from "./print.ts";

/** Somebody waits with a finger on the Tab key. */
const DEADLINE = { deadlineMs: 700 };
/** More than anybody reads; the rest comes with the next letters. */
const MOST = 1000;

type Lister = (channel: Channel) => Promise<readonly Candidate[]>;

const entries = async (channel: Channel) =>
  (
    await channel.client(EntryApi).ListEntries(
      {
        page_size: MOST,
        output_mask: { spiffe_id: true, parent_id: true, selectors: true },
      },
      DEADLINE,
    )
  ).entries;

const agents: Lister = async (channel) => {
  const page = await channel
    .client(AgentApi)
    .ListAgents({ page_size: MOST, output_mask: { attestation_type: true } }, DEADLINE);
  return page.agents.map(({ id, attestation_type }) => ({ value: idText(id), description: attestation_type }));
};

function authorities(
  states: Readonly<Record<"active" | "prepared" | "old", { readonly authority_id: string } | null>>,
): readonly Candidate[] {
  const slots = ["active", "prepared", "old"] as const;
  return slots.flatMap((slot) => {
    const state = states[slot];
    return state === null ? [] : [{ value: state.authority_id, description: slot }];
  });
}

/** By the names that flags have in `complete`. */
const LISTERS: Readonly<Record<string, Lister>> = {
  agent: agents,
  entry: async (channel) =>
    (await entries(channel)).map(({ id, spiffe_id, selectors }) => ({
      value: id,
      description: [idText(spiffe_id), ...selectors.map(({ type, value }) => `${type}:${value}`)].join(" "),
    })),
  "spiffe-id": async (channel) => (await entries(channel)).map(({ spiffe_id }) => ({ value: idText(spiffe_id) })),
  parent: async (channel) => {
    const [listed, nodes] = await Promise.all([entries(channel), agents(channel)]);
    // A node's own entries are what others name as their parent.
    const aliases = listed
      .filter(({ parent_id }) => parent_id?.path.startsWith("/spire/") === true)
      .map(({ spiffe_id }) => ({ value: idText(spiffe_id), description: "node entry" }));
    return [...aliases, ...listed.map(({ parent_id }) => ({ value: idText(parent_id) })), ...nodes];
  },
  "trust-domain": async (channel) => {
    const page = await channel
      .client(BundleApi)
      .ListFederatedBundles({ page_size: MOST, output_mask: { refresh_hint: true } }, DEADLINE);
    return page.bundles.map(({ trust_domain }) => ({ value: trust_domain }));
  },
  relationship: async (channel) => {
    const page = await channel.client(TrustDomainApi).ListFederationRelationships({ page_size: MOST }, DEADLINE);
    return page.federation_relationships.map(({ trust_domain, bundle_endpoint_url }) => ({
      value: trust_domain,
      description: bundle_endpoint_url,
    }));
  },
  "x509-authority": async (channel) =>
    authorities(await channel.client(LocalAuthorityApi).GetX509AuthorityState({}, DEADLINE)),
  "jwt-authority": async (channel) =>
    authorities(await channel.client(LocalAuthorityApi).GetJWTAuthorityState({}, DEADLINE)),
  "wit-authority": async (channel) =>
    authorities(await channel.client(LocalAuthorityApi).GetWITAuthorityState({}, DEADLINE)),
};

/** What exists on the server that the line names; nothing when it cannot be asked. */
export const serverLive: AskLive = async (kind, flags, env) => {
  const lister = Object.hasOwn(LISTERS, kind) ? LISTERS[kind] : undefined;
  if (lister === undefined) return [];
  try {
    const choice = {
      socketPath: flags.get("socketPath") ?? DEFAULT_SERVER_SOCKET,
      instance: flags.get("instance") ?? "",
    };
    using channel = dialUnix(serverEndpoint.socketPath(choice, env));
    return distinct(await lister(channel));
  } catch {
    return [];
  }
};

function distinct(candidates: readonly Candidate[]): readonly Candidate[] {
  const first = new Map<string, Candidate>();
  for (const candidate of candidates) {
    if (candidate.value !== "" && !first.has(candidate.value)) first.set(candidate.value, candidate);
  }
  return [...first.values()];
}
