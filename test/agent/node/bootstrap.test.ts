import { writeFile } from "node:fs/promises";
import { createServer as createPlainServer, type RequestListener } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { bootstrapTrust, bundleOf, type TrustBundleSource } from "../../../agent/node/bootstrap.ts";
import { joinTokenAttestor } from "../../../agent/node/join-token.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { encodeBundleDocument } from "../../../src/spiffe/bundle.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { FakeClock } from "../../support/clock.ts";
import { FakeAgent, hold, refuse } from "../../support/fake-agent.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const HOME = parseTrustDomain("home.test");
const forever = new AbortController().signal;

const ATTEMPT = {
  mode: "bootstrap",
  count: 3,
  startedAt: new Date("2030-01-02T03:04:05.678Z"),
  serverAddress: "server.test",
  serverPort: 8081,
} as const;

const load = (source: TrustBundleSource, clock = systemClock as typeof systemClock) =>
  bootstrapTrust({ source, trustDomain: HOME, clock, attempt: ATTEMPT }, forever);

async function authorities(source: TrustBundleSource): Promise<readonly Buffer[]> {
  const trust = await load(source);
  if (trust.kind !== "bundle") throw new Error("no bundle");
  return trust.bundle.x509Authorities.map(({ asn1 }) => Buffer.from(asn1));
}

describe("the trust bundle from a file", () => {
  test("may be PEM or a SPIFFE document", async () => {
    await using folder = await temporaryDirectory();
    const [a, b] = [await createCa({ trustDomain: "home.test" }), await createCa({ trustDomain: "home.test" })];
    const pem = join(folder.path, "bundle.pem");
    const spiffe = join(folder.path, "bundle.json");
    await writeFile(pem, `a comment\n${a.pem}${b.pem}`);
    await writeFile(spiffe, encodeBundleDocument(bundleOf(HOME, [a.der, b.der])));
    const both = [Buffer.from(a.der), Buffer.from(b.der)];
    expect(await authorities({ kind: "path", path: pem, format: "pem" })).toEqual(both);
    expect(await authorities({ kind: "path", path: spiffe, format: "spiffe" })).toEqual(both);
  });

  test.each([
    { what: "no certificate", content: "nothing here", code: "trust-bundle-empty" },
    { what: "more than 4 MiB", content: "x".repeat(4 * 1024 * 1024 + 1), code: "trust-bundle-unreadable" },
  ])("with $what is refused", async ({ content, code }) => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "bundle.pem");
    await writeFile(path, content);
    expect((await faultFrom(load({ kind: "path", path, format: "pem" }))).code).toBe(code);
  });

  test("that is not there is refused by its name, with the next step", async () => {
    const fault = await faultFrom(load({ kind: "path", path: "/nowhere/bundle.pem", format: "pem" }));
    expect(fault.message).toContain("/nowhere/bundle.pem");
    expect(fault.hint).toContain("bundle show");
  });
});

/** An https server with a certificate of its own authority, for 127.0.0.1. */
async function webServer(answer: RequestListener) {
  const ca = await createCa({ trustDomain: "web.test" });
  const leaf = await ca.issue({ uris: [], ipAddresses: [Buffer.from([127, 0, 0, 1])] });
  const server = createServer({ key: leaf.keyPem, cert: leaf.pem }, answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    ca,
    url: `https://127.0.0.1:${port}/bundle`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

describe("the trust bundle from a URL", () => {
  test("is fetched from a server that the pinned roots vouch for, and from no other", async () => {
    await using folder = await temporaryDirectory();
    const home = await createCa({ trustDomain: "home.test" });
    await using web = await webServer((_request, response) => response.end(home.pem));
    const rootsPath = join(folder.path, "roots.pem");
    await writeFile(rootsPath, web.ca.pem);
    const source = { kind: "url", url: web.url, format: "pem" } as const;
    expect(await authorities({ ...source, rootsPath })).toEqual([Buffer.from(home.der)]);
    const fault = await faultFrom(load(source));
    expect([fault.kind, fault.code]).toEqual(["unavailable", "trust-bundle-download"]);
    await writeFile(rootsPath, home.pem);
    expect((await faultFrom(load({ ...source, rootsPath }))).code).toBe("trust-bundle-download");
  });

  test.each([
    {
      what: "a redirect to http",
      status: 302,
      location: "http://127.0.0.1:1/bundle",
      reason: "http://127.0.0.1:1 is not https",
    },
    { what: "a redirect without end", status: 302, location: "/again", reason: "too many redirects" },
    { what: "an error status", status: 500, location: undefined, reason: "status 500" },
  ])("with $what is refused", async ({ status, location, reason }) => {
    await using folder = await temporaryDirectory();
    await using web = await webServer((_request, response) =>
      response.writeHead(status, location === undefined ? {} : { location }).end(),
    );
    const rootsPath = join(folder.path, "roots.pem");
    await writeFile(rootsPath, web.ca.pem);
    const fault = await faultFrom(load({ kind: "url", url: web.url, format: "pem", rootsPath }));
    expect(fault.message).toContain(reason);
  });

  test("follows a redirect within https", async () => {
    await using folder = await temporaryDirectory();
    const home = await createCa({ trustDomain: "home.test" });
    await using web = await webServer((request, response) => {
      if (request.url === "/bundle") response.writeHead(301, { location: "/moved" }).end();
      else response.end(home.pem);
    });
    const rootsPath = join(folder.path, "roots.pem");
    await writeFile(rootsPath, web.ca.pem);
    expect(await authorities({ kind: "url", url: web.url, format: "pem", rootsPath })).toEqual([Buffer.from(home.der)]);
  });

  test("T-F4 of unbounded size is cut off", async () => {
    await using folder = await temporaryDirectory();
    await using web = await webServer((_request, response) => {
      const pour = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(65536, 65)));
        response.once("drain", pour);
      };
      response.on("error", () => {});
      pour();
    });
    const rootsPath = join(folder.path, "roots.pem");
    await writeFile(rootsPath, web.ca.pem);
    const fault = await faultFrom(load({ kind: "url", url: web.url, format: "pem", rootsPath }));
    expect(fault.message).toContain("larger than");
  });

  test("from a server that never answers is given up", async () => {
    await using folder = await temporaryDirectory();
    const { promise, resolve } = Promise.withResolvers<void>();
    await using web = await webServer(() => resolve());
    const rootsPath = join(folder.path, "roots.pem");
    await writeFile(rootsPath, web.ca.pem);
    const clock = new FakeClock();
    const waiting = faultFrom(
      bootstrapTrust(
        { source: { kind: "url", url: web.url, format: "pem", rootsPath }, trustDomain: HOME, clock, attempt: ATTEMPT },
        forever,
      ),
    );
    await promise;
    await clock.advance(30_000);
    expect((await waiting).message).toContain("no answer within 30 s");
  });

  test("over plain http is refused", async () => {
    const fault = await faultFrom(load({ kind: "url", url: "http://127.0.0.1:1/bundle", format: "pem" }));
    expect(fault.message).toContain("is not https");
  });
});

