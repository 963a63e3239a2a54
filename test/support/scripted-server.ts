import { parseCertificateRequest, verifyCertificateRequest } from "../../src/crypto/csr.ts";
import { privateKeyFromPkcs8 } from "../../src/crypto/key.ts";
import { AgentApi, BundleApi, EntryApi, type Service, SvidApi } from "../../src/rpc/protos.ts";
import { RpcServer } from "../../src/rpc/serve.ts";
import {
  bidi,
  type Handlers,
  type ServiceImplementation,
  serverStream,
  service,
  unary,
} from "../../src/rpc/service.ts";
import type { TlsIdentity } from "../../src/rpc/tls.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import { parseSpiffeId } from "../../src/spiffe/id.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "./pki.ts";
import { RecordingLog } from "./recording-log.ts";

type Methods<S> = S extends Service<infer M> ? Partial<Handlers<M, undefined>> : never;

/** What the server does; methods that are left out answer `unimplemented`. */
export interface Script {
  readonly agent?: Methods<typeof AgentApi>;
  readonly bundle?: Methods<typeof BundleApi>;
  readonly entry?: Methods<typeof EntryApi>;
  readonly svid?: Methods<typeof SvidApi>;
}

/** A peer on the wire with answers of the test's choosing, for what a sound server never does. */
export interface ScriptedServer extends AsyncDisposable {
  readonly ca: TestCa;
  readonly address: string;
  readonly port: number;
  /** `<Method> <SPIFFE ID or nobody>` for each call, in order. */
  readonly calls: string[];
  /** What clients see; a new value serves the connections after it. */
  readonly identity: Feed<TlsIdentity>;
  /** Signs the key of a CSR. */
  signCsr(csr: Uint8Array, options: CertificateOptions): Promise<Issued>;
}

export interface ScriptedServerOptions {
  readonly trustDomain: string;
  readonly ca?: TestCa;
  readonly port?: number;
  /** Changes the server's own certificate. */
  readonly certificate?: CertificateOptions;
  readonly maxConnectionAgeMs?: number;
}

export async function startScriptedServer(
  options: ScriptedServerOptions,
  write: (server: Pick<ScriptedServer, "ca" | "signCsr">) => Script,
): Promise<ScriptedServer> {
  const { trustDomain, ca = await createCa({ trustDomain }) } = options;
  const calls: string[] = [];
  const signCsr: ScriptedServer["signCsr"] = async (csr, certificate) => {
    const request = parseCertificateRequest(csr);
    await verifyCertificateRequest(request);
    return ca.issue({ ...certificate, publicKey: request.publicKey });
  };
  const script = write({ ca, signCsr });
  const identity = new Feed(
    tlsIdentity(await ca.issue({ id: `spiffe://${trustDomain}/spire/server`, ...options.certificate })),
  );
  const rpc = new RpcServer<undefined>({
    services: [
      complete(AgentApi, script.agent),
      complete(BundleApi, script.bundle),
      complete(EntryApi, script.entry),
      complete(SvidApi, script.svid),
    ],
    async admit({ method, caller }) {
      calls.push(`${method.slice(method.lastIndexOf("/") + 1)} ${caller.peer?.id ?? "nobody"}`);
      return undefined;
    },
    log: new RecordingLog(),
    clock: systemClock,
    ...(options.maxConnectionAgeMs === undefined ? {} : { maxConnectionAgeMs: options.maxConnectionAgeMs }),
  });
  const verifyPeer = (chain: readonly { readonly uris: readonly string[] }[]) => parseSpiffeId(chain[0]?.uris[0] ?? "");
  const { address, port } = await rpc.listenTls({
    address: "127.0.0.1",
    port: options.port ?? 0,
    identity,
    verifyPeer,
  });
  return { ca, address, port, calls, identity, signCsr, [Symbol.asyncDispose]: () => rpc[Symbol.asyncDispose]() };
}

export function tlsIdentity({ chain, privateKey }: Pick<Issued, "chain" | "privateKey">): TlsIdentity {
  return { chain, privateKey: privateKeyFromPkcs8(privateKey) };
}

/** Methods that are left out answer `unimplemented`. */
export function complete<M extends object>(
  definition: Service<M>,
  given: Partial<Handlers<M, undefined>> = {},
): ServiceImplementation<undefined> {
  const missing = Object.entries(definition.methods())
    .filter(([name]) => !(name in given))
    .map(([name, { requestStream, responseStream }]) => [name, absent(requestStream, responseStream)]);
  return service(definition, { ...Object.fromEntries(missing), ...given } as Handlers<M, undefined>);
}

function absent(requestStream: boolean, responseStream: boolean): unknown {
  const refuse = (): never => {
    throw new Fault("unimplemented", "not in the script");
  };
  if (!responseStream) return unary(async () => refuse());
  // biome-ignore lint/correctness/useYield: it ends before its first message
  const stream = async function* (): AsyncGenerator<never, void, undefined> {
    refuse();
  };
  return requestStream ? bidi(stream) : serverStream(stream);
}
