import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey, type LocalSigner } from "../../src/crypto/key.ts";
import type { AttestAgentRequest } from "../../src/rpc/gen/spire/api/server/agent/v1/AttestAgentRequest.ts";
import type { Fault } from "../../src/runtime/fault.ts";
import { formatSelector } from "../../src/spiffe/selector.ts";
import { faultFrom } from "./faults.ts";
import { type Apis, protoId, type TestServer, type TestSvid, testSvid } from "./server.ts";

export interface Evidence {
  readonly type: string;
  readonly payload: Uint8Array | string;
  /** Answers a challenge; default: there is none. */
  readonly respond?: (challenge: Buffer) => Uint8Array | string | Promise<Uint8Array | string>;
  /** Default: a new key for each. */
  readonly signer?: LocalSigner;
}

export interface Attested extends TestSvid {
  readonly reattestable: boolean;
}

/** One attestation, as an agent runs it, with any evidence at all. Throws what the server answers. */
export async function attestWith(apis: Apis, evidence: Evidence): Promise<Attested> {
  const signer = evidence.signer ?? (await generateKey("ec-p256"));
  const csr = await createCertificateRequest({ signer });
  let wake = Promise.withResolvers<AttestAgentRequest | undefined>();
  const first = { data: { type: evidence.type, payload: Buffer.from(evidence.payload) }, params: { csr } };
  async function* requests(): AsyncGenerator<AttestAgentRequest> {
    yield { params: first };
    for (let next = await wake.promise; next !== undefined; next = await wake.promise) {
      wake = Promise.withResolvers();
      yield next;
    }
  }
  try {
    for await (const response of apis.agent.AttestAgent(requests(), { deadlineMs: 60_000 })) {
      if (response.step !== "challenge") {
        const svid = testSvid(signer, response.result?.svid?.cert_chain ?? []);
        return { ...svid, reattestable: response.result?.reattestable ?? false };
      }
      if (evidence.respond === undefined) throw new Error("the server sent a challenge");
      const answer = await evidence.respond(response.challenge ?? Buffer.alloc(0));
      wake.resolve({ challenge_response: Buffer.from(answer) });
    }
    throw new Error("the server ended the stream without an answer");
  } finally {
    wake.resolve(undefined);
  }
}

/** The server's refusal. */
export async function refused(apis: Apis, evidence: Evidence): Promise<Pick<Fault, "kind" | "message">> {
  const { kind, message } = await faultFrom(attestWith(apis, evidence));
  return { kind, message };
}

/** Selectors of a node, as text, sorted. */
export async function selectorsOf(server: TestServer, id: string): Promise<readonly string[]> {
  const { selectors } = await server.admin.agent.GetAgent({ id: protoId(id) });
  return selectors.map(formatSelector).sort();
}