describe("the trust bundle through a Unix socket", () => {
  async function socketServer(folder: string, answer: RequestListener) {
    const server = createPlainServer(answer);
    const path = join(folder, "bundle.sock");
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return { path, [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())) };
  }

  test("is fetched with what SPIRE's agent tells about the attempt", async () => {
    await using folder = await temporaryDirectory();
    const home = await createCa({ trustDomain: "home.test" });
    const asked: string[] = [];
    await using web = await socketServer(folder.path, (request, response) => {
      asked.push(`${request.headers.host} ${request.url}`);
      response.end(home.pem);
    });
    const source = { kind: "unix_socket", url: "http://local/b?x=1", format: "pem", socketPath: web.path } as const;
    expect(await authorities(source)).toEqual([Buffer.from(home.der)]);
    expect(asked).toEqual([
      "local /b?x=1&spire-attest-mode=bootstrap&spire-connection-attempts=3&spire-attest-start-time=2030-01-02T03%3A04%3A05Z" +
        "&spire-server-address=server.test&spire-server-port=8081&spiffe-trust-domain=home.test",
    ]);
  });

  test.each([302, 404])("with status %s is refused", async (status) => {
    await using folder = await temporaryDirectory();
    await using web = await socketServer(folder.path, (_, response) => {
      response.writeHead(status, { location: "http://local/other" }).end();
    });
    const source = { kind: "unix_socket", url: "http://local/b", format: "pem", socketPath: web.path } as const;
    expect((await faultFrom(load(source))).message).toContain(`status ${status}`);
  });
});

describe("the trust bundle of another Workload API", () => {
  test("is taken when it is there, and of this trust domain alone", async () => {
    const home = await createCa({ trustDomain: "home.test" });
    const other = await createCa({ trustDomain: "other.test" });
    const bundles = { "spiffe://home.test": Buffer.from(home.der), "spiffe://other.test": Buffer.from(other.der) };
    await using both = await FakeAgent.start(systemClock, hold({ bundles }));
    expect(await authorities({ kind: "workload_api", socket: both.socket })).toEqual([Buffer.from(home.der)]);
    const { "spiffe://other.test": foreign } = bundles;
    await using one = await FakeAgent.start(systemClock, hold({ bundles: { "spiffe://other.test": foreign } }));
    expect(await faultFrom(load({ kind: "workload_api", socket: one.socket }))).toMatchObject({
      kind: "unavailable",
      message: expect.stringContaining('did not provide a trust bundle for trust domain "home.test"'),
    });
    await using none = await FakeAgent.start(systemClock, refuse(7, "no identity issued"));
    expect((await faultFrom(load({ kind: "workload_api", socket: none.socket }))).message).toContain(
      "handed out no trust bundle: no identity issued",
    );
  });
});

test("without a source of trust the agent says what to set", async () => {
  const fault = await faultFrom(load({ kind: "none" }));
  expect([fault.kind, fault.code]).toEqual(["invalid", "trust-bundle-missing"]);
  expect(fault.hint).toContain("trust_bundle_path");
});

describe("the join token", () => {
  test("comes from the configuration or from a file, without its line end", async () => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "token");
    await writeFile(path, "from-a-file\n");
    const texts = [joinTokenAttestor({ joinToken: "given" }), joinTokenAttestor({ joinTokenFile: path })].map(
      async (attestor) => Buffer.from(await attestor.evidence(forever)).toString(),
    );
    expect(await Promise.all(texts)).toEqual(["given", "from-a-file"]);
  });

  test.each([
    { what: "nowhere", source: {} },
    { what: "an empty text", source: { joinToken: "" } },
    { what: "a file that is not there", source: { joinTokenFile: "/nowhere/token" } },
  ])("from $what is refused with the next step", async ({ source }) => {
    const fault = await faultFrom(joinTokenAttestor(source).evidence(forever));
    expect([fault.kind, fault.code]).toEqual(["invalid", "join-token-missing"]);
    expect(fault.hint).toContain("token generate");
  });

  test("answers no challenge", async () => {
    const fault = await faultFrom(joinTokenAttestor({ joinToken: "given" }).respond(Buffer.from("?"), forever));
    expect(fault.code).toBe("attestation-unexpected-challenge");
  });
});
