import { lookup } from "node:dns/promises";
import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname } from "node:os";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { HttpChallengeAttestor } from "../../../server/attest/http-challenge.ts";
import { challengePath, readChallenge, writeEvidence } from "../../../src/evidence/http-challenge.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { networkList } from "../../../src/runtime/networks.ts";
import { startAgent } from "../../support/agent.ts";
import { attestWith, type Evidence, refused, selectorsOf } from "../../support/attest.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, protoId, startServer, type TestServer } from "../../support/server.ts";
import { TD } from "../ca/support.ts";

const HOST = hostname().toLowerCase();
const PREFIX = "nodeattestor(http_challenge): ";

let server: TestServer;
let anonymous: Apis;

beforeAll(async () => {
  const { address, family } = await lookup(HOST);
  server = await startServer({
    nodeAttestors: {
      http_challenge: {
        allowed_networks: [`${address}/${family === 4 ? 32 : 128}`],
        allowed_dns_patterns: [HOST.replaceAll(".", "\\."), "n[0-9]\\.nodes\\.invalid"],
      },
    },
  });
  anonymous = server.connect();
});
afterAll(async () => {
  anonymous[Symbol.dispose]();
  await server[Symbol.asyncDispose]();
});

/** A node's web server. */
async function node(answer: RequestListener) {
  const web: Server = createServer(answer);
  await new Promise<void>((resolve) => web.listen(0, resolve));
  const { port } = web.address() as AddressInfo;
  return {
    port,
    async [Symbol.asyncDispose]() {
      web.closeAllConnections();
      await new Promise((resolve) => web.close(resolve));
    },
  };
}

function evidence(
  port: number,
  change: Partial<Parameters<typeof writeEvidence>[0]> = {},
): Evidence & { nonce: string } {
  const made = {
    type: "http_challenge",
    payload: writeEvidence({ hostname: HOST, agentname: "default", port, ...change }),
    nonce: "",
    respond: (challenge: Buffer) => {
      made.nonce = readChallenge(challenge);
      return "\n";
    },
  };
  return made;
}

