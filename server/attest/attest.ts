import { Fault } from "../../src/runtime/fault.ts";
import { isAgentId, isMember, pathOf, type SpiffeId, serverId, type TrustDomain } from "../../src/spiffe/id.ts";
import { checkSelector, type Selector, selectorSet } from "../../src/spiffe/selector.ts";
import type { AttestedNode } from "../store/store.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { JOIN_TOKEN } from "./join-token.ts";

export interface AttestationOptions {
  readonly trustDomain: TrustDomain;
  readonly attestors: readonly NodeAttestor[];
  readonly node: (id: SpiffeId) => AttestedNode | undefined;
  /** Takes from an attested node what it has: its selectors, and that its SVID is good. */
  readonly withdraw: (node: AttestedNode) => Promise<unknown>;
}

export interface Evidence {
  readonly type: string;
  readonly payload: Uint8Array;
  readonly challenge: Challenge;
  readonly context: AttestationContext;
}

/** What a stranger sends is quoted no longer than this. */
const LONGEST_NAME = 64;
/** Far more than any attestor finds in honest evidence. */
const MOST_SELECTORS = 1024;

/** Finds the attestor, lets it judge, and holds its claim against the rules that all share. */
export class NodeAttestation {
  readonly #options: AttestationOptions;
  readonly #attestors: ReadonlyMap<string, NodeAttestor>;

  constructor(options: AttestationOptions) {
    this.#options = options;
    this.#attestors = new Map(options.attestors.map((attestor) => [attestor.type, attestor]));
  }

  /** A claim that may be signed and stored; its selectors are a set. The store checks the ban once more. */
  async attest(evidence: Evidence): Promise<NodeClaim> {
    const attestor = this.#attestors.get(evidence.type);
    if (attestor === undefined) {
      const named = JSON.stringify(evidence.type.slice(0, LONGEST_NAME));
      throw new Fault("precondition", `error getting node attestor: could not find node attestor type ${named}`, {
        code: "node-attestor-unknown",
        hint: "configure a NodeAttestor of this name on the server, or attest in another way",
      });
    }
    const claim = await judge(attestor, evidence);
    this.#checkId(attestor, claim.id);
    // A ban empties the serial and keeps the record.
    if (this.#options.node(claim.id)?.serialNumber === "") {
      throw new Fault("denied", "failed to attest: agent is banned", {
        code: "agent-banned",
        hint: "evict the agent to let it attest again",
      });
    }
    if (claim.refused !== undefined) {
      const node = this.#options.node(claim.id);
      if (node !== undefined) await this.#options.withdraw(node);
      throw prefixed(attestor.type, claim.refused);
    }
    return { ...claim, selectors: storable(attestor, claim.selectors) };
  }

  #checkId({ type, ownPath = false }: NodeAttestor, id: SpiffeId): void {
    const { trustDomain } = this.#options;
    if (id === serverId(trustDomain)) throw new Fault("internal", "agent ID cannot collide with the server ID");
    if (!isMember(id, trustDomain)) {
      throw new Fault("internal", `invalid agent ID: "${id}" is not a member of trust domain "${trustDomain}"`);
    }
    const [, , space, first, ...rest] = pathOf(id).split("/");
    const isOwn = ownPath ? !NAMESPACES.has(first ?? "") || first === type : first === type && rest.length > 0;
    if (!isAgentId(id) || space !== "agent" || !isOwn) {
      throw new Fault("internal", `invalid agent ID: "${id}" is not in the agent namespace for attestor "${type}"`);
    }
  }
}

/** First segments that belong to one attestor each, configured or not. */
const NAMESPACES: ReadonlySet<string> = new Set([
  JOIN_TOKEN,
  ...["x509pop", "sshpop", "http_challenge", "k8s_psat", "tpm_devid", "tpm"],
  ...["aws_iid", "gcp_iit", "azure_imds", "azure_msi"],
]);

/** SPIRE names the attestor in the message, except for join tokens, which it judges itself. */
async function judge(attestor: NodeAttestor, { payload, challenge, context }: Evidence): Promise<NodeClaim> {
  try {
    return await attestor.attest(payload, challenge, context);
  } catch (thrown) {
    const fault = Fault.from(thrown);
    throw attestor.type === JOIN_TOKEN ? fault : prefixed(attestor.type, fault);
  }
}

/**
 * What a node says of itself is as long as its certificate allows, and once it is stored every server reads it back: what
 * is no selector must not get that far. Throws `invalid`.
 */
function storable({ type }: NodeAttestor, selectors: readonly Selector[]): readonly Selector[] {
  try {
    const distinct = selectorSet(selectors.map(checkSelector));
    if (distinct.length <= MOST_SELECTORS) return distinct;
  } catch (error) {
    throw prefixed(type, Fault.from(error));
  }
  throw prefixed(type, new Fault("invalid", `more than ${MOST_SELECTORS} selectors`, { code: "node-selectors" }));
}

function prefixed(type: string, fault: Fault): Fault {
  return new Fault(fault.kind, `nodeattestor(${type}): ${fault.message}`, {
    code: fault.code,
    details: fault.details,
    cause: fault,
    ...(fault.hint === undefined ? {} : { hint: fault.hint }),
  });
}
