import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type BundleContent, withTokenAuthorities } from "../../../server/ca/bundle-edits.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { eventually } from "../../support/eventually.ts";
import { faultOf } from "../../support/faults.ts";
import { DAY, Fleet, HOUR, openTokens, openX509, pass, type TestServer, ticking } from "./fleet.ts";
import { messagesOf, START } from "./support.ts";

let fleet: Fleet;

beforeAll(async () => {
  fleet = await Fleet.open();
});
afterAll(() => fleet[Symbol.asyncDispose]());
beforeEach(() => fleet.nextTrustDomain());

const FIELD = { jwt: "jwtAuthorities", wit: "witAuthorities" } as const;

async function published(kind: "jwt" | "wit"): Promise<Bundle["jwtAuthorities"]> {
  return (await fleet.store.bundles.find(fleet.trustDomain))?.[FIELD[kind]] ?? [];
}

describe.each([
  { kind: "jwt", key: "JWT-Signer-A", noun: "JWT key" },
  { kind: "wit", key: "WIT-Signer-A", noun: "WIT key" },
] as const)("authorities of kind $kind", ({ kind, key, noun }) => {
  test("the first start makes one: published with its end, in the journal, active, logged in SPIRE's words", async () => {
    const options = await fleet.server({ keyType: "ec-p384" });
    const authorities = await openTokens(kind, options);
    const { id, notAfter, issuedAt } = authorities.signing();
    expect(id).toMatch(/^[A-Za-z0-9]{32}$/);
    expect(notAfter).toEqual(new Date(Math.floor((START.getTime() + DAY * 1000) / 1000) * 1000));
    const managed = await options.keys.find(key);
    expect(managed?.keyType).toBe("ec-p384");
    expect(await published(kind)).toEqual([
      {
        keyId: id,
        publicKey: Uint8Array.from(managed?.publicKey ?? []),
        expiresAt: notAfter.getTime() / 1000,
        tainted: false,
      },
    ]);
    const rows = await fleet.store.authorities.list(kind);
    expect(rows.find((row) => row.authorityId === id)).toMatchObject({ status: "active", keyId: key });
    const fields = { slot: "A", issued_at: issuedAt, expiration: notAfter, local_authority_id: id };
    expect(options.log.lines.filter(({ level }) => level === "info")).toEqual([
      { level: "info", message: `${noun} prepared`, fields },
      { level: "info", message: `${noun} activated`, fields },
    ]);
  });

  test("a restart keeps it when the keys are on disk, and makes a new one when they were in memory", async () => {
    const before = await openTokens(kind, await fleet.server());
    const after = await openTokens(kind, await fleet.server());
    expect(after.signing().id).toBe(before.signing().id);
    const fresh = await openTokens(kind, await fleet.server({ keys: openMemoryKeys() }));
    expect(fresh.signing().id).not.toBe(before.signing().id);
    expect((await published(kind)).map(({ keyId }) => keyId)).toEqual([before.signing().id, fresh.signing().id]);
  });

  test("the next one is published at half of the lifetime and signs at five sixths", async () => {
    const options = await fleet.server();
    const authorities = await openTokens(kind, options);
    const first = authorities.signing().id;
    await using _ = ticking(authorities);
    await pass(options, 12 * HOUR + 60);
    await eventually("the second is prepared", () => authorities.slots.next.state === "prepared");
    expect([authorities.signing().id, (await published(kind)).length]).toEqual([first, 2]);
    await pass(options, 8 * HOUR);
    await eventually("the second signs", () => authorities.signing().id !== first);
  });

  test("one that is expired, not yet valid or gone from the bundle signs nothing", async () => {
    const options = await fleet.server();
    const authorities = await openTokens(kind, options);
    const code = noun.toLowerCase().replace(" ", "-");
    options.clock.move(2 * DAY);
    expect(faultOf(() => authorities.signing())).toMatchObject({ kind: "unavailable", code: `${code}-expired` });
    options.clock.move(-3 * DAY);
    expect(faultOf(() => authorities.signing())).toMatchObject({ code: `${code}-not-yet-valid` });
    options.clock.move(DAY);
    await fleet.emptyBundle();
    const again = await openTokens(kind, await fleet.server());
    expect(again.signing().id).not.toBe(authorities.signing().id);
  });
});

