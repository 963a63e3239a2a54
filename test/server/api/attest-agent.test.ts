import { generateKeyPairSync } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey, localSigner } from "../../../src/crypto/key.ts";
import type { AttestAgentRequest } from "../../../src/rpc/gen/spire/api/server/agent/v1/AttestAgentRequest.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import {
  type Apis,
  attestWithToken,
  collect,
  from,
  protoId,
  startServer,
  type TestServer,
  testSvid,
} from "../../support/server.ts";

let server: TestServer;
let anonymous: Apis;
let goodCsr: Uint8Array;
beforeAll(async () => {
  server = await startServer();
  anonymous = server.connect();
  goodCsr = await createCertificateRequest({ signer: await generateKey("ec-p256") });
});
afterAll(async () => {
  anonymous[Symbol.dispose]();
  await server[Symbol.asyncDispose]();
});

type Params = NonNullable<AttestAgentRequest["params"]>;

function attempt(params: Params | null, apis: Apis = anonymous) {
  return collect(apis.agent.AttestAgent(from([{ params }]), { deadlineMs: 20_000 }));
}

const bytes = (text: string): Buffer => Buffer.from(text);

describe("AttestAgent by join token", () => {
  test("gives an agent SVID with the key of the CSR, and says that it cannot attest again", async () => {
    const token = await server.createToken();
    const signer = await generateKey("ec-p384");
    const csr = await createCertificateRequest({
      signer,
      uris: ["spiffe://example.org/spire/server"],
      dnsNames: ["evil.test"],
      subject: { commonName: "evil" },
    });
    const responses = await attempt({ data: { type: "join_token", payload: bytes(token) }, params: { csr } });
    expect(responses).toHaveLength(1);
    const { svid, reattestable } = responses[0]?.result ?? {};
    const id = `spiffe://example.org/spire/agent/join_token/${token}`;
    expect(reattestable).toBe(false);
    expect(svid?.id).toEqual(protoId(id));
    const { chain } = testSvid(signer, svid?.cert_chain ?? []);
    expect(chain).toHaveLength(1);
    expect(chain[0]).toMatchObject({ uris: [id], dnsNames: [], isCa: false });
    expect(Buffer.compare(chain[0]?.publicKey ?? new Uint8Array(), signer.publicKey)).toBe(0);
    expect(svid?.expires_at).toBe(String(Math.floor((chain[0]?.notAfter.getTime() ?? 0) / 1000)));
    const record = await server.untilLogged("Agent attestation request completed", { agent_id: id });
    expect(record).toMatchObject({
      level: "info",
      node_attestor_type: "join_token",
      address: "127.0.0.1",
      method: "AttestAgent",
      subsystem_name: "api",
    });
  });

  test.each([
    { what: "no params", params: null, message: "malformed param: missing params" },
    {
      what: "no attestation data",
      params: { params: { csr: bytes("x") } },
      message: "malformed param: missing attestation data",
    },
    {
      what: "no SVID parameters",
      params: { data: { type: "join_token", payload: bytes("x") } },
      message: "malformed param: missing X509-SVID parameters",
    },
    {
      what: "no CSR",
      params: { data: { type: "join_token", payload: bytes("x") }, params: {} },
      message: "malformed param: missing CSR",
    },
    {
      what: "no type",
      params: { data: { payload: bytes("x") }, params: { csr: bytes("x") } },
      message: "malformed param: missing attestation data type",
    },
    {
      what: "no payload",
      params: { data: { type: "join_token" }, params: { csr: bytes("x") } },
      message: "malformed param: missing attestation data payload",
    },
    {
      what: "a payload above 512 KiB",
      params: { data: { type: "join_token", payload: Buffer.alloc((1 << 19) + 1, 0x61) }, params: { csr: bytes("x") } },
      message: "malformed param: attestation data payload is too large",
    },
  ] satisfies readonly { what: string; params: Params | null; message: string }[])(
    "refuses $what",
    async ({ params, message }) => {
      expect(await faultFrom(attempt(params))).toMatchObject({ kind: "invalid", message });
    },
  );

  test("refuses a stream that ends before its first message", async () => {
    expect(await faultFrom(collect(anonymous.agent.AttestAgent(from([]))))).toMatchObject({
      kind: "invalid",
      message: "failed to receive request from stream: EOF",
    });
  });

  test("refuses a challenge response where the parameters belong", async () => {
    const answer = collect(anonymous.agent.AttestAgent(from([{ challenge_response: bytes("x") }])));
    expect(await faultFrom(answer)).toMatchObject({ kind: "invalid", message: "malformed param: missing params" });
  });

  test("names an attestor that does not exist, cut to a bearable length", async () => {
    const fault = await faultFrom(attempt({ data: { type: "tpm", payload: bytes("x") }, params: { csr: goodCsr } }));
    expect(fault).toMatchObject({
      kind: "precondition",
      message: 'error getting node attestor: could not find node attestor type "tpm"',
    });
    const long = await faultFrom(
      attempt({ data: { type: "x".repeat(100_000), payload: bytes("x") }, params: { csr: goodCsr } }),
    );
    expect(long.kind).toBe("precondition");
    expect(long.message.length).toBeLessThan(200);
  });

  test("a token works once", async () => {
    const token = await server.createToken();
    await attestWithToken(anonymous, token);
    expect(await faultFrom(attestWithToken(anonymous, token))).toMatchObject({
      kind: "invalid",
      message: "failed to attest: join token does not exist or has already been used",
    });
  });

  test.each([
    { what: "in upper case", change: (token: string) => token.toUpperCase() },
    { what: "with a space behind it", change: (token: string) => `${token} ` },
    { what: "with a NUL behind it", change: (token: string) => `${token}\u0000` },
    { what: "with a line end", change: (token: string) => `${token}\n` },
    { what: "without its last character", change: (token: string) => token.slice(0, -1) },
    { what: "as a pattern", change: () => "%" },
    { what: "as a path", change: (token: string) => `./${token}` },
  ])("T-S3 a token $what is another token", async ({ change }) => {
    const token = await server.createToken({ token: `abc-${Math.trunc(performance.now() * 1000)}-def` });
    expect(await faultFrom(attestWithToken(anonymous, change(token)))).toMatchObject({
      kind: "invalid",
      message: "failed to attest: join token does not exist or has already been used",
    });
    expect((await attestWithToken(anonymous, token)).id).toBe(`spiffe://example.org/spire/agent/join_token/${token}`);
  });

  test("a token that has ended is refused, and used up", async () => {
    const { value, expires_at } = await server.admin.agent.CreateJoinToken({ ttl: 1 });
    await eventually("the token ends", () => Date.now() > (Number(expires_at) + 1) * 1000);
    expect(await faultFrom(attestWithToken(anonymous, value))).toMatchObject({
      kind: "invalid",
      message: "join token expired",
    });
    expect(await faultFrom(attestWithToken(anonymous, value))).toMatchObject({
      kind: "invalid",
      message: expect.stringContaining("already been used"),
    });
  });

  describe("a CSR that cannot be signed uses up no token", () => {
    const tampered = async (): Promise<Uint8Array> => {
      const csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
      csr[csr.length - 1] = (csr.at(-1) ?? 0) ^ 1;
      return csr;
    };
    const weak = async (): Promise<Uint8Array> => {
      const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 1024 });
      const { signer } = {
        signer: {
          ...localSigner(generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey),
          publicKey: publicKey.export({ type: "spki", format: "der" }),
        },
      };
      expect(privateKey.asymmetricKeyDetails?.modulusLength).toBe(1024);
      return createCertificateRequest({ signer });
    };
    test.each([
      { what: "no DER", csr: async () => bytes("not DER"), message: /^failed to parse CSR: / },
      {
        what: "trailing bytes",
        csr: async () => Buffer.concat([goodCsr, bytes("x")]),
        message: /^failed to parse CSR: /,
      },
      {
        what: "17 KiB",
        csr: async () => Buffer.alloc(17 * 1024, 0x30),
        message: /^failed to parse CSR: CSR is larger than 16 KiB/,
      },
      { what: "a signature by another key", csr: tampered, message: /^invalid CSR signature/ },
      { what: "T-X6 a weak key", csr: weak, message: /^failed to parse CSR: / },
    ])("$what", async ({ csr, message }) => {
      const token = await server.createToken();
      const params = { data: { type: "join_token", payload: bytes(token) }, params: { csr: await csr() } };
      expect(await faultFrom(attempt(params))).toMatchObject({
        kind: "invalid",
        message: expect.stringMatching(message),
      });
      expect(
        await faultFrom(
          server.admin.agent.GetAgent({ id: protoId(`spiffe://example.org/spire/agent/join_token/${token}`) }),
        ),
      ).toMatchObject({ kind: "not_found" });
      expect((await attestWithToken(anonymous, token)).id).toContain(token);
    });
  });

  test("an agent with a certificate may attest too, and is judged by its token alone", async () => {
    const first = await server.attest();
    using known = server.connect(first.tls);
    const token = await server.createToken();
    expect((await attestWithToken(known, token)).id).toContain(token);
  });
});

describe("the limit of one attestation per second and address", () => {
  test("makes the second wait its turn and refuses nobody; the local socket is exempt", async () => {
    await using limited = await startServer({ server: { ratelimit: { attestation: true } } });
    const tokens = await Promise.all([1, 2, 3, 4].map(() => limited.createToken()));
    using peer = limited.connect();
    await peer.bundle.GetBundle({});
    const started = performance.now();
    await Promise.all(tokens.slice(0, 2).map((token) => attestWithToken(peer, token)));
    expect(performance.now() - started).toBeGreaterThan(900);
    const local = performance.now();
    await Promise.all(tokens.slice(2).map((token) => attestWithToken(limited.admin, token)));
    expect(performance.now() - local).toBeLessThan(900);
  });
});
