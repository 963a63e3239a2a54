import { once } from "node:events";
import { connect as tlsConnect } from "node:tls";
import { encodePem } from "../../../src/crypto/pem.ts";
import type { TlsIdentity } from "../../../src/rpc/tls.ts";
import type { Issued } from "../../support/pki.ts";
import type { TestServer } from "../../support/server.ts";

/** Shows the first one and holds its key; the others follow it. */
export function identityOf(...[leaf, ...above]: readonly [Issued, ...Issued[]]): TlsIdentity {
  return { chain: [leaf.der, ...above.map(({ der }) => der)], privateKey: leaf.signer.privateKey };
}

/** GetBundle, which anyone may call, and so fails only when the connection does. */
export async function connects(server: TestServer, identity: TlsIdentity): Promise<boolean> {
  using apis = server.connect(identity);
  return await apis.bundle.GetBundle({}, { deadlineMs: 5_000 }).then(
    () => true,
    () => false,
  );
}

interface Connected {
  readonly reused: boolean;
  readonly protocol: string | null;
  /** What the server would have to recognise. */
  readonly session: Buffer | undefined;
}

/** One connection that lasts until its handshake is over and any ticket has had the time to come. */
export async function connectOnce(
  server: TestServer,
  identity: TlsIdentity,
  version: "TLSv1.2" | "TLSv1.3",
  session?: Buffer,
): Promise<Connected> {
  const socket = tlsConnect({
    host: "127.0.0.1",
    port: server.port,
    ALPNProtocols: ["h2"],
    rejectUnauthorized: false,
    minVersion: version,
    maxVersion: version,
    cert: identity.chain.map((der) => encodePem("CERTIFICATE", der)).join(""),
    key: identity.privateKey.export({ type: "pkcs8", format: "pem" }),
    ...(session === undefined ? {} : { session }),
  });
  let ticket: Buffer | undefined;
  socket.on("session", (made: Buffer) => {
    ticket = made;
  });
  // The server speaks first over HTTP/2: its settings come after any ticket.
  await once(socket, "data");
  const seen = {
    reused: socket.isSessionReused(),
    protocol: socket.getProtocol(),
    session: ticket ?? socket.getSession(),
  };
  socket.destroy();
  return seen;
}

/** One handshake; resolves with how it ended once the server has closed the connection, or "open" when it stays so. */
export function handshake(
  server: TestServer,
  identity: TlsIdentity | undefined,
  more: { readonly minVersion?: "TLSv1" | "TLSv1.1"; readonly maxVersion?: "TLSv1" | "TLSv1.1" } = {},
): Promise<string> {
  const pem = (der: Uint8Array): string => encodePem("CERTIFICATE", der);
  const shown =
    identity === undefined
      ? {}
      : { cert: identity.chain.map(pem).join(""), key: identity.privateKey.export({ type: "pkcs8", format: "pem" }) };
  return new Promise((done) => {
    const open = setTimeout(() => {
      done("open");
      socket.destroy();
    }, 3000);
    const socket = tlsConnect({
      host: "127.0.0.1",
      port: server.port,
      ALPNProtocols: ["h2"],
      rejectUnauthorized: false,
      ciphers: "DEFAULT@SECLEVEL=0",
      ...shown,
      ...more,
    });
    socket.on("error", (error) => done(`error ${error.message}`));
    socket.on("close", () => {
      clearTimeout(open);
      done("closed");
    });
    socket.on("data", () => {});
  });
}
