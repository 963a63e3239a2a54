import { createHash } from "node:crypto";
import type { Call } from "../../src/rpc/caller.ts";
import type { AttestAgentRequest__Output } from "../../src/rpc/gen/spire/api/server/agent/v1/AttestAgentRequest.ts";
import type { AttestAgentResponse } from "../../src/rpc/gen/spire/api/server/agent/v1/AttestAgentResponse.ts";
import type { AgentApi } from "../../src/rpc/protos.ts";
import { bidi } from "../../src/rpc/service.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { NodeAttestation } from "../attest/attest.ts";
import type { NodeClaim } from "../attest/attestor.ts";
import type { Issuer } from "../ca/issue.ts";
import * as events from "../events.ts";
import type { NodeStore } from "../store/store.ts";
import type { Authorization } from "./admission.ts";
import { publicKeyOf } from "./csr.ts";
import { attempt, failure, passedOn } from "./fail.ts";
import { type HandlersOf, svidMessage } from "./shapes.ts";

export interface AttestAgentParts {
  readonly nodes: Pick<NodeStore, "attest">;
  readonly attestation: Pick<NodeAttestation, "attest">;
  readonly issuer: Pick<Issuer, "issueAgent">;
  readonly caughtUp: (log: Log) => Promise<void>;
  readonly clock: Clock;
}

/** The longest evidence of any attestor is a few certificates, the longest answer a quote with its event log. */
const MAX_PAYLOAD_BYTES = 512 * 1024;
/** For the whole conversation; the peer is a stranger until its end. */
const DEADLINE_MS = 60_000;

interface Params {
  readonly type: string;
  readonly payload: Uint8Array;
  readonly csr: Uint8Array;
}

/**
 * Judges a node by its evidence and gives it an SVID. The CSR is read first, so that a bad one uses up no token; nothing
 * is stored before the evidence held.
 */
export function attestAgent(parts: AttestAgentParts): HandlersOf<typeof AgentApi>["AttestAgent"] {
  return bidi(async function* (requests: AsyncIterable<AttestAgentRequest__Output>, call: Call<Authorization>) {
    const deadline = new AbortController();
    void expire(parts.clock, call, deadline.signal);
    const stream = new Conversation(requests, call.auth.log);
    try {
      yield* stream.whileAsking(() => attest(parts, stream, call));
    } finally {
      deadline.abort();
    }
  });
}

async function expire(clock: Clock, call: Call<Authorization>, done: AbortSignal): Promise<void> {
  try {
    await clock.sleep(DEADLINE_MS, AbortSignal.any([done, call.signal]));
    call.abort(
      new Fault("timeout", "attestation took too long", { code: "attestation-timeout", hint: "attest again" }),
    );
  } catch {
    // The conversation ended in time.
  }
}

async function attest(
  parts: AttestAgentParts,
  stream: Conversation,
  call: Call<Authorization>,
): Promise<AttestAgentResponse> {
  const { nodes, attestation, issuer } = parts;
  const params = checkParams(call.auth.log, await stream.receive());
  const log = call.auth.log.child({ node_attestor_type: params.type.slice(0, 64) });
  call.auth.note(() => ({ node_attestor_type: params.type.slice(0, 64) }));
  const publicKey = await publicKeyOf(log, params.csr, "failed to parse CSR");
  const keyHash = createHash("sha256").update(publicKey).digest("hex");
  const context = { signal: call.signal, remoteAddress: call.caller.remoteAddress, keyHash };
  const evidence = { ...params, challenge: (bytes: Uint8Array) => stream.ask(bytes), context };
  const claim = await judge(log, attestation, evidence);
  call.auth.note(() => ({ agent_id: claim.id }));
  const svid = await attempt(log, "failed to sign X509 SVID", () =>
    issuer.issueAgent({ id: claim.id, publicKey }, call.auth.turn),
  );
  const { id, selectors, canReattest } = claim;
  const record = {
    id,
    selectors,
    canReattest,
    attestationType: params.type,
    serialNumber: svid.serialNumber,
    expiresAt: svid.notAfter,
  };
  await store(log, params.type, () => nodes.attest(record, claim.once === true ? { keyHash } : undefined));
  await parts.caughtUp(log);
  events.agentAttested(log, { id, attestor: params.type, address: call.caller.remoteAddress });
  return { result: { svid: svidMessage(svid), reattestable: canReattest } };
}

