import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../support/eventually.ts";
import { type House, identities, Peer } from "./peer.ts";

const classPath = process.env["INTEROP_JAVA_CLASSPATH"] ?? "";
const rust = process.env["INTEROP_RUST_SPIFFE"] ?? "";
const programs: Readonly<Record<string, readonly string[]>> = {
  Go: [process.env["INTEROP_GO_SPIFFE"] ?? ""],
  ...(rust !== "" && { Rust: [rust] }),
  ...(classPath !== "" && { Java: ["java", "-cp", classPath, "JavaSpiffe"] }),
};
const pairs = Object.keys(programs).flatMap((server) =>
  Object.keys(programs).flatMap((client) => (client === server ? [] : [{ server, client }])),
);

describe.skipIf(pairs.length === 0)("mutual TLS between languages", () => {
  let house: House;
  beforeAll(async () => {
    house = await identities();
  });
  afterAll(async () => {
    await house?.[Symbol.asyncDispose]();
  });

  test.each(pairs)("$client greets $server with our identities", async ({ server, client }) => {
    await using listener = new Peer([...(programs[server] ?? []), "serve"], house.agent.socket);
    const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1], 30_000);
    const dial = [...(programs[client] ?? []), "dial", address, "spiffe://example.org/web"];
    await using caller = new Peer(dial, house.agent.socket);
    expect(await caller.result()).toBe("hello world\n");
    await listener.result();
  });
});
