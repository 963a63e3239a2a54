import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { LocalAuthorityApi } from "../../src/rpc/protos.ts";
import { isSpiffeId } from "../../src/spiffe/id.ts";
import { eventually } from "../support/eventually.ts";
import { PROJECT } from "../support/server.ts";
import { type House, identities, Peer } from "./peer.ts";

const program = process.env["INTEROP_GO_SPIFFE"] ?? "";

const go = (...args: readonly string[]): readonly string[] => [program, ...args];

describe("go-spiffe", () => {
  let house: House;
  /** Its identities live for four seconds. */
  let hasty: House;
  beforeAll(async () => {
    house = await identities();
    hasty = await identities(4);
  });
  afterAll(async () => {
    await house?.[Symbol.asyncDispose]();
    await hasty?.[Symbol.asyncDispose]();
  });

  test("fetches every identity with its hint, and the bundle", async () => {
    await using peer = new Peer(go("fetch"), house.agent.socket);
    expect(await peer.result()).toBe(
      'spiffe://example.org/web "internal"\nspiffe://example.org/web-ext "external"\nbundle example.org 1\n',
    );
  });

  test("two of its processes do mutual TLS with our identities", async () => {
    await using listener = new Peer(go("serve"), house.agent.socket);
    const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1]);
    await using caller = new Peer(go("dial", address, "spiffe://example.org/web"), house.agent.socket);
    expect(await caller.result()).toBe("hello world\n");
    await listener.result();
  });

  test("refuses a peer with another identity than the one it asked for", async () => {
    await using listener = new Peer(go("serve"), house.agent.socket);
    const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1]);
    await using caller = new Peer(go("dial", address, "spiffe://example.org/other"), house.agent.socket);
    await expect(caller.result()).rejects.toThrow(/unexpected ID "spiffe:\/\/example.org\/web"/);
  });

  test("its watcher receives rotations, each before the last one has ended", async () => {
    await using peer = new Peer(go("watch", "4"), hasty.agent.socket);
    const lines = (await peer.result())
      .trim()
      .split("\n")
      .map((line) => line.split(" "));
    expect(new Set(lines.map(([serial]) => serial)).size).toBe(4);
    const ends = lines.map(([, end]) => Number(end));
    expect(ends).toEqual(ends.toSorted((a, b) => a - b));
  });

  test("JWT-09 JWT-23 WAPI-36 WAPI-37 fetches JWT-SVIDs of all identities, and validates them by agent and by source", async () => {
    await using peer = new Peer(go("jwt", "reports"), house.agent.socket);
    const lines = (await peer.result()).trim().split("\n");
    expect(lines.map((line) => line.replace(/ \S+$/, ""))).toEqual([
      'spiffe://example.org/web "internal" ["reports"]',
      'spiffe://example.org/web-ext "external" ["reports"]',
    ]);
    const token = lines[0]?.split(" ").at(-1) ?? "";
    await using good = new Peer(go("validate", "reports", token), house.agent.socket);
    expect(await good.result()).toBe("spiffe://example.org/web spiffe://example.org/web\n");
    await using bad = new Peer(go("validate", "other", token), house.agent.socket);
    await expect(bad.result()).rejects.toThrow(/InvalidArgument.*expected audience/);
  });

  test("its watcher of JWT bundles receives a new key", async () => {
    await using peer = new Peer(go("jwtbundles", "2"), house.agent.socket);
    await eventually("the first keys", () => /^example.org \["\S+"\]\n/.test(peer.stdout));
    const authority = house.server.admin.channel.client(LocalAuthorityApi);
    const { prepared_authority } = await authority.PrepareJWTAuthority({});
    expect((await peer.result()).trim().split("\n").at(-1)).toContain(prepared_authority?.authority_id);
  });

  test("20 rotations without one failed handshake", async () => {
    await using peer = new Peer(go("handshakes", "21"), hasty.agent.socket);
    expect(await peer.result()).toBe("21 identities\n");
  });

  test("T-S2: it and our parser accept the same SPIFFE IDs", async () => {
    const vectors = ["spiffe-id.valid.txt", "spiffe-id.invalid.txt"].flatMap((file) =>
      readFileSync(join(PROJECT, "test/vectors", file), "utf8").split("\n"),
    );
    const piece = fc.constantFrom(
      "spiffe://",
      "spiffe:/",
      "a",
      "A",
      "-",
      "_",
      ".",
      "..",
      "/",
      "//",
      "%2f",
      "?",
      "#",
      ":",
      "@",
      "é",
      " ",
      "0",
      "example.org",
    );
    const made = fc.sample(
      fc.array(piece, { maxLength: 8 }).map((parts) => parts.join("")),
      20_000,
    );
    const prefixed = made.map((text) => `spiffe://td/${text}`);
    // Ours refuses more than 2048 bytes, which the standard leaves open.
    const candidates = [...vectors, ...made, ...prefixed].filter((text) => text.length <= 2048 && text.isWellFormed());
    await using peer = new Peer(go("parse"), "", candidates.map((text) => `${JSON.stringify(text)}\n`).join(""));
    const answers = (await peer.result()).trim().split("\n");
    expect(answers).toHaveLength(candidates.length);
    const different = candidates.filter((text, index) => isSpiffeId(text) !== (answers[index] === "ok"));
    expect(different).toEqual([]);
    expect(answers.filter((answer) => answer === "ok").length).toBeGreaterThan(100);
  });
});