describe("http_challenge", () => {
  test("a host that serves the nonce attests once: trust on first use", async () => {
    let shown: ReturnType<typeof evidence> | undefined;
    const asked: (string | undefined)[] = [];
    await using web = await node((request, response) => {
      asked.push(`${request.method} ${request.headers.host} ${request.url}`);
      response.end(`${shown?.nonce}\n`);
    });
    shown = evidence(web.port);
    const attested = await attestWith(anonymous, shown);
    expect(asked).toEqual([`GET ${HOST}:${web.port} ${challengePath("default")}`]);
    expect(attested).toMatchObject({
      id: `spiffe://example.org/spire/agent/http_challenge/${HOST}`,
      reattestable: false,
    });
    expect(await selectorsOf(server, attested.id)).toEqual([`http_challenge:hostname:${HOST}`]);
    shown = evidence(web.port);
    expect(await refused(anonymous, shown)).toEqual({
      kind: "denied",
      message: `${PREFIX}attestation data has already been used to attest an agent`,
    });
    shown = evidence(web.port);
    expect((await attestWith(anonymous, { ...shown, signer: attested.signer })).id).toBe(attested.id);
    await server.admin.agent.DeleteAgent({ id: protoId(attested.id) });
  });

  test("an agent attests by it, and renews from then on", async () => {
    await using agent = await startAgent(server, { nodeAttestor: { http_challenge: { hostname: HOST } } });
    expect(agent.id()).toBe(`spiffe://example.org/spire/agent/http_challenge/${HOST}`);
    expect(agent.logged("Node attestation was successful", { reattestable: false })).toHaveLength(1);
    await server.admin.agent.DeleteAgent({ id: protoId(agent.id()) });
  });

  const ANSWERS: Readonly<Record<string, { answer: RequestListener; reason: string }>> = {
    "another body": {
      answer: (_, response) => response.end("secret of another service"),
      reason: "expected nonce was not found in HTTP response",
    },
    "a redirect to where the nonce is": {
      answer: (_, response) => response.writeHead(302, { location: "http://169.254.169.254/latest" }).end(),
      reason: "the HTTP response was not a success",
    },
    "an error": {
      answer: (_, response) => response.writeHead(500).end("secret"),
      reason: "the HTTP response was not a success",
    },
    "a body without end": {
      answer: (_, response) => {
        const flood = (): void => void (response.write("x".repeat(65_536)) && setImmediate(flood));
        response.on("drain", flood);
        flood();
      },
      reason: "expected nonce was not found in HTTP response",
    },
    "a closed connection": { answer: (request) => request.socket.destroy(), reason: "the HTTP request failed" },
  };

  test.each(Object.entries(ANSWERS))("T-N4 %s is refused, and nothing of it is told", async (_, { answer, reason }) => {
    await using web = await node(answer);
    expect(await refused(anonymous, evidence(web.port))).toEqual({
      kind: "denied",
      message: `${PREFIX}challenge verification failed: ${reason}`,
    });
    expect(server.output()).not.toContain("secret");
  });

  test("T-N4 a redirect is not followed, even to where the nonce is", async () => {
    let shown: ReturnType<typeof evidence> | undefined;
    let asked = 0;
    await using target = await node((_, response) => {
      asked += 1;
      response.end(shown?.nonce);
    });
    await using web = await node((request, response) => {
      response.writeHead(307, { location: `http://${HOST}:${target.port}${request.url}` }).end(shown?.nonce);
    });
    shown = evidence(web.port);
    expect((await refused(anonymous, shown)).message).toContain("the HTTP response was not a success");
    expect(asked).toBe(0);
  });

  test("T-N4 a host that is not on the internet is not asked unless its network is allowed", async () => {
    let asked = 0;
    await using web = await node((_, response) => {
      asked += 1;
      response.end("x");
    });
    await using bare = await startServer({ nodeAttestors: { http_challenge: {} } });
    using apis = bare.connect();
    expect(await refused(apis, evidence(web.port))).toEqual({
      kind: "denied",
      message: `${PREFIX}challenge verification failed: the hostname has no address that may be asked`,
    });
    expect(asked).toBe(0);
  });

  const invalid = (message: string) => ({ kind: "invalid", message: PREFIX + message });
  test.each([
    [{ agentname: "" }, invalid("agent name is not valid")],
    [{ agentname: "a" }, undefined],
    [{ agentname: "a".repeat(32) }, undefined],
    [{ agentname: "a".repeat(33) }, invalid("agent name is not valid")],
    [{ agentname: "a_b" }, invalid("agent name is not valid")],
    [{ agentname: "[" }, invalid("agent name is not valid")],
    [{ agentname: "../x" }, invalid("agent name is not valid")],
    [{ agentname: "1a" }, invalid("agent name is not valid")],
    [{ port: 0 }, invalid("port is invalid")],
    [{ port: 65_536 }, invalid("port is invalid")],
    [{ port: -1 }, invalid("port is invalid")],
    [{ hostname: "" }, invalid("hostname is not valid")],
    [{ hostname: "127.0.0.1" }, invalid("hostname is not valid")],
    [{ hostname: "2130706433" }, invalid("hostname is not valid")],
    [{ hostname: "a/b" }, invalid("hostname is not valid")],
    [{ hostname: "a:80" }, invalid("hostname is not valid")],
    [{ hostname: "a@b" }, invalid("hostname is not valid")],
    [{ hostname: "a.test#" }, invalid("hostname is not valid")],
    [{ hostname: ".." }, invalid("hostname is not valid")],
    [{ hostname: "N1.NODES.INVALID" }, invalid("hostname is not valid")],
    [{ hostname: "n1.nodes.invalid." }, invalid("hostname is not valid")],
    [{ hostname: "*.nodes.invalid" }, invalid("hostname is not valid")],
    [{ hostname: `${"a.".repeat(126)}ab` }, invalid("hostname is not valid")],
    [{ hostname: `${"a".repeat(64)}.nodes.invalid` }, invalid("hostname is not valid")],
    [
      { hostname: `${"a.".repeat(126)}a` },
      { kind: "denied", message: `${PREFIX}the requested hostname is not allowed to connect` },
    ],
    [{ hostname: "localhost" }, { kind: "denied", message: `${PREFIX}you can not use localhost as a hostname` }],
    [
      { hostname: "n1.nodes.invalid.evil.invalid" },
      { kind: "denied", message: `${PREFIX}the requested hostname is not allowed to connect` },
    ],
  ])("T-S1 T-S7 %j: %j", async (change, expected) => {
    await using web = await node((_, response) => response.end("wrong"));
    const answer = await refused(anonymous, evidence(web.port, change));
    if (expected === undefined) expect(answer.message).toContain("expected nonce was not found");
    else expect(answer).toEqual(expected);
  });
});

