import { expect } from "vitest";
import { fetchJwtSvid, validateJwtSvid } from "../../src/client/jwt.ts";
import { WitSource } from "../../src/client/wit-source.ts";
import type { X509Context } from "../../src/client/x509-context.ts";
import { parseJws } from "../../src/crypto/jws.ts";
import type { AuthorityState__Output as AuthorityState } from "../../src/rpc/gen/spire/api/server/localauthority/v1/AuthorityState.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { validateWitSvid } from "../../src/spiffe/wit-svid.ts";
import type { TestAgent } from "./agent.ts";
import { eventually } from "./eventually.ts";
import { openMesh } from "./mesh.ts";
import type { TestServer } from "./server.ts";

/** Turns on WIT-SVIDs, in servers and agents. */
export const WIT = { feature_flags: ["wit-svid"] } as const;

const CLIENTS = 50;

/** Clients on streams do mutual TLS with each other before, during and after the work, and none may fail. */
export async function whileClientsMeet(sockets: readonly string[], work: () => Promise<void>): Promise<void> {
  await using mesh = await openMesh(sockets, CLIENTS);
  await mesh.rounds(1);
  await work();
  await mesh.rounds(2);
  expect(mesh.failures).toEqual([]);
  expect(mesh.handshakes).toBeGreaterThanOrEqual(3 * CLIENTS);
}

/** Hex subject key identifier of the root of an X.509 authority: its own, when no other signed it. */
export function rootOf(state: AuthorityState | null): string {
  return state?.upstream_authority_subject_key_id || (state?.authority_id ?? "");
}

/** Hex subject key identifier of the root that the default identity chains to. */
export function rootOfSvid({ svids }: Pick<X509Context, "svids">): string {
  return svids[0]?.chain.at(-1)?.authorityKeyId ?? "";
}

type LocalAuthority = TestServer["admin"]["localAuthority"];

interface Prepared {
  readonly prepared_authority: AuthorityState | null;
}

/** What differs between the kinds of token when their key is changed. */
const TOKENS = {
  jwt: {
    state: (api: LocalAuthority) => api.GetJWTAuthorityState({}),
    prepare: (api: LocalAuthority): Promise<Prepared> => api.PrepareJWTAuthority({}),
    activate: (api: LocalAuthority, authority_id: string) => api.ActivateJWTAuthority({ authority_id }),
    taint: (api: LocalAuthority, authority_id: string) => api.TaintJWTAuthority({ authority_id }),
    revoke: (api: LocalAuthority, authority_id: string) => api.RevokeJWTAuthority({ authority_id }),
    client: async (socket: string) => ({
      /** The token of this moment and who it is for, once that is proven. */
      async use() {
        const { token } = await fetchJwtSvid("reports", { socket });
        return { token, id: (await validateJwtSvid({ socket, audience: "reports", token })).id };
      },
      async [Symbol.asyncDispose]() {},
    }),
  },
  wit: {
    state: (api: LocalAuthority) => api.GetWITAuthorityState({}),
    prepare: (api: LocalAuthority): Promise<Prepared> => api.PrepareWITAuthority({}),
    activate: (api: LocalAuthority, authority_id: string) => api.ActivateWITAuthority({ authority_id }),
    taint: (api: LocalAuthority, authority_id: string) => api.TaintWITAuthority({ authority_id }),
    revoke: (api: LocalAuthority, authority_id: string) => api.RevokeWITAuthority({ authority_id }),
    client: async (socket: string) => {
      const source = await WitSource.open({ socket });
      return {
        async use() {
          const { token } = source.svid;
          const authorities = source.bundle(parseTrustDomain("example.org"))?.authorities ?? [];
          const { id } = await validateWitSvid({ token, authorities: () => authorities, at: systemClock.now() });
          return { token, id };
        },
        [Symbol.asyncDispose]: () => source[Symbol.asyncDispose](),
      };
    },
  },
} as const;

export type TokenKind = keyof typeof TOKENS;

interface Parties {
  readonly server: TestServer;
  readonly agent: TestAgent;
  /** The ID of its entry. */
  readonly id: string;
}

/** Prepares, activates and taints while a workload uses tokens all the time: each holds, and the tainted key's end. */
export async function changeTokenKey(kind: TokenKind, { server, agent, id }: Parties): Promise<void> {
  const { state, prepare, activate, taint, revoke, client } = TOKENS[kind];
  const api = server.admin.localAuthority;
  const old = (await state(api)).active?.authority_id ?? "";
  await using workload = await client(agent.socket);
  const kids: string[] = [];
  const stop = new AbortController();
  const using = (async () => {
    while (!stop.signal.aborted) {
      const used = await workload.use();
      kids.push(String(parseJws(used.token).header["kid"]));
      expect(used.id).toBe(id);
      await systemClock.sleep(20);
    }
  })();
  const failed = using.catch((error: unknown) => error);
  await eventually("tokens under the first key", () => kids.includes(old));
  const prepared = (await prepare(api)).prepared_authority?.authority_id ?? "";
  await activate(api, prepared);
  await taint(api, old);
  await eventually("tokens under the second key", () => kids.at(-1) === prepared);
  await expect(revoke(api, old)).rejects.toThrow("still in use by");
  const seen = kids.length;
  await eventually("many more tokens", () => kids.length > seen + 10);
  expect(new Set(kids.slice(seen))).toEqual(new Set([prepared]));
  stop.abort();
  expect(await failed).toBeUndefined();
}
