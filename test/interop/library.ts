import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { LocalAuthorityApi } from "../../src/rpc/protos.ts";
import { eventually } from "../support/eventually.ts";
import { type House, identities, Peer } from "./peer.ts";

/** A library for workloads, in a program with the commands that these tests name. */
export interface SpiffeLibrary {
  readonly name: string;
  readonly isSkipped?: boolean;
  /** The command line with these arguments. */
  readonly run: Run;
  /** The command line that sees 21 rotations by a source, without a moment in which its identity has ended. */
  readonly rotations?: readonly string[];
}

type Run = (...args: readonly string[]) => readonly string[];

/** Tests that a workload with that library is served. */
export function spiffeLibrary({
  name,
  isSkipped = false,
  run,
  rotations = run("rotations", "21"),
}: SpiffeLibrary): void {
  describe.skipIf(isSkipped)(name, () => {
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
      await using peer = new Peer(run("fetch"), house.agent.socket);
      expect(await peer.result()).toBe(
        'spiffe://example.org/web "internal"\nspiffe://example.org/web-ext "external"\nbundle example.org 1\n',
      );
    });

    test("its watcher receives rotations, each before the last one has ended", async () => {
      await using peer = new Peer(run("watch", "4"), hasty.agent.socket);
      const lines = (await peer.result())
        .trim()
        .split("\n")
        .map((line) => line.split(" "));
      expect(new Set(lines.map(([serial]) => serial)).size).toBe(4);
      const ends = lines.map(([, end]) => Number(end));
      expect(ends).toEqual(ends.toSorted((a, b) => a - b));
    });

    test("20 rotations of its source, each before the last identity has ended", async () => {
      await using peer = new Peer(rotations, hasty.agent.socket);
      expect(await peer.result()).toBe("21 identities\n");
    });

    test("JWT-09 JWT-23 WAPI-36 WAPI-37 fetches JWT-SVIDs of all identities, and validates them by agent and by source", async () => {
      await using peer = new Peer(run("jwt", "reports"), house.agent.socket);
      const lines = (await peer.result()).trim().split("\n");
      expect(lines.map((line) => line.replace(/ \S+$/, ""))).toEqual([
        'spiffe://example.org/web "internal" ["reports"]',
        'spiffe://example.org/web-ext "external" ["reports"]',
      ]);
      const token = lines[0]?.split(" ").at(-1) ?? "";
      await using good = new Peer(run("validate", "reports", token), house.agent.socket);
      const id = "spiffe://example.org/web";
      expect(await good.result()).toBe(`${id} ${id} ${id}\n`);
      await using bad = new Peer(run("validate", "other", token), house.agent.socket);
      await expect(bad.result()).rejects.toThrow(/invalid_?argument.*expected audience/i);
    });

    test("its watcher of JWT bundles receives a new key", async () => {
      await using peer = new Peer(run("jwtbundles", "2"), house.agent.socket);
      await eventually("the first keys", () => /^example.org \["\S+"\]\n/.test(peer.stdout));
      const authority = house.server.admin.channel.client(LocalAuthorityApi);
      const { prepared_authority } = await authority.PrepareJWTAuthority({});
      expect((await peer.result()).trim().split("\n").at(-1)).toContain(prepared_authority?.authority_id);
    });

    test("two of its processes do mutual TLS with our identities", async () => {
      await using listener = new Peer(run("serve"), house.agent.socket);
      const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1], 30_000);
      await using caller = new Peer(run("dial", address, "spiffe://example.org/web"), house.agent.socket);
      expect(await caller.result()).toBe("hello world\n");
      await listener.result();
    });

    test("refuses a peer with another identity than the one it asked for", async () => {
      await using listener = new Peer(run("serve"), house.agent.socket);
      const address = await eventually("it listens", () => /^(\S+)\n/.exec(listener.stdout)?.[1], 30_000);
      await using caller = new Peer(run("dial", address, "spiffe://example.org/other"), house.agent.socket);
      await expect(caller.result()).rejects.toThrow(
        /unexpected ID "spiffe|UnauthorizedSpiffeId|ID spiffe\S+ in X.509 certificate is not accepted/,
      );
    });
  });
}
