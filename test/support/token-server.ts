import type { JwsAlgorithm } from "../../src/crypto/jws.ts";
import { localSigner } from "../../src/crypto/key.ts";
import type { Entry } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import { bidi, unary } from "../../src/rpc/service.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { parseSpiffeId, pathOf, type SpiffeId } from "../../src/spiffe/id.ts";
import { type JwtSvidTemplate, signJwtSvid } from "../../src/spiffe/jwt-svid.ts";
import { numericDate, type TokenKey } from "../../src/spiffe/token.ts";
import { signWitSvid, type WitSvidTemplate } from "../../src/spiffe/wit-svid.ts";
import { eventually } from "./eventually.ts";
import { createCa } from "./pki.ts";
import { type Script, type ScriptedServer, startScriptedServer } from "./scripted-server.ts";
import { type EntryInput, entryMessage } from "./server.ts";
import { type TestKey, testKey } from "./tokens.ts";

const TRUST_DOMAIN = "example.org";
/** Seconds. */
const LIFETIME = 300;
const AGENT_PATH = "/spire/agent/test/1";

/** Below the agent. */
export type AgentEntry = Omit<EntryInput, "parentId">;

export interface TestTokenServer extends AsyncDisposable {
  readonly trustDomain: string;
  readonly address: "127.0.0.1";
  readonly port: number;
  readonly admin: { readonly bundle: { GetBundle(request: object): Promise<OwnBundle> } };
  createToken(): Promise<string>;
  readonly state: TokenState;
  /** Entries from now on, oldest first; each call makes new versions of them. */
  entries(...entries: readonly AgentEntry[]): void;
  /** Resolves when the agent has taken what is here now. */
  synced(): Promise<void>;
}

interface OwnBundle {
  readonly x509_authorities: readonly { readonly asn1: Buffer }[];
}

/** What the server does; the test changes it as it goes. */
export interface TokenState {
  entries: Entry[];
  /** All are in the bundle; the first one signs. */
  keys: TestKey[];
  /** As `keys`, for WIT-SVIDs. */
  witKeys: TestKey[];
  tainted: Set<string>;
  readonly federated: Map<string, TestKey[]>;
  /** Then NewJWTSVID answers nothing else. */
  away: boolean;
  /** Changes what is signed. */
  alter: (template: JwtSvidTemplate) => JwtSvidTemplate;
  syncs: number;
  /** Changes what BatchNewWITSVID signs. */
  alterWit: (template: WitSvidTemplate) => WitSvidTemplate;
  /** Every NewJWTSVID: entry and audience. */
  readonly asked: { readonly entry: string; readonly audience: readonly string[] }[];
}