describe("T-N4 where a request may go", () => {
  const attest = async (addresses: readonly string[], allowed: readonly string[], port = 1) => {
    const asked: string[] = [];
    const attestor = new HttpChallengeAttestor({
      ...{ trustDomain: TD, clock: systemClock, allowedDnsPatterns: [], requiredPort: undefined },
      ...{ allowNonRootPorts: true, tofu: true, allowedNetworks: networkList(allowed) },
      resolve: async (name) => {
        asked.push(name);
        return addresses;
      },
    });
    const payload = writeEvidence({ hostname: "node.test", agentname: "a", port });
    const context = { signal: new AbortController().signal, keyHash: "k" };
    const fault = await faultFrom(attestor.attest(payload, async () => Buffer.from("\n"), context));
    expect(asked).toEqual(["node.test"]);
    return fault.message;
  };
  const NOWHERE = "challenge verification failed: the hostname has no address that may be asked";

  test.each([
    "127.0.0.1",
    "10.1.2.3",
    "172.31.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fd00::1",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "::ffff:7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "ff02::1",
  ])("%s is no place to ask", async (address) => {
    expect(await attest([address], [])).toBe(NOWHERE);
  });

  test("the address that was looked up is the one that is asked, under the name of the host", async () => {
    const hosts: (string | undefined)[] = [];
    await using web = await node((request, response) => {
      hosts.push(request.headers.host);
      response.end("wrong");
    });
    expect(await attest(["10.0.0.1", "127.0.0.1"], ["127.0.0.0/8"], web.port)).toContain(
      "expected nonce was not found",
    );
    expect(hosts).toEqual([`node.test:${web.port}`]);
  });

  test("an address in an allowed network is asked, and no other of the same name", async () => {
    expect(await attest(["169.254.169.254", "127.0.0.1"], ["127.0.0.0/8"])).toBe(
      "challenge verification failed: the HTTP request failed",
    );
    expect(await attest(["10.0.0.1"], ["127.0.0.0/8"])).toBe(NOWHERE);
    expect(await attest([], [])).toBe(NOWHERE);
  });
});

describe("ports", () => {
  const attest = async (rules: { requiredPort?: number; allowNonRootPorts?: boolean }, port: number) => {
    const attestor = new HttpChallengeAttestor({
      ...{ trustDomain: TD, clock: systemClock, allowedDnsPatterns: [], tofu: true, allowedNetworks: networkList([]) },
      ...{ requiredPort: rules.requiredPort, allowNonRootPorts: rules.allowNonRootPorts ?? true },
      resolve: async () => [],
    });
    const payload = writeEvidence({ hostname: "node.test", agentname: "a", port });
    const context = { signal: new AbortController().signal, keyHash: "k" };
    return (await faultFrom(attestor.attest(payload, async () => Buffer.from("\n"), context))).message;
  };
  const ASKED = expect.stringContaining("the hostname has no address");

  test.each([
    [{ requiredPort: 80 }, 80, ASKED],
    [{ requiredPort: 80 }, 81, "port 81 is not allowed to be used by this server"],
    [{ allowNonRootPorts: false }, 1, ASKED],
    [{ allowNonRootPorts: false }, 1023, ASKED],
    [{ allowNonRootPorts: false }, 1024, "port 1024 is not allowed to be >= 1024"],
    [{}, 65_535, ASKED],
  ])("T-N4 T-S7 with %j, port %s: %s", async (rules, port, message) => {
    expect(await attest(rules, port)).toEqual(message);
  });
});
