import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { openStore } from "../../server/store/database.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, restartAgent, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { createCa } from "../support/pki.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { freePort, type TestServerOptions } from "../support/server-process.ts";
import { temporaryDirectory } from "../support/workload.ts";

const HOME = parseTrustDomain("example.org");
const FOLLOWED = "Trust Bundle was out of date; its authorities vouch for the present one";
const NOT_FOLLOWED = "Trust Bundle and Server don't agree, and no authority of the bundle vouches for the server's";

/** A server and a node that can attest again and again, and nothing that would tell the agent a new bundle. */
async function scene(folder: string) {
  const ca = await createCa({ uris: [] });
  const leaf = await ca.issue({ uris: [], subject: { commonName: "n" } });
  const paths = { ca: join(folder, "ca.pem"), key: join(folder, "n.key"), crt: join(folder, "n.crt") };
  await Promise.all([writeFile(paths.ca, ca.pem), writeFile(paths.key, leaf.keyPem), writeFile(paths.crt, leaf.pem)]);
  const server: TestServerOptions = {
    folder,
    startMs: 120_000,
    server: { bind_port: await freePort() },
    nodeAttestors: { x509pop: { ca_bundle_path: paths.ca } },
  };
  const nodeAttestor = { x509pop: { private_key_path: paths.key, certificate_path: paths.crt } };
  return { server, nodeAttestor };
}

/** The authority that signs, hex. */
async function activeAuthority({ admin }: TestServer): Promise<string> {
  return (await admin.localAuthority.GetX509AuthorityState({})).active?.authority_id ?? "";
}

/** The next authority takes over; the old one's id. */
async function rotate(server: TestServer): Promise<string> {
  const { localAuthority } = server.admin;
  const old = await activeAuthority(server);
  const { prepared_authority } = await localAuthority.PrepareX509Authority({});
  await localAuthority.ActivateX509Authority({ authority_id: prepared_authority?.authority_id ?? "" });
  return old;
}

/** As the janitor leaves the bundle once the authorities have ended. */
async function forgetAuthorities(folder: string, ids: readonly string[]): Promise<void> {
  const directory = join(folder, "data", "store");
  await using store = await openStore({ kind: "embedded", directory }, { log: new RecordingLog(), clock: systemClock });
  await store.bundles.change(HOME, (current) => {
    if (current === undefined) throw new Error("no bundle");
    const left = current.x509Authorities.filter(({ asn1 }) => !ids.includes(parseCertificate(asn1).subjectKeyId));
    return { ...current, x509Authorities: left };
  });
}

test("T-N12 an agent that was off while the authorities rotated twice completely comes back without any configuration", {
  timeout: 300_000,
}, async () => {
  await using folder = await temporaryDirectory();
  const { server: options, nodeAttestor } = await scene(folder.path);
  await using away = await temporaryDirectory();
  let server = await startServer(options);
  const agent = await startAgent(server, { folder: away.path, nodeAttestor });
  await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id(), selectors: [OWN_SELECTOR] });
  await eventually("an identity", async () => (await agent.fetch()).svids.length === 1);
  await agent.stop();
  const gone = [await rotate(server), await rotate(server)];
  await server[Symbol.asyncDispose]();
  await forgetAuthorities(folder.path, gone);
  server = await startServer(options);
  await using last = server;
  const { x509_authorities } = await last.admin.bundle.GetBundle({});
  expect(x509_authorities.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId)).toEqual([
    await activeAuthority(last),
  ]);
  await using again = await restartAgent(away.path);
  await again.untilLogged(FOLLOWED);
  await again.untilLogged("Successfully reattested node");
  const { svids } = await eventually("an identity", async () => {
    const context = await again.fetch();
    return context.svids.length === 1 && context;
  });
  expect(svids[0]?.chain.at(-1)?.authorityKeyId).toBe(await activeAuthority(last));
  await again.stop();
  await using once = await restartAgent(away.path);
  expect(once.logged(FOLLOWED)).toEqual([]);
});

test("T-N12 a revoked authority vouches for nobody: the agent that knows no other stays away", {
  timeout: 300_000,
}, async () => {
  await using folder = await temporaryDirectory();
  const { server: options, nodeAttestor } = await scene(folder.path);
  await using away = await temporaryDirectory();
  await using server = await startServer(options);
  const agent = await startAgent(server, { folder: away.path, nodeAttestor });
  await agent.stop();
  const [first] = [await rotate(server)];
  const { localAuthority } = server.admin;
  await localAuthority.TaintX509Authority({ authority_id: first });
  await localAuthority.RevokeX509Authority({ authority_id: first }, { metadata: { "steeple-force": "true" } });
  await using again = await restartAgent(away.path, { anyState: true });
  await again.untilLogged(NOT_FOLLOWED);
  expect(again.logged(FOLLOWED)).toEqual([]);
});
