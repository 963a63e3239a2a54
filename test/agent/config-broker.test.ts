import { describe, expect, test } from "vitest";
import { agent, load, refused } from "../support/agent-config.ts";

describe("the Broker API", () => {
  const broker = (lines: string) => agent(`experimental { broker { ${lines} } }`);
  const ONE = '{ id = "spiffe://b.test/x", allowed_reference_types = [{ type_url = "a/B" allow_over_tcp = true }] }';

  test("sockets, brokers and what they may refer to", async () => {
    const lines = `socket_path = "/run/b/b.sock"\n bind_address = "[::1]:8443"\n brokers = [${ONE}]`;
    expect((await load(broker(lines))).broker).toEqual({
      socketPath: "/run/b/b.sock",
      bind: { address: "::1", port: 8443 },
      brokers: [{ id: "spiffe://b.test/x", allowed: [{ typeUrl: "a/B", overTcp: true }] }],
    });
    expect((await load(agent(""))).broker).toBeUndefined();
  });

  test.each([
    { lines: `brokers = [${ONE}]`, message: "experimental.broker requires socket_path, bind_address, or both" },
    { lines: 'bind_address = "a:1"', message: "experimental.broker.brokers: at least one broker is required" },
    { lines: `bind_address = "a" brokers = [${ONE}]`, message: 'invalid experimental.broker.bind_address "a"' },
    {
      lines: `bind_address = "a:1" brokers = [${ONE}, ${ONE}]`,
      message: "experimental.broker.brokers[spiffe://b.test/x].id: duplicate broker id",
    },
    {
      lines: 'bind_address = "a:1" brokers = [{ id = "" allowed_reference_types = [{ type_url = "*" }] }]',
      message: "experimental.broker.brokers[0].id: must be specified",
    },
    {
      lines: 'bind_address = "a:1" brokers = [{ id = "spiffe://a/b" }]',
      message: "allowed_reference_types: must list at least one reference type URL",
    },
    {
      lines: 'bind_address = "a:1" brokers = [{ id = "spiffe://a/b" allowed_reference_types = [{}] }]',
      message: "allowed_reference_types[0].type_url: must be specified",
    },
    {
      lines:
        'bind_address = "a:1" brokers = [{ id = "spiffe://a/b" allowed_reference_types = [{ type_url = "*" }, { type_url = "a/B" }] }]',
      message: 'wildcard "*" must be the only allowed reference type',
    },
    {
      lines: `socket_path = "/tmp/spire-agent/public/broker.sock" brokers = [${ONE}]`,
      message: "broker socket cannot be in the same directory or a subdirectory",
    },
  ])("BEP-01 BRK-31 $message", async ({ lines, message }) => expect(await refused(broker(lines))).toContain(message));
});
