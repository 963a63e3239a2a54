import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { X509Context } from "../../src/client/index.ts";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { createCa } from "../support/pki.ts";
import { changeTokenKey, rootOf, rootOfSvid, WIT, whileClientsMeet } from "../support/rotation.ts";
import { startServer, type TestServer } from "../support/server.ts";

const ID = "spiffe://example.org/w";

function rootsIn(bundles: X509Context["bundles"]): number {
  return bundles.get(parseTrustDomain("example.org"))?.authorities.length ?? 0;
}

type Api = TestServer["admin"]["localAuthority"];

interface Setup {
  readonly name: string;
  /** Makes what the next authority is signed by. */
  renewRoot(folder: string): Promise<void>;
  upstream(folder: string): Readonly<Record<string, object>>;
  taint(api: Api, root: string): Promise<unknown>;
  revoke(api: Api, root: string): Promise<unknown>;
}

const SETUPS: readonly Setup[] = [
  {
    name: "self-signed",
    renewRoot: async () => {},
    upstream: () => ({}),
    taint: (api, authority_id) => api.TaintX509Authority({ authority_id }),
    revoke: (api, authority_id) => api.RevokeX509Authority({ authority_id }),
  },
  {
    name: "upstream disk",
    async renewRoot(folder) {
      const { pem, keyPem } = await createCa({ uris: [], subject: { organization: "Corp" } });
      await Promise.all([writeFile(join(folder, "ca.pem"), pem), writeFile(join(folder, "ca.key"), keyPem)]);
    },
    upstream: (folder) => ({
      disk: { cert_file_path: join(folder, "ca.pem"), key_file_path: join(folder, "ca.key") },
    }),
    taint: (api, subject_key_id) => api.TaintX509UpstreamAuthority({ subject_key_id }),
    revoke: (api, subject_key_id) => api.RevokeX509UpstreamAuthority({ subject_key_id }),
  },
];

describe.each(SETUPS)("$name", ({ renewRoot, upstream, taint, revoke }) => {
  let folder: string;
  let server: TestServer;
  let agent: TestAgent;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "steeple-roots-"));
    await renewRoot(folder);
    const lifetimes = { ca_ttl: "3m", default_x509_svid_ttl: "90s" };
    server = await startServer({ server: { ...lifetimes, experimental: WIT }, upstream: upstream(folder) });
    agent = await startAgent(server, { agent: { experimental: { sync_interval: "1s", ...WIT } } });
    await server.createEntry({ spiffeId: ID, parentId: agent.id(), selectors: [OWN_SELECTOR] });
  });
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  /** Until the old root has left the bundle, which is not before nothing under it is in use. */
  async function changeRoot(): Promise<void> {
    const api = server.admin.localAuthority;
    const old = rootOf((await api.GetX509AuthorityState({})).active);
    await using watched = agent.watch();
    await watched.until("an SVID under the first root", (context) => rootOfSvid(context) === old);
    await renewRoot(folder);
    const { prepared_authority: prepared } = await api.PrepareX509Authority({});
    const next = rootOf(prepared);
    await watched.until("the next root is in the bundle", ({ bundles }) => rootsIn(bundles) === 2);
    await api.ActivateX509Authority({ authority_id: prepared?.authority_id ?? "" });
    await taint(api, old);
    await watched.until("an SVID under the second root", (context) => rootOfSvid(context) === next);
    await agent.untilLogged("New tainted X.509 authorities found", { subject_key_ids: old });
    await agent.untilLogged("Scheduled rotation for SVID entries due to tainted X.509 authorities", { count: 1 });
    await agent.untilLogged("Agent SVID is tainted by a root authority, forcing rotation");
    expect(server.logged("Successfully rotated X.509 CA", { trust_domain_id: "spiffe://example.org" })).toHaveLength(2);
    const revoked = () => revoke(api, old).then(Boolean, () => false);
    await eventually("nothing under the old root is in use", revoked);
    await watched.until("the old root is gone", (context) => {
      return rootsIn(context.bundles) === 1 && rootOfSvid(context) === next;
    });
    const { x509_authorities } = await server.admin.bundle.GetBundle({});
    expect(x509_authorities.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId)).toEqual([next]);
  }

  test("T-J6 a tainted root, JWT key and WIT key: agent and workload replace what they signed, no token fails to validate, and of 50 clients none fails a handshake", () =>
    whileClientsMeet([agent.socket], async () => {
      const parties = { server, agent, id: ID };
      await Promise.all([changeRoot(), changeTokenKey("jwt", parties), changeTokenKey("wit", parties)]);
    }));
});