/** A SPIRE server on the wire, with entries, keys and tokens of the test's choosing. */
export async function startTokenServer(): Promise<TestTokenServer> {
  const ca = await createCa({ trustDomain: TRUST_DOMAIN });
  const state: TokenState = {
    ...{
      entries: [],
      keys: [testKey("ja1")],
      witKeys: [testKey("wa1")],
      tainted: new Set(),
      federated: new Map(),
      away: false,
    },
    alter: (template) => template,
    alterWit: (template) => template,
    syncs: 0,
    asked: [],
  };
  let version = 0;
  const server = await startScriptedServer({ trustDomain: TRUST_DOMAIN, ca }, (parts) => script(parts, state));
  return {
    ...{ trustDomain: TRUST_DOMAIN, address: "127.0.0.1" as const, port: server.port, state },
    admin: { bundle: { GetBundle: async () => ({ x509_authorities: [{ asn1: Buffer.from(ca.der) }] }) } },
    createToken: async () => "any",
    entries(...entries) {
      version += 1;
      const parentId = `spiffe://${TRUST_DOMAIN}${AGENT_PATH}`;
      state.entries = entries.map((entry, at) => ({
        ...entryMessage({ ...entry, parentId }),
        created_at: at + 1,
        revision_number: version,
      }));
    },
    // The second sync from now begins when the first one has been taken.
    async synced() {
      const before = state.syncs;
      await eventually("two syncs", () => state.syncs >= before + 2);
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

type Parts = Pick<ScriptedServer, "ca" | "signCsr">;

function script(parts: Parts, state: TokenState): Script {
  return { agent: agentOf(parts), ...bundleAndEntries(parts, state), svid: signing(parts, state) };
}

function agentOf(parts: Parts): NonNullable<Script["agent"]> {
  return {
    AttestAgent: bidi(async function* (requests) {
      for await (const { params } of requests) {
        const id = parseSpiffeId(`spiffe://${TRUST_DOMAIN}${AGENT_PATH}`);
        const svid = await x509(parts, params?.params?.csr ?? Buffer.alloc(0), id);
        yield { result: { svid, reattestable: true } };
        return;
      }
    }),
    PostStatus: unary(async () => ({})),
  };
}

function bundleAndEntries({ ca }: Parts, state: TokenState): Pick<Script, "bundle" | "entry"> {
  const authority = ({ keyId, authority: { publicKey } }: TestKey) => ({
    public_key: Buffer.from(publicKey),
    key_id: keyId,
    tainted: state.tainted.has(keyId),
  });
  return {
    bundle: {
      GetBundle: unary(async () => ({
        trust_domain: TRUST_DOMAIN,
        x509_authorities: [{ asn1: Buffer.from(ca.der) }],
        jwt_authorities: state.keys.map(authority),
        wit_authorities: state.witKeys.map(authority),
      })),
      GetFederatedBundle: unary(async ({ trust_domain }) => {
        const keys = state.federated.get(trust_domain);
        if (keys === undefined) throw new Fault("not_found", "bundle not found");
        return { trust_domain, jwt_authorities: keys.map(authority) };
      }),
    },
    entry: {
      SyncAuthorizedEntries: bidi(async function* (requests) {
        state.syncs += 1;
        for await (const _ of requests) {
          yield { entries: state.entries };
          return;
        }
      }),
    },
  };
}

function signing(parts: Parts, state: TokenState): NonNullable<Script["svid"]> {
  return {
    BatchNewX509SVID: unary(async ({ params }) => {
      const results = params.map(async ({ entry_id, csr }) => ({
        status: { code: 0 },
        svid: await x509(parts, csr, idOf(state, entry_id)),
      }));
      return { results: await Promise.all(results) };
    }),
    BatchNewWITSVID: unary(async ({ params }) => {
      if (state.away) throw new Fault("unavailable", "the server is away");
      const results = params.map(async ({ entry_id, public_key, signing_algorithm }) => {
        const algorithm = signing_algorithm as JwsAlgorithm;
        const times = timesFromNow();
        const template = state.alterWit({ subject: idOf(state, entry_id), publicKey: public_key, algorithm, ...times });
        const token = await signWitSvid(template, keyOf(state.witKeys));
        return { status: { code: 0 }, svid: tokenMessage(token, template) };
      });
      return { results: await Promise.all(results) };
    }),
    NewJWTSVID: unary(async ({ entry_id, audience }) => {
      state.asked.push({ entry: entry_id, audience });
      if (state.away) throw new Fault("unavailable", "the server is away");
      const { additional_attributes } = entryOf(state, entry_id);
      const jti = additional_attributes?.jwt_svid_include_jti ? { jti: `jti-${state.asked.length}` } : {};
      const template = state.alter({ subject: idOf(state, entry_id), audience, ...timesFromNow(), ...jti });
      return { svid: tokenMessage(await signJwtSvid(template, keyOf(state.keys)), template) };
    }),
  };
}

async function x509({ signCsr }: Parts, csr: Uint8Array, id: SpiffeId) {
  const { chain, certificate } = await signCsr(csr, { id });
  return {
    cert_chain: chain.map((der) => Buffer.from(der)),
    id: { trust_domain: TRUST_DOMAIN, path: pathOf(id) },
    expires_at: numericDate(certificate.notAfter),
  };
}

function entryOf(state: TokenState, entryId: string): Entry {
  const entry = state.entries.find(({ id }) => id === entryId);
  if (entry === undefined) throw new Fault("not_found", "entry not found or not authorized");
  return entry;
}

function idOf(state: TokenState, entryId: string): SpiffeId {
  return parseSpiffeId(`spiffe://${TRUST_DOMAIN}${entryOf(state, entryId).spiffe_id?.path}`);
}

function timesFromNow(): { readonly issuedAt: Date; readonly expiresAt: Date } {
  const issued = numericDate(systemClock.now());
  return { issuedAt: new Date(issued * 1000), expiresAt: new Date((issued + LIFETIME) * 1000) };
}

function keyOf([key]: readonly TestKey[]): TokenKey {
  if (key === undefined) throw new Fault("internal", "no key");
  return { keyId: key.keyId, signer: localSigner(key.privateKey) };
}

function tokenMessage(
  token: string,
  { subject, issuedAt, expiresAt }: Pick<JwtSvidTemplate, "subject" | "issuedAt" | "expiresAt">,
) {
  return {
    token,
    id: { trust_domain: TRUST_DOMAIN, path: pathOf(subject) },
    issued_at: numericDate(issuedAt),
    expires_at: numericDate(expiresAt),
  };
}