describe("WIT-03 a key ID stands for one key", () => {
  test("a thousand keys have a thousand key IDs", async () => {
    const { publicKey } = await openMemoryKeys().generate("k", "ec-p256");
    const keys = { generate: async (id: string) => ({ ...STUB, id, publicKey }), find: async () => undefined };
    const options = { ...(await fleet.server()), keys };
    const authorities = await openTokens("wit", { ...options, bundles: inMemory(), journal: NO_JOURNAL });
    const ids = new Set([authorities.signing().id]);
    for (let count = 1; count < 1000; count += 1) ids.add((await authorities.prepare()).id);
    expect(ids.size).toBe(1000);
  });

  test("WIT-39 a key ID of another key, of either kind, is refused; the same key again is no change", () => {
    const key = (keyId: string, byte: number) => ({
      keyId,
      publicKey: Uint8Array.of(byte),
      expiresAt: 0,
      tainted: false,
    });
    const bundle = asBundle(withTokenAuthorities(undefined, "jwt", [key("k1", 1)]));
    expect(withTokenAuthorities(bundle, "jwt", [key("k1", 1)]).jwtAuthorities).toHaveLength(1);
    for (const [kind, byte] of [
      ["jwt", 2],
      ["wit", 1],
      ["wit", 2],
    ] as const)
      expect(faultOf(() => withTokenAuthorities(bundle, kind, [key("k1", byte)]))).toMatchObject({
        kind: "invalid",
        code: "key-id-taken",
      });
  });
});

const STUB = { keyType: "ec-p256", sign: async (): Promise<Uint8Array> => new Uint8Array() } as const;
const NO_JOURNAL = { list: async () => [], save: async () => {} };

function asBundle(content: BundleContent): Bundle {
  return { ...content, trustDomain: fleet.trustDomain, sequenceNumber: 1n };
}

function inMemory(): TestServer["bundles"] {
  let held: Bundle | undefined;
  return {
    find: async () => held,
    change: async (_, change) => {
      held = asBundle(change(held));
      return held;
    },
  };
}

describe("while something is away", () => {
  test("the key manager is asked for one key, however often the upstream step fails after it", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const { id } = authorities.signing();
    let made = 0;
    const keys = {
      find: (name: string) => options.keys.find(name),
      generate: (...args: Parameters<typeof options.keys.generate>) => {
        made += 1;
        return options.keys.generate(...args);
      },
    };
    const bundles = { ...options.bundles, find: options.bundles.find.bind(options.bundles) };
    let away = true;
    bundles.change = (td, change) =>
      away ? Promise.reject(new Fault("unavailable", "away")) : options.bundles.change(td, change);
    const restarted = await openX509({ ...options, keys, bundles });
    await using _ = ticking(restarted);
    await pass(options, 13 * HOUR);
    for (let tick = 0; tick < 5; tick += 1) await pass(options, 11);
    expect([made, restarted.signing().id, restarted.slots.next.state]).toEqual([1, id, "empty"]);
    away = false;
    await pass(options, 11);
    await eventually("the successor is prepared", () => restarted.slots.next.state === "prepared");
    expect(made).toBe(1);
    expect(messagesOf(options.log, "error")).toContain("Unable to rotate X509 CA");
  });

  test("a start with a valid authority and a successor that cannot be made is no failure", async () => {
    const options = await fleet.server();
    const { id } = (await openX509(options)).signing();
    options.clock.move(13 * HOUR);
    const keys = {
      find: (name: string) => options.keys.find(name),
      generate: () => Promise.reject(new Fault("unavailable", "key manager is away")),
    };
    const restarted = await openX509({ ...options, keys });
    expect(restarted.signing().id).toBe(id);
    const none = { find: async () => undefined, generate: keys.generate };
    await expect(openX509({ ...options, keys: none })).rejects.toThrow("key manager is away");
  });
});

describe("on demand", () => {
  test("prepare, activate, taint: each only from the state before it", async () => {
    const options = await fleet.server();
    const authorities = await openTokens("jwt", options);
    const first = authorities.signing().id;
    const refusal = (work: Promise<unknown>): Promise<unknown> => work.catch((error: unknown) => String(error));
    const bundle = async (): Promise<Bundle> => (await fleet.store.bundles.find(fleet.trustDomain)) as Bundle;
    expect(await refusal(authorities.activate(""))).toContain("no authority ID provided");
    expect(await refusal(authorities.activate(first))).toContain("unexpected authority ID");
    expect(await refusal(authorities.taint(first, bundle))).toContain("unable to taint current local authority");
    const { id: second } = await authorities.prepare();
    expect(await refusal(authorities.taint(second, bundle))).toContain("only Old local authorities can be tainted");
    expect(authorities.signing().id).toBe(first);
    const activated = authorities.activate(second);
    await eventually("it waits until agents hold the new authority", () => options.clock.sleepers === 1);
    expect(authorities.signing().id).toBe(first);
    options.clock.move(6);
    expect([(await activated).id, authorities.signing().id]).toEqual([second, second]);
    expect(await refusal(authorities.activate(first))).toContain("only Prepared authorities can be activated");
    await authorities.taint(first, bundle);
    expect(authorities.slots.next).toMatchObject({ state: "tainted", authority: { id: first } });
    const again = await openTokens("jwt", await fleet.server());
    expect(again.slots.next).toMatchObject({ state: "tainted", authority: { id: first } });
  });
});
