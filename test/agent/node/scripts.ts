import type { AgentConfig } from "../../../agent/config.ts";
import type { NodeAttestor } from "../../../agent/node/attestor.ts";
import { Bootstrap, bundleOf, type TrustBundleSource } from "../../../agent/node/bootstrap.ts";
import type { Credentials } from "../../../agent/node/credentials.ts";
import { NodeIdentity } from "../../../agent/node/identity.ts";
import { ServerTrust } from "../../../agent/node/server-trust.ts";
import { AgentState } from "../../../agent/node/state.ts";
import { Upstream } from "../../../agent/node/upstream.ts";
import type { ExportingKeyManager } from "../../../src/keys/keys.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { bidi, unary } from "../../../src/rpc/service.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import type { CertificateOptions } from "../../support/pki.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import type { Script, ScriptedServer } from "../../support/scripted-server.ts";

export const HOME = parseTrustDomain("home.test");
export const AGENT = "spiffe://home.test/spire/agent/test/1";

export interface AttestingScript {
  readonly reattestable?: boolean;
  /** Of the agent's SVID. */
  readonly certificate?: () => CertificateOptions;
  /** Sent one after the other; what comes back is pushed to `answers`. */
  readonly challenges?: readonly string[];
  readonly answers?: string[];
  /** Throws to refuse. */
  readonly admit?: (payload: string) => void;
  readonly renew?: () => void;
  /** Of each attestation, as they came. */
  readonly csrs?: Uint8Array[];
}

/** A server that attests whoever comes, as a sound one would. */
export function attesting(script: AttestingScript = {}) {
  return ({ ca, signCsr }: Pick<ScriptedServer, "ca" | "signCsr">): Script => {
    const sign = async (csr: Uint8Array) => {
      const { chain } = await signCsr(csr, { id: AGENT, ...script.certificate?.() });
      return {
        cert_chain: chain.map((der) => Buffer.from(der)),
        id: { trust_domain: "home.test", path: "/spire/agent/test/1" },
        expires_at: 1,
      };
    };
    return {
      agent: {
        AttestAgent: bidi(async function* (requests) {
          const incoming = requests[Symbol.asyncIterator]();
          const { params } = (await incoming.next()).value;
          script.csrs?.push(params?.params?.csr ?? Buffer.alloc(0));
          script.admit?.(params?.data?.payload.toString() ?? "");
          for (const challenge of script.challenges ?? []) {
            yield { challenge: Buffer.from(challenge) };
            script.answers?.push((await incoming.next()).value.challenge_response.toString());
          }
          yield {
            result: {
              svid: await sign(params?.params?.csr ?? Buffer.alloc(0)),
              reattestable: script.reattestable ?? false,
            },
          };
        }),
        RenewAgent: unary(async ({ params }) => {
          script.renew?.();
          return { svid: await sign(params?.csr ?? Buffer.alloc(0)) };
        }),
        PostStatus: unary(async () => ({})),
      },
      bundle: {
        GetBundle: unary(async () => ({
          trust_domain: "home.test",
          x509_authorities: [{ asn1: Buffer.from(ca.der) }],
        })),
      },
    };
  };
}

export function evidenceOf(text: string, responses: readonly string[] = []): NodeAttestor {
  const left = [...responses];
  return {
    type: "test",
    evidence: async () => Buffer.from(text),
    respond: async (challenge) => Buffer.from(`${left.shift()} to ${Buffer.from(challenge).toString()}`),
  };
}

export interface NodeOptions {
  readonly dataDir: string;
  readonly attestor?: NodeAttestor;
  readonly trustBundle?: TrustBundleSource;
  readonly keys?: ExportingKeyManager;
  readonly clock?: Clock;
  readonly rebootstrap?: AgentConfig["rebootstrap"];
}

/** The node half of an agent that faces this server. */
export async function nodeFacing(server: Pick<ScriptedServer, "address" | "port">, options: NodeOptions) {
  const {
    dataDir,
    attestor = evidenceOf("hello"),
    trustBundle = { kind: "insecure" },
    keys = openMemoryKeys(),
    clock = systemClock,
  } = options;
  const log = new RecordingLog();
  const credentials: Credentials = {
    identity: new Feed(undefined),
    bundle: new Feed(bundleOf(HOME, [])),
  } as Credentials;
  const serverTrust = new ServerTrust(clock);
  const upstream = new Upstream({
    serverTrust,
    trustDomain: HOME,
    address: server.address,
    port: server.port,
    credentials,
    clock,
    log,
  });
  const state = await AgentState.load(dataDir);
  const node = new NodeIdentity({
    rebootstrap: options.rebootstrap ?? { mode: "never", delayMs: 0 },
    serverTrust,
    bootstrap: new Bootstrap({
      source: trustBundle,
      trustDomain: HOME,
      clock,
      serverAddress: server.address,
      serverPort: server.port,
    }),
    trustDomain: HOME,
    attestor,
    keys,
    state,
    upstream,
    credentials,
    clock,
    log,
  });
  const messages = () => log.lines.map(({ message }) => message);
  return {
    node,
    upstream,
    credentials,
    state,
    keys,
    log,
    messages,
    [Symbol.dispose]: () => upstream[Symbol.dispose](),
  };
}
