import type { Call } from "../../src/rpc/caller.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import { typeNameOf } from "./broker-reference.ts";

/** One broker of the configuration, and the references that it may use. */
export interface BrokerRule {
  readonly id: SpiffeId;
  readonly allowed: readonly AllowedReference[];
}

export interface AllowedReference {
  /** A type URL, or `*` for every type. */
  readonly typeUrl: string;
  readonly overTcp: boolean;
}

/** A broker that may ask; for whom depends on its rule. */
export interface BrokerCaller {
  readonly id: SpiffeId;
  readonly rule: BrokerRule;
  readonly overTcp: boolean;
  /** Carries the broker's ID. */
  readonly log: Log;
}

const HEADER = "broker.spiffe.io";
const REFLECTION = "/grpc.reflection.";

/** Lets the brokers in that the configuration names, and that send the security header. SPIFFE Broker Endpoint, 3 and 6. */
export function brokerAdmission(rules: readonly BrokerRule[]): (call: Call) => Promise<BrokerCaller> {
  const byId = new Map(rules.map((rule) => [rule.id, rule]));
  return async (call) => {
    const values = call.metadata.get(HEADER);
    if (values.length !== 1 || values[0] !== "true") {
      throw new Fault("invalid", "security header missing from request", {
        code: "security-header-missing",
        hint: `send the metadata "${HEADER}: true" with every request`,
      });
    }
    const id = call.caller.peer?.id;
    if (id === undefined)
      throw new Fault("unauthenticated", "unable to determine caller identity", { code: "caller-unknown" });
    const rule = byId.get(id);
    if (rule === undefined)
      throw new Fault("denied", `"${id}" is not an authorized broker`, {
        code: "broker-not-authorized",
        hint: "name it in experimental.broker.brokers of the agent's configuration",
      });
    const overTcp = call.caller.transport === "tcp";
    if (overTcp && call.method.startsWith(REFLECTION))
      throw new Fault("denied", "server reflection is only available over Unix sockets", { code: "reflection-local" });
    return { id, rule, overTcp, log: call.log.child({ service: "Broker", broker_peer: id }) };
  };
}

/** Throws `denied` for a type of reference that this broker may not use, or not from afar. */
export function authorizeReference({ id, rule, overTcp }: BrokerCaller, type: string): void {
  const found = rule.allowed.find(({ typeUrl }) => typeUrl === "*" || typeNameOf(typeUrl) === type);
  if (found === undefined) {
    throw new Fault("denied", `broker "${id}" is not allowed to use reference type "${type}"`, {
      code: "reference-type-not-allowed",
      hint: "list it in allowed_reference_types of this broker in the agent's configuration",
    });
  }
  if (overTcp && !found.overTcp) {
    throw new Fault("denied", `reference type "${type}" is not allowed over TCP for broker "${id}"`, {
      code: "reference-type-local",
      hint: "set allow_over_tcp for it if the broker runs where the reference means the same",
    });
  }
}