async function judge(
  log: Log,
  attestation: AttestAgentParts["attestation"],
  evidence: Parameters<NodeAttestation["attest"]>[0],
): Promise<NodeClaim> {
  try {
    return await attestation.attest(evidence);
  } catch (error) {
    throw isOnPurpose(error) ? worded(log, error) : failure(log, "internal", "failed to attest", error);
  }
}

/** A fault with something else at its root was not thrown on purpose, and its text is nobody's business. */
function isOnPurpose(error: unknown): error is Fault {
  return isFault(error) && (error.kind !== "internal" || error.cause === undefined || isOnPurpose(error.cause));
}

/** The attestor's words are the answer: they hold no evidence. */
function worded(log: Log, fault: Fault): Fault {
  log.error(fault.kind === "invalid" ? `Invalid argument: ${fault.message}` : fault.message);
  return fault;
}

/** The whole node in one step: what comes after it can be lost, and a retry finds everything as it should be. */
async function store(log: Log, attestor: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const { kind, code, message } = Fault.from(error);
    if (kind !== "denied") throw passedOn(log, "failed to update attested agent", error);
    const prefix = code === "attestation-used" ? `nodeattestor(${attestor}): ` : "";
    throw worded(log, new Fault("denied", prefix + message, { code }));
  }
}

function checkParams(log: Log, { params }: AttestAgentRequest__Output): Params {
  const missing = missingIn(params);
  if (params?.data == null || params.params == null || missing !== undefined) {
    throw failure(log, "invalid", `malformed param: ${missing}`);
  }
  const { type, payload } = params.data;
  if (payload.length > MAX_PAYLOAD_BYTES)
    throw failure(log, "invalid", "malformed param: attestation data payload is too large");
  return { type, payload, csr: params.params.csr };
}

function missingIn(params: AttestAgentRequest__Output["params"]): string | undefined {
  if (params == null) return "missing params";
  if (params.data === null) return "missing attestation data";
  if (params.params === null) return "missing X509-SVID parameters";
  if (params.params.csr.length === 0) return "missing CSR";
  if (params.data.type === "") return "missing attestation data type";
  if (params.data.payload.length === 0) return "missing attestation data payload";
  return undefined;
}

/** Turns the stream inside out: an attestor asks and awaits the answer, the stream yields what it asks. */
class Conversation {
  readonly #requests: AsyncIterator<AttestAgentRequest__Output>;
  readonly #log: Log;
  #pending: { readonly challenge: Uint8Array; readonly answer: PromiseWithResolvers<Uint8Array> } | undefined;
  #asked = Promise.withResolvers<void>();

  constructor(requests: AsyncIterable<AttestAgentRequest__Output>, log: Log) {
    this.#requests = requests[Symbol.asyncIterator]();
    this.#log = log;
  }

  async receive(): Promise<AttestAgentRequest__Output> {
    const next = await this.#requests.next();
    if (next.done === true) throw failure(this.#log, "invalid", "failed to receive request from stream: EOF");
    return next.value;
  }

  /** Never with an empty challenge: agents take a message without one for the result. */
  ask(challenge: Uint8Array): Promise<Uint8Array> {
    if (challenge.length === 0) throw new Fault("internal", "node attestor sent an empty challenge");
    const answer = Promise.withResolvers<Uint8Array>();
    this.#pending = { challenge, answer };
    this.#asked.resolve();
    return answer.promise;
  }

  /** Yields the challenges of `work`, then its result. */
  async *whileAsking(work: () => Promise<AttestAgentResponse>): AsyncGenerator<AttestAgentResponse, void, undefined> {
    const result = work();
    result.catch(() => {});
    try {
      for (;;) {
        const done = await Promise.race([result.then((value) => ({ value })), this.#asked.promise]);
        if (done !== undefined) return yield done.value;
        yield* this.#relay();
      }
    } finally {
      this.#pending?.answer.reject(new Fault("cancelled", "the agent left during attestation"));
    }
  }

  async *#relay(): AsyncGenerator<AttestAgentResponse, void, undefined> {
    const pending = this.#pending;
    this.#asked = Promise.withResolvers<void>();
    if (pending === undefined) return;
    yield { challenge: Buffer.from(pending.challenge) };
    try {
      const { challenge_response: answer } = await this.receive();
      if ((answer?.length ?? 0) > MAX_PAYLOAD_BYTES)
        throw failure(this.#log, "invalid", "malformed param: challenge response is too large");
      pending.answer.resolve(answer ?? new Uint8Array());
    } catch (error) {
      pending.answer.reject(error);
    }
    this.#pending = undefined;
  }
}
